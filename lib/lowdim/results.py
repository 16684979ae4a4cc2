"""What a chapter leaves behind: ``results.json``, the data of every figure, and numbers for its prose."""

import base64
import html
import json
import tempfile
import time
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from IPython.display import display

from lowdim import checks as ok
from lowdim import plots, runtime
from lowdim.checks import ParameterError, brief, choice
from lowdim.claims import Claims
from lowdim.files import write_atomically

INTERACTIVE = Path(__file__).with_name("interactive.html")
PROFILES = ("quick", "paper")


def _parameters(name: str, value, known: dict) -> None:
    wanted = ("profile", "seed", "device")
    if not isinstance(value, dict) or not all(key in value for key in wanted):
        raise ParameterError(f"{name} must be a dictionary with {', '.join(wanted)}, got {brief(value)}.")


def _arrays(name: str, value, known: dict) -> None:
    if not isinstance(value, dict) or not value:
        raise ParameterError(f"{name} must be a dictionary of at least one array, got {brief(value)}.")
    for key, entry in value.items():
        try:
            array = _array(entry)
        except ValueError:  # lists of several lengths
            array = np.array(None)
        if not isinstance(key, str) or array.dtype.kind not in "biufcSU":
            raise ParameterError(f"{name} must hold arrays of numbers or texts by name, got {key!r}: {brief(entry)}.")


def _number_or_text(name: str, value, known: dict) -> None:
    single = isinstance(value, str | int | float | np.generic) or (
        isinstance(value, torch.Tensor) and value.numel() == 1
    )
    if not single:
        raise ParameterError(f"{name} must be one number or a text, got {brief(value)}.")


class Results:
    """Collects a chapter's figures and glued numbers, and writes ``results.json`` at the end.

    Args:
        slug: the chapter, as in the catalogue.
        parameters: the parameters of the run; must hold ``profile``, ``seed`` and ``device``.
        folder: where files go; the current folder by default.

    Raises:
        ParameterError: an unknown profile, or a device that is not there.
    """

    @ok.takes(slug=ok.filename, parameters=_parameters, folder=ok.path)
    def __init__(self, slug: str, parameters: dict, folder: str | Path = "."):
        choice("profile", parameters["profile"], PROFILES)
        self.slug, self.parameters, self.folder = slug, dict(parameters), Path(folder)
        self.device = runtime.pick_device(parameters["device"])
        self.figures: dict[str, dict] = {}
        self.glued: dict[str, object] = {}
        self._started = time.perf_counter()

    @ok.takes(figure=ok.kind(plots.Figure, "a matplotlib figure"), name=ok.filename, data=_arrays)
    def figure(self, figure, name: str, data: dict) -> None:
        """Show a matplotlib figure and save its data as ``name.npz`` and ``name.csv``.

        Args:
            figure: the figure; a version for dark pages is saved beside the data.
            name: short and unique in the chapter.
            data: name -> array or tensor: what is drawn, enough to draw it again.
        """
        self._save_data(name, data)
        light = plots.png(figure)
        figure.set_layout_engine("none")  # the layout is settled: the dark version need not find it again
        write_atomically(self.folder / f"{name}.dark.png", plots.png(figure, dark=True))
        width = round(100 * figure.get_size_inches()[0])
        plots.plt.close(figure)
        encoded = base64.b64encode(light).decode()
        _show({"image/png": encoded, "text/plain": f"[figure {name}]"}, {"image/png": {"width": width}})

    @ok.takes(
        figure=ok.has("frames", "layout", "to_json"),
        name=ok.filename,
        data=_arrays,
        fallback=ok.kind(plots.Figure, "a matplotlib figure"),
        title=ok.text,
        first=ok.count(0),
    )
    def interactive(self, figure, name: str, data: dict, fallback, title: str, first: int = 0) -> None:
        """Show a plotly figure that works offline, with a static image for print and for pages without scripts.

        Args:
            figure: a plotly figure, small: its JSON becomes part of the page. Its frames, if any, become the
                positions of a slider that works with the keyboard; a frame's name is shown beside it.
            name, data: as in ``figure``.
            fallback: a matplotlib figure that shows one state of it.
            title: what a screen reader announces.
            first: the frame shown at the start.
        """
        self._save_data(name, data)
        still = base64.b64encode(plots.png(fallback, dpi=120)).decode()
        plots.plt.close(fallback)
        _show({"text/html": interactive_html(figure, name, still, title, first), "text/plain": f"[interactive {name}]"})

    @ok.takes(name=ok.filename, value=_number_or_text)
    def glue(self, name: str, value) -> None:
        """A number or a short text for the prose, computed here and put there by MyST's role ``glue:text``."""
        value = value.item() if isinstance(value, np.generic | torch.Tensor) else value
        self.glued[name] = value
        record = {"application/papermill.record/text/plain": repr(value)}
        display(
            record, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}}
        )

    @ok.takes(claims=ok.kind(Claims, "a Claims table"))
    def write(self, claims: Claims) -> dict:
        """Write ``results.json``; returns its content."""
        content = {
            "slug": self.slug,
            "profile": self.parameters["profile"],
            "parameters": self.parameters,
            "claims": claims.as_dicts(),
            "figures": self.figures,
            "glue": {name: _finite(value) for name, value in self.glued.items()},
            "runtime_s": round(time.perf_counter() - self._started, 1),
            "peak_memory_mb": runtime.peak_memory_mb(self.device),
            **runtime.provenance(self.device),
        }
        write_atomically(self.folder / "results.json", json.dumps(content, indent=1, allow_nan=False).encode())
        return content

    def _save_data(self, name: str, data: dict) -> None:
        if name in self.figures:
            raise ParameterError(f"figure {name!r} is saved twice in {self.slug}.")
        arrays = {key: _array(value) for key, value in data.items()}
        with tempfile.TemporaryFile() as file:
            np.savez_compressed(file, **arrays)
            file.seek(0)
            write_atomically(self.folder / f"{name}.npz", file.read())
        write_atomically(self.folder / f"{name}.csv", csv_text(arrays).encode())
        self.figures[name] = {"data": f"{name}.npz"}


@ok.takes(arrays=_arrays)
def csv_text(arrays: dict[str, np.ndarray]) -> str:
    """Arrays as columns of one table, short ones padded with blanks; ``x[2]`` is column 2 of ``x``."""
    columns = {}
    for name, array in arrays.items():
        flat = array.reshape(len(array), -1) if array.ndim > 1 else array.reshape(-1, 1)
        for index, column in enumerate(flat.T):
            columns[f"{name}[{index}]" if flat.shape[1] > 1 else name] = [_cell(entry) for entry in column]
    rows = zip_longest(*columns.values(), fillvalue="")
    return "\n".join(",".join(row) for row in [tuple(columns), *rows]) + "\n"


def _cell(entry) -> str:
    return f"{entry:.10g}" if isinstance(entry, np.floating) else str(entry)


def _finite(value):
    """The value, or its name where JSON has no such number (nan, inf)."""
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def _array(value) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _show(data: dict, metadata: dict | None = None) -> None:
    display(data, raw=True, metadata=metadata or {})


def interactive_html(figure, name: str, still: str, title: str, first: int = 0) -> str:
    """A plotly figure as HTML: data in the page, the library from the book's copy (elsewhere, its public one)."""
    from plotly.offline import get_plotlyjs_version

    figure.layout.template = None
    figure.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    figure.update_xaxes(gridcolor="rgba(125,132,140,.3)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(125,132,140,.3)", zeroline=False)
    filled = {
        "NAME": name,
        "TITLE": html.escape(title),
        "STILL": still,
        "HEIGHT": str(figure.layout.height or 450),
        "LAST": str(len(figure.frames) - 1),
        "FIRST": str(first),
        "VERSION": get_plotlyjs_version(),
        "SPEC": figure.to_json().replace("</", "<\\/"),
    }
    text = INTERACTIVE.read_text()
    for key, value in filled.items():
        text = text.replace(f"%{key}%", value)
    return text
