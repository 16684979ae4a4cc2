"""Whole models with structured layers: replace chosen linear layers, count costs, save and load."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowdim import checks as ok
from lowdim.checks import ParameterError, brief, choice
from lowdim.structured import KINDS, BlastLinear, StructuredLinear

METADATA = "lowdim.structured"  # the key in a safetensors file's metadata
FIT = ("iterations", "form", "delta0")  # arguments of a BLAST fit that all layers share
MODULE = ok.kind(nn.Module, "a module")


def _patterns(name: str, value, known: dict) -> None:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple | set) or not listed or not all(isinstance(p, str) for p in listed):
        raise ParameterError(f"{name} must be a text or a list of texts, got {brief(value)}.")


def _file(name: str, value, known: dict) -> None:
    ok.path(name, value, known)
    if not Path(value).is_file():
        raise ParameterError(f"{name} must be the path of a file that is there, got {brief(value)}.")


class Replaced(NamedTuple):
    """What happened to one layer: sizes, costs, and the relative Frobenius error of its weight."""

    name: str
    kind: str
    shape: tuple[int, int]
    rank: int
    blocks: int
    parameters: int
    dense: int
    error: float


class Report(list):
    """One ``Replaced`` for each layer, in the order of the model."""

    @property
    def ratio(self) -> float:
        """Multiplications of the replaced layers relative to dense."""
        return sum(row.parameters for row in self) / sum(row.dense for row in self)

    @property
    def error(self) -> float:
        """Mean relative error of the replaced weights."""
        return sum(row.error for row in self) / len(self)

    def __repr__(self) -> str:
        rows = [f"  {r.name}: {r.shape[0]} x {r.shape[1]} {r.kind}, rank {r.rank}, blocks {r.blocks}, "
                f"{r.parameters / r.dense:.1%} of dense, error {r.error:.3f}" for r in self]  # fmt: skip
        return "\n".join(
            [f"{len(self)} layers at {self.ratio:.1%} of their dense cost, mean error {self.error:.3f}"] + rows
        )


@ok.takes(model=MODULE, patterns=_patterns)
def chosen(model: nn.Module, patterns: str | Iterable[str]) -> dict[str, nn.Linear]:
    """The ``nn.Linear`` layers whose names match one of the patterns (``"blocks.*.mlp.*"``), in the model's order.

    Raises:
        ParameterError: a pattern without a match (the message lists the linear layers), or a layer whose weight is tied
            to another module.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in linear):
            there = ", ".join(linear) or "none"
            raise ParameterError(f"no linear layer of the model matches {pattern!r}; its linear layers: {there}.")
    found = {name: m for name, m in linear.items() if any(fnmatchcase(name, p) for p in patterns)}
    owners = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)].append(name)
    for name, layer in found.items():
        if len(tied := owners[id(layer.weight)]) > 1:
            raise ParameterError(f"{name} cannot be replaced: its weight is tied ({', '.join(tied)}); leave it out.")
    return found


@ok.takes(fresh=ok.flag)
def replace_linear(
    model: nn.Module, patterns: str | Iterable[str], kind: str = "blast", *, rank=None, budget=None, blocks=1,
    fresh=False, std=None, generator=None, scales: dict[str, Tensor] | None = None, **fit,
) -> Report:  # fmt: skip
    """Replace linear layers by structured ones, in place; layers of one shape are fitted as one batch.

    Args:
        patterns: names of layers, with ``*``.
        kind: ``"blast"``, ``"low-rank"``, ``"block-low-rank"`` or ``"block-diagonal"``.
        rank, budget, blocks: as for ``from_dense``.
        fresh: start anew instead of fitting (training from scratch); ``std`` and ``generator`` as for the layer.
        scales: layer name -> ``(in_features,)`` weights of the columns' errors, for BLAST; see ``input_scales``.
        fit: further arguments of the fit.

    Raises:
        ParameterError: no layer matches, a size does not fit, or a value is out of range; the model is then unchanged.
    """
    cls, layers = KINDS[choice("kind", kind, tuple(KINDS))], chosen(model, patterns)
    _check_options(cls, layers, fresh, std, generator, scales, fit)
    sizes = {name: cls.size(m.out_features, m.in_features, rank, budget, blocks) for name, m in layers.items()}
    made: dict[str, StructuredLinear] = {}
    if fresh:
        for name, m in layers.items():
            options = dict(std=std, generator=generator, device=m.weight.device, dtype=m.weight.dtype)
            made[name] = cls(m.in_features, m.out_features, *sizes[name], m.bias is not None, **options)
    else:
        groups = defaultdict(list)
        for name, m in layers.items():
            groups[m.weight.shape, m.weight.dtype, m.weight.device].append(name)
        for names in groups.values():
            weights = torch.stack([layers[name].weight.detach() for name in names])
            if scales is not None:
                fit["column_scale"] = torch.stack([scales[name] for name in names])
            factors = cls.fit(weights, *sizes[names[0]], **fit)
            for name, one in zip(names, factors, strict=True):
                made[name] = cls.from_factors(layers[name].weight, layers[name].bias, one, *sizes[name])
    report = Report()
    for name, m in layers.items():
        new = made[name].requires_grad_(m.weight.requires_grad).train(m.training)
        with torch.no_grad():
            size = m.weight.norm()
            error = float((new.to_dense() - m.weight).norm() / (size if size > 0 else 1))
        _put(model, name, new)
        c = new.counts()
        report.append(Replaced(name, kind, tuple(m.weight.shape), new.rank, new.blocks, c.parameters, c.dense, error))
    return report


def _check_options(cls, layers: dict, fresh: bool, std, generator, scales, fit: dict) -> None:
    """What goes on to a layer or to its fit: known, of the right type, and used."""
    if std is not None:
        ok.number("std", std, at_least=0)
    if generator is not None:
        ok.generator("generator", generator, {})
    known = [] if fresh or cls is not BlastLinear else FIT
    for name in fit:
        if name not in known:
            allowed = f"one of {', '.join(known)}" if known else "left out"
            raise ParameterError(f"further arguments must be {allowed} here, got {name}={brief(fit[name])}.")
    if scales is None:
        return
    if fresh or cls is not BlastLinear:
        raise ParameterError(f"scales must be left out unless BLAST layers are fitted, got {brief(scales)}.")
    if not isinstance(scales, Mapping):
        raise ParameterError(f"scales must be a dictionary, as input_scales makes, got {brief(scales)}.")
    for name, m in layers.items():
        if name not in scales:
            raise ParameterError(f"scales must have the layer {name!r}, got {brief(scales)}.")
        ok.tensor(str(m.in_features), above=0)(f"scales[{name!r}]", scales[name], {})


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)


@ok.takes(model=MODULE, patterns=_patterns, batches=ok.several(object, "batches"))
def input_scales(model: nn.Module, patterns: str | Iterable[str], batches: Sequence) -> dict[str, Tensor]:
    """Root mean square of every input feature of the chosen layers over batches: layer name -> ``(in_features,)``.

    Features that are never on get a thousandth of the largest, so that no column goes free.

    Raises:
        ParameterError: no layer matches, or one is not used by the model.
    """
    layers, sums, counts, hooks = chosen(model, patterns), {}, defaultdict(int), []

    def watch(name):
        def hook(module, inputs):
            x = inputs[0].detach().flatten(0, -2).float()
            sums[name] = sums.get(name, 0) + x.square().sum(0)
            counts[name] += len(x)

        return hook

    try:
        hooks += [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if unused := [name for name in layers if name not in sums]:
        raise ParameterError(
            f"patterns must name layers that the model uses, got {', '.join(unused)}, which saw no input."
        )
    scales = {name: (sums[name] / counts[name]).sqrt() for name in layers}
    return {name: s.clamp(min=1e-3 * float(s.max())) for name, s in scales.items()}


@ok.takes(model=MODULE, patterns=_patterns)
def multiplications(model: nn.Module, patterns: str | Iterable[str] = "*") -> int:
    """Multiplications of one token in the linear layers, dense or structured, whose names match."""
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    total = 0
    for name, module in model.named_modules():
        if any(fnmatchcase(name, p) for p in patterns):
            if isinstance(module, StructuredLinear):
                total += module.counts().multiplications
            elif isinstance(module, nn.Linear):
                total += module.weight.numel()
    return total


@ok.takes(model=MODULE)
def parameters(model: nn.Module) -> int:
    """Parameters of a model, tied ones once."""
    return sum(p.numel() for p in model.parameters())


@ok.takes(model=MODULE, path=ok.path)
def save(model: nn.Module, path: str | Path) -> None:
    """The model's tensors as a safetensors file; its metadata says which layers are structured, and how."""
    from safetensors.torch import save_model

    layers = {
        name: dict(kind=m.kind, rank=m.rank, blocks=m.blocks)
        for name, m in model.named_modules()
        if isinstance(m, StructuredLinear)
    }
    save_model(model, str(path), metadata={METADATA: json.dumps(layers)})


@ok.takes(model=MODULE, path=_file)
def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Fill a dense model from a file written by ``save``: its layers become structured as the file says, in place.

    Raises:
        ParameterError: the file is not there, was not written by ``save``, or belongs to another model.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_model

    try:
        with safe_open(str(path), "pt") as file:
            words = (file.metadata() or {}).get(METADATA)
    except SafetensorError:
        raise ParameterError(f"path must be that of a safetensors file, got {brief(str(path))}.") from None
    if words is None:
        raise ParameterError(
            f"{Path(path).name} was not written by structured_models.save: it does not name its layers."
        )
    modules = dict(model.named_modules())
    for name, how in json.loads(words).items():
        m = modules.get(name)
        if not isinstance(m, nn.Linear | StructuredLinear):
            raise ParameterError(
                f"{Path(path).name} has a structured layer {name!r}, the model has no linear layer there."
            )
        dtype = next(m.parameters()).dtype
        sizes = dict(rank=how["rank"] or 1, blocks=how["blocks"], bias=m.bias is not None)
        _put(model, name, KINDS[how["kind"]](m.in_features, m.out_features, **sizes, dtype=dtype))
    try:
        load_model(model, str(path))
    except RuntimeError as error:
        short = " ".join(str(error).split())[:200]
        raise ParameterError(f"{Path(path).name} does not fit the model: {short}") from None
    return model
