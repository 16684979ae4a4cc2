"""An ensemble takes the steps that its runs would take one by one."""

import copy

import pytest
import torch
import torch.nn.functional as F

from lowdim.checks import ParameterError
from lowdim.ensembles import Ensemble
from lowdim.models import GPT
from lowdim.structured_models import replace_linear


@pytest.mark.parametrize("kind", ["dense", "blast", "block-low-rank"])
def test_batch_equals_one_by_one(kind, random):
    models = [GPT(9, 6, 8, 1, 2, random) for _ in range(3)]
    if kind != "dense":
        for m in models:
            replace_linear(m, "blocks.*", kind, rank=1, blocks=2, fresh=True, std=0.05, generator=random)
    loss = lambda logits, y: F.cross_entropy(logits.flatten(0, -2), y.flatten())
    x = torch.randint(9, (5, 3, 4, 6), generator=random)
    alone = [copy.deepcopy(m) for m in models]
    together = Ensemble(models, loss, 5, 0.01, clip=0.5)
    singles = [Ensemble([m], loss, 5, 0.01, clip=0.5) for m in alone]
    for batch in x:
        losses = together.step(batch, batch)
        for run, single in enumerate(singles):
            torch.testing.assert_close(single.step(batch[run : run + 1], batch[run : run + 1])[0], losses[run])
    out = together.outputs(x[0, 0])
    for run, m in enumerate(together.models()):
        torch.testing.assert_close(m(x[0, 0]), out[run])
        torch.testing.assert_close(out[run], singles[run].models()[0](x[0, 0]), rtol=1e-4, atol=1e-5)


def test_it_is_adamw_with_clipping(random):
    model = torch.nn.Linear(4, 3)
    twin, x = copy.deepcopy(model), torch.randn(7, 4, generator=random)
    ours = Ensemble([model], lambda y, t: 50 * (y - t).square().mean(), 10, 0.05, warmup=0.0)
    groups = [dict(params=[twin.weight], weight_decay=0.01), dict(params=[twin.bias], weight_decay=0.0)]
    theirs = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.99))
    for _ in range(3):
        for group in theirs.param_groups:
            group["lr"] = ours.rate()
        ours.step(x[None], x[None, :, :3])
        theirs.zero_grad()
        (50 * (twin(x) - x[:, :3]).square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        theirs.step()
    torch.testing.assert_close(ours.models()[0].weight, twin.weight)


def test_bad_input():
    with pytest.raises(ParameterError, match="an ensemble needs models with the same parameters"):
        Ensemble([torch.nn.Linear(2, 2), torch.nn.Linear(2, 3)], F.mse_loss, 5, 0.1)
