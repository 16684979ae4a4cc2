"""What readers wait for before anything is computed."""

import subprocess
import sys

WORK = """
import sys
import torch
from lowdim import curvature, ensembles, structured
structured.LowRankLinear.from_dense(torch.ones(4, 4), rank=1)
ensemble = ensembles.Ensemble([torch.nn.Linear(2, 2)], torch.nn.functional.mse_loss, 5, 0.1)
ensemble.step(torch.ones(1, 3, 2), torch.ones(1, 3, 2))
curvature.hessian(lambda x: x.square().sum(), [torch.ones(3)])
product = curvature.population_hessian_product(lambda x: x.square().sum(1), [torch.ones(2, 3)])
curvature.dense(product, torch.ones(2, 3))
print(sorted(name for name in ("torch._dynamo", "torch._inductor", "sklearn", "pandas") if name in sys.modules))
"""


def test_no_compiler_is_imported_on_the_way():
    """PyTorch loads its compiler, for seconds, with the first optimizer or the first ``torch.func.grad``."""
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
