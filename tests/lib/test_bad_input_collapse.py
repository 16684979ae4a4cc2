"""Bad input by the hundred, continued: the model of neural collapse."""

# ruff: noqa: E501
import bad_values as bad
import torch
from bad_values import t

from lowdim import collapse

Case = bad.Case
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


BASIS = torch.linalg.qr(t(2, 5, 3)).Q.contiguous()
POSITIVE, WEIGHT = bad.several(above=0), bad.several(at_least=0)
OF_CLASSES = (
    bad.only("a class is missing", torch.tensor([0, 2, 0, 2, 0, 2]))
    + bad.only("negative", torch.tensor([0, 1, 2, 0, 1, -1]))
    + bad.only("no labels", t(6), LABELS.bool())
    + bad.only("wrong type", None, 3, "labels", [0, 1, 2, 0, 1, 2])
)
OF_SAMPLES = OF_CLASSES + bad.only("wrong length", LABELS[:3])
MODEL = {"start": bad.tensor(), "labels": OF_SAMPLES, "decay_w": POSITIVE, "decay_h": WEIGHT, "beta": WEIGHT}
FLOW = {name: MODEL[name] for name in ("start", "labels", "decay_w", "decay_h")}
SHARP = bad.tensor(dims=False, finite=False)
TIMES = bad.several(at_least=0) + bad.only("falling", [2.0, 1.0], [1.0, 1.0])
CASES = [
    Case(collapse.BetaModel, lambda: dict(start=t(2, 6, 5), labels=LABELS, decay_w=0.1, decay_h=0.2, beta=1.0), MODEL),
    Case(collapse.class_block, lambda: dict(influence=t(2, 12, 12), labels=LABELS, k=0, l=1), {
        "influence": bad.tensor(ends=(1, 2)), "labels": OF_CLASSES + bad.only("does not divide", torch.tensor([0, 1, 2, 0, 1])),
        "k": bad.count(0, 2), "l": bad.count(0, 2)}),
    Case(collapse.orthogonal_collapse, lambda: dict(basis=BASIS, labels=LABELS, decay_w=0.1, decay_h=0.2), {
        "basis": bad.tensor() + bad.only("not orthonormal", t(2, 5, 3)) + bad.only("too few", BASIS[..., :2]), "labels": OF_CLASSES,
        "decay_w": POSITIVE, "decay_h": POSITIVE}),
    Case(collapse.scatter, lambda: dict(features=t(2, 6, 5), labels=LABELS), {"features": SHARP, "labels": OF_SAMPLES}),
    Case(collapse.collapse_measures, lambda: dict(features=t(2, 6, 5), labels=LABELS), {
        "features": SHARP, "labels": OF_SAMPLES, "cutoff": bad.real(at_least=0, below=1)}),
    Case(collapse.velocity, lambda: dict(start=t(2, 6, 5), labels=LABELS, decay_w=0.1, decay_h=0.2), FLOW),
    Case(collapse.central_path, lambda: dict(start=t(2, 6, 5), labels=LABELS, decay_w=0.1, decay_h=0.2, times=[0.5]), FLOW | {"times": TIMES}),
]  # fmt: skip
test_the_good_arguments_are_good, test_bad_input_is_answered = bad.table_tests(CASES)
