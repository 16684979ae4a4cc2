"""Every public function, class and argument of ``lowdim`` is in a table of bad input, or an exception with a reason."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import lowdim

TABLES = [
    importlib.import_module(path.stem)
    for path in sorted(Path(__file__).parent.glob("test_bad_input*.py"))
    if path.stem != Path(__file__).stem
]
MODULES = sorted(module.name for module in pkgutil.iter_modules(lowdim.__path__))

RESULT = "a result: the library makes it"
ERROR = "raised, not called"
INNER = "called in every step of solvers that have checked"
CONTRACT = "takes what MatrixNetwork takes, and inherits its checks"
READER = "a row of the plans, which are fixed"
LAYER = "the form of all structured layers, which are in the tables"
EXCEPTIONS = {
    "checks.*": "the checks themselves, which all tables test",
    "claims.Claim": RESULT,
    "claims.anchor": "joins two texts",
    "claims.show": "formats anything",
    "claims.table": "takes rows of Claims",
    "consistency.rms": INNER,
    "data.DataError": ERROR,
    "descent.DivergenceError": ERROR,
    "descent.Trajectory": RESULT,
    "diffusion.Levels": RESULT,
    "files.write_atomically": "raises TypeError and OSError, tested in test_results",
    "latent_models.embedding": INNER,
    "models.attention": INNER,
    "networks.PackedNetwork": CONTRACT,
    "networks.Problem": "a base class",
    "networks.matches": "a check itself",
    "operators.Operator": "a base class",
    "phase_retrieval.Recovery": RESULT,
    "phase_retrieval.in_groups": "a decorator of the solvers",
    "phase_retrieval.recorder": INNER,
    "phase_retrieval.small_inverse": INNER,
    "populations.Population": "a base class",
    "populations.check_data": "a check itself",
    "populations.check_labels": "a check itself",
    "populations.check_stacked": "a check itself",
    "projections.Projection": "a base class",
    "posterior.Moment": RESULT,
    "posterior.Solution": RESULT,
    "predictors.Fit": RESULT,
    "predictors.hinge_width": INNER,
    "recovery.ThinNetwork": CONTRACT,
    "results.interactive_html": "called by Results.interactive, which checks",
    "structured.Counts": RESULT,
    "structured.StructuredLinear": LAYER,
    "structured_factorization.BlastFactors": RESULT,
    "structured_factorization.check_matrices": "a check itself",
    "structured_models.Replaced": RESULT,
    "structured_models.Report": RESULT,
    "structured_pretrained.Group": READER,
    "structured_pretrained.Plan": READER,
    "structured_pretrained.optional": "imports a package, and says what it is for if it is not there",
    "sweeps.Plan": RESULT,
    "sweeps.ShardError": ERROR,
    "sweeps.merge": "in test_sweeps",
    "sweeps.run_shard": "in test_sweeps",
}  # fmt: skip
# Arguments without a row: what is passed on to a function that checks it, what formats anything, dtypes of torch.
FREE = {
    "consistency.setting": "name limits",
    "data.subsets": "dtype",
    "descent.descend": "narrow",
    "descent.train": "options",
    "diffusion.check_images": "pixels",
    "factorization.haar": "dtype",
    "factorization.spectrum_target": "rotations",
    "factorization.transverse_hessian": "sigma_a sigma_b",
    "measurements.check_clip": "name op",
    "networks.network": "scale",
    "orbits.balanced_map": "sigma",
    "orbits.balanced_slope": "sigma",
    "features.Teacher": "device",
    "interpolation.along": "inputs targets",
    "plots.band": "x line",
    "plots.branches": "x dots",
    "plots.mark": "line",
    "predictors.loss_terms": "scores labels width",
    "published.perplexities": "fit",
    "published.same_noise": "fit",
    "runtime.generator": "device",
    "runtime.parallel": "jobs",
    "runtime.pick_device": "name",
    "structured_models.replace_linear": "fit",
    "structured_pretrained.compress": "fit",
    "sweeps.plan": "record options",
    "sweeps.sweep": "options",
    "tensors.check_ranks": "name",
    "trainer.side_by_side": "options",
    "trainer.train": "options",
    "video.clip_named": "shape size step",
}


def covered() -> dict[str, set]:
    """Name of a function -> the arguments that have rows."""
    found = {}
    for case in (case for table in TABLES for case in table.CASES):
        found.setdefault(case.name, set()).update(case.sorts)
    return found


def public(module: str) -> dict[str, list]:
    """Name -> arguments, of what a module defines and does not hide."""
    loaded, found = importlib.import_module(f"lowdim.{module}"), {}
    for name, thing in vars(loaded).items():
        if callable(thing) and getattr(thing, "__module__", "") == loaded.__name__ and not name.startswith("_"):
            is_error = inspect.isclass(thing) and issubclass(thing, Exception)
            arguments = [] if is_error else [*inspect.signature(thing).parameters]
            if arguments or inspect.isclass(thing):
                found[f"{module}.{name}"] = arguments
    return found


def excused(name: str) -> bool:
    return name in EXCEPTIONS or f"{name.split('.')[0]}.*" in EXCEPTIONS


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_and_argument_is_in_a_table(module):
    rows = covered()
    for name, arguments in public(module).items():
        if not excused(name):
            assert name in rows, f"{name} has no row in {', '.join(table.__name__ for table in TABLES)}"
            missing = set(arguments) - rows[name] - set(FREE.get(name, "").split())
            assert not missing, f"{name} has no row for {', '.join(sorted(missing))}"


def test_no_exception_is_stale():
    rows = covered()
    known = {name: arguments for module in MODULES for name, arguments in public(module).items()}
    assert {name for name in EXCEPTIONS if not name.endswith("*")} <= known.keys() - rows.keys()
    for name, words in FREE.items():
        assert set(words.split()) <= set(known[name]) - rows[name], name


def test_the_tables_name_what_exists():
    everything = set().union(*(public(module) for module in MODULES))
    methods = {name for name in covered() if name.count(".") > 1}
    assert covered().keys() - methods <= everything
