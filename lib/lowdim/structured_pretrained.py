"""Published transformers as subjects of compression: which layers, which ranks, and loaders of weights and texts.

The plans are those of Lee et al. 2024 and of the authors' code. transformers, diffusers and datasets are optional and
imported only in the loaders; ``compress`` works on any module whose layers carry the names of those libraries.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowdim import checks as ok
from lowdim.checks import ParameterError, choice, integer
from lowdim.data import DataError
from lowdim.structured import KINDS, BlastLinear
from lowdim.structured_models import MODULE, Report, chosen, replace_linear


class Group(NamedTuple):
    """Layers that get one rank: name patterns, and the rank of a BLAST matrix with the plan's blocks."""

    patterns: tuple[str, ...]
    rank: int


class Plan(NamedTuple):
    """How a published model is compressed."""

    name: str  # on the Hugging Face hub
    package: str
    loader: str  # the class of the package whose ``from_pretrained`` gives the model
    blocks: int
    groups: tuple[Group, ...]


RELEASED = "cwoolee/blast-llama-4B"  # on the Hugging Face hub
_ATTENTION = tuple(f"*.self_attn.{which}_proj" for which in "qkvo")
_GATED = tuple(f"*.mlp.{which}_proj" for which in ("gate", "up", "down"))
PLANS = {
    "gpt2": Plan(
        "openai-community/gpt2", "transformers", "GPT2LMHeadModel", 6,
        (Group(("transformer.h.*.attn.c_attn", "transformer.h.*.mlp.c_fc", "transformer.h.*.mlp.c_proj"), 192),),
    ),
    # diffusers keeps query, key and value apart: three ranks of 251 cost what 384 costs for the three as one layer
    "dit": Plan(
        "facebook/DiT-XL-2-256", "diffusers", "DiTTransformer2DModel", 9,
        (Group(tuple(f"transformer_blocks.*.attn1.to_{which}" for which in "qkv"), 251),
         Group(("transformer_blocks.*.ff.net.0.proj", "transformer_blocks.*.norm1.linear"), 256)),
    ),
    "llama": Plan("huggyllama/llama-7b", "transformers", "LlamaForCausalLM", 16,
                  (Group(_ATTENTION, 1024), Group(_GATED, 1488))),
}  # fmt: skip


def optional(package: str, what: str):
    """An optional package, or one sentence that says what it is needed for.

    Raises:
        DataError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise DataError(f"{what} needs {package}, which is not installed: pip install {package}.") from error


@ok.takes(device=ok.device, layers=ok.optional(ok.count()))
def load(key: str, device: torch.device | str = "cpu", layers: int | None = None) -> nn.Module:
    """The model of a plan with its published weights, its linear layers as ``nn.Linear``.

    Args:
        key: one of ``PLANS``.
        layers: keep only the first transformer blocks (their weights are independent subjects of a fit).

    Raises:
        DataError: a package is missing, or the weights are neither in its cache nor to be had.
        ParameterError: an unknown key.
    """
    plan = PLANS[choice("key", key, tuple(PLANS))]
    package = optional(plan.package, plan.name)
    folder = dict(subfolder="transformer") if plan.package == "diffusers" else {}
    try:
        model = getattr(package, plan.loader).from_pretrained(plan.name, **folder)
    except OSError as error:
        raise DataError(
            f"the weights of {plan.name} are neither in the cache of {plan.package} nor to be had from the hub: "
            "connect once, or copy the cache."
        ) from error
    if layers is not None:
        keep_first(model, layers)
    return unwrap_conv1d(model).to(device).eval()


@ok.takes(model=MODULE)
def keep_first(model: nn.Module, layers: int) -> nn.Module:
    """Shorten the model's one list of transformer blocks, in place.

    Raises:
        ParameterError: the model has no list of blocks.
    """
    integer("layers", layers, at_least=1)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ParameterError(
            f"model must have a list of blocks (nn.ModuleList), got {type(model).__name__} without one."
        )
    del max(lists, key=len)[layers:]
    return model


@ok.takes(model=MODULE)
def unwrap_conv1d(model: nn.Module) -> nn.Module:
    """GPT-2's ``Conv1D`` modules, whose weight is ``(in, out)``, become ``nn.Linear`` with the same function."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ != "Conv1D":
            continue
        made = nn.Linear(*module.weight.shape, device=module.weight.device, dtype=module.weight.dtype)
        with torch.no_grad():
            made.weight.copy_(module.weight.T)
            made.bias.copy_(module.bias)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, made)
    return model


@ok.takes(folder=ok.optional(ok.path), device=ok.device, layers=ok.optional(ok.count()))
def load_released(folder: str | Path | None = None, device: torch.device | str = "cpu", layers: int | None = None):
    """Llama-7B at half its size, as the authors compressed and retrained it: a Llama model of transformers with BLAST
    layers of this library, in the checkpoint's precision. None of the authors' code is run.

    Args:
        folder: with ``config.json`` and the ``*.safetensors`` of the checkpoint; by default the hub's, through its
            cache (7 GB).
        layers: read only the first transformer blocks.

    Raises:
        DataError: a package is missing, the files are not to be had, or they are not such a checkpoint.
    """
    package = optional("transformers", RELEASED)
    if folder is None:
        hub = optional("huggingface_hub", RELEASED)
        try:
            folder = hub.snapshot_download(RELEASED, allow_patterns=["*.safetensors", "*.json"])
        except OSError as error:
            raise DataError(f"{RELEASED} is neither in the cache of huggingface_hub nor to be had.") from error
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files or not (Path(folder) / "config.json").exists():
        raise DataError(f"{Path(folder).name} has no config.json or no *.safetensors: it is no checkpoint of the hub.")
    config = package.LlamaConfig.from_pretrained(folder)
    config.num_hidden_layers = min(config.num_hidden_layers, layers or config.num_hidden_layers)
    with torch.device("meta"):
        model = package.LlamaForCausalLM(config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)  # its frequencies are in no file
    return fill_released(model, files).to(device).eval()


@ok.takes(model=MODULE, files=ok.several(PathLike, "paths of safetensors files"))
def fill_released(model: nn.Module, files: Sequence[Path]) -> nn.Module:
    """Fill a model from the authors' format, in place: layers whose factors are in the files become ``BlastLinear``.

    There a layer has ``B (b, p, r)``, ``C (b, r, q)`` and ``D (b, b, r)``: block ``(i, j)`` of the weight is
    ``B_i diag(D_ij) C_j``. Factors of transformer blocks that the model does not have are not read.

    Raises:
        DataError: a file that is none, a factor that is missing or does not fit, or a tensor of the model in no file;
            the model is then as it was.
    """
    from safetensors import SafetensorError, safe_open

    found, modules = {}, dict(model.named_modules())
    for path in files:
        try:
            with safe_open(str(path), "pt") as file:
                for name in file.keys():  # noqa: SIM118 - the file is no dictionary
                    if name.rpartition(".")[0] in modules:
                        found[name] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{Path(path).name} cannot be read as a safetensors file: {error}.") from error
    made, wanted = {}, {name: part.shape for name, part in model.state_dict().items()}
    for layer in [name.removesuffix(".B") for name in found if name.endswith(".B")]:
        factors = [found.pop(f"{layer}.{letter}", None) for letter in "BCD"]
        made[layer] = _released_layer(layer, modules[layer], *factors)
        wanted.pop(f"{layer}.weight")
    missing, unknown = sorted(wanted.keys() - found), sorted(found.keys() - wanted)
    missing += sorted(name for name in found.keys() & wanted if found[name].shape != wanted[name])
    if missing or unknown:
        which = ", ".join([*missing, *unknown][:3])
        raise DataError(f"the files do not fit the model: {len(missing)} tensors missing or of another shape, "
                        f"{len(unknown)} not known ({which}).")  # fmt: skip
    for layer, new in made.items():
        parent, _, last = layer.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    model.load_state_dict(found, strict=False, assign=True)  # all but the factors, which are there
    return model


def _released_layer(name: str, dense: nn.Module, left: Tensor, right: Tensor | None, gains: Tensor | None):
    """A ``BlastLinear`` in place of a linear layer, with the authors' factors."""
    fits = right is not None and gains is not None and left.dim() == right.dim() == gains.dim() == 3
    (b, p, r) = left.shape if fits else (0, 0, 0)
    sizes = isinstance(dense, nn.Linear) and (dense.out_features, dense.in_features)
    fits = fits and sizes and right.shape[:2] == (b, r) and gains.shape == (b, b, r)
    if not fits or sizes != (b * p, b * right.shape[2]):
        got = [None if f is None else tuple(f.shape) for f in (left, right, gains)]
        raise DataError(f"{name} has factors of shapes {got}, which are no BLAST matrix for this layer.")
    made = BlastLinear(dense.in_features, dense.out_features, r, b, dense.bias is not None, device="meta")
    factors = {"left": left, "right": right.mT.contiguous(), "gains": gains}
    made.load_state_dict(factors, strict=False, assign=True)
    return made


@ok.takes(model=MODULE, kind=ok.one_of(*KINDS), share=ok.real(above=0))
def compress(model: nn.Module, key: str, kind: str = "blast", *, share: float = 1.0, **fit) -> Report:
    """Replace the layers of a plan, in place; structures other than BLAST get its budget, layer by layer.

    Args:
        model: as from ``load``, or any module with layers of those names.
        kind: as for ``replace_linear``.
        share: multiplies the plan's ranks: below one for models of the same form that are smaller.
        fit: further arguments of the fit.

    Raises:
        ParameterError: a layer of the plan is not there, or a size does not fit.
    """
    plan, report = PLANS[choice("key", key, tuple(PLANS))], Report()
    for group in plan.groups:
        for pattern in group.patterns:  # layers of one pattern have one shape
            shape = next(iter(chosen(model, pattern).values())).weight.shape
            rank = max(1, int(share * group.rank))
            if kind == "blast":
                how = dict(rank=rank, blocks=plan.blocks)
            else:
                how = dict(budget=BlastLinear.count(*shape, rank, plan.blocks).ratio)
                how |= {} if kind == "low-rank" else dict(blocks=plan.blocks)
            report.extend(replace_linear(model, pattern, kind, **how, **fit))
    return report


def parameters_of_plan(key: str, shapes: Iterable[tuple[str, tuple[int, int]]]) -> tuple[int, int]:
    """Parameters of layers ``(name, (out, in))`` once those of a plan are BLAST matrices, and before: by counting.

    Raises:
        ParameterError: an unknown key, or an entry that is no name with two sizes.
    """
    plan, after, before = PLANS[choice("key", key, tuple(PLANS))], 0, 0
    ok.kind(Iterable, "pairs of a layer's name and its two sizes")("shapes", shapes, {})
    for k, entry in enumerate(shapes):
        name, (out, inp) = _named_shape(f"shapes[{k}]", entry)
        ranks = [g.rank for g in plan.groups if any(fnmatchcase(name, p) for p in g.patterns)]
        before += out * inp
        after += BlastLinear.count(out, inp, ranks[0], plan.blocks).parameters if ranks else out * inp
    return after, before


def _named_shape(name: str, entry) -> tuple[str, tuple[int, int]]:
    if not isinstance(entry, tuple | list) or len(entry) != 2 or not isinstance(entry[0], str):
        raise ParameterError(f"{name} must be a layer's name and its two sizes, got {ok.brief(entry)}.")
    ok.sizes(2)(f"{name}[1]", entry[1], {})
    if len(entry[1]) > 2:
        raise ParameterError(f"{name}[1] must be two sizes, got {ok.brief(entry[1])}.")
    return entry[0], tuple(entry[1])


@ok.takes(characters=ok.optional(ok.count()))
def wikitext103(part: str = "train", characters: int | None = None) -> str:
    """WikiText-103 (raw) as one text; ``part`` is ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        DataError: datasets is not installed, or the text is neither in its cache nor to be had.
    """
    choice("part", part, ("train", "validation", "test"))
    datasets = optional("datasets", "WikiText-103")
    try:
        lines = datasets.load_dataset("Salesforce/wikitext", "wikitext-103-raw-v1", split=part)["text"]
    except (OSError, ConnectionError) as error:
        raise DataError("WikiText-103 is neither in the cache of datasets nor to be had from the hub.") from error
    return "".join(lines)[:characters]


@ok.takes(text=ok.text, name=ok.text)
def tokens(text: str, name: str = "openai-community/gpt2") -> Tensor:
    """Token numbers ``(length,)`` of a text.

    Raises:
        DataError: transformers is not installed, or the tokenizer cannot be had.
    """
    package = optional("transformers", f"the tokenizer of {name}")
    try:
        tokenizer = package.AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise DataError(f"the tokenizer of {name} is neither in the cache of transformers nor to be had.") from error
    return torch.tensor(tokenizer(text)["input_ids"])
