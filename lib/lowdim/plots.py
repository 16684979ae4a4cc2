"""House style: colour-blind-safe colours, and every figure drawn twice, for light and for dark pages."""

import io
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like, to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image

from lowdim import checks as ok
from lowdim.checks import ParameterError, brief

# Okabe and Ito's palette without yellow and black: apart for colour-blind readers, 3:1 or more on white and on dark.
COLOURS = {
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#009e73",
    "pink": "#c2679b",
    "sky": "#3a9ad9",
    "amber": "#c98500",
}
CYCLE = list(COLOURS.values())
INK, PAPER = "#1f2328", "#ffffff"
DARK_INK, DARK_PAPER = "#d4d8dd", "#14181e"
GREY = "#7d848c"  # guides and annotations: legible on both papers
SEQUENTIAL = "cividis"
DIVERGING = "RdBu_r"


def _colour(name: str, value, known: dict) -> None:
    if not (isinstance(value, str) and (value in COLOURS or is_color_like(value))):
        raise ParameterError(
            f"{name} must be one of {', '.join(COLOURS)} or a colour of matplotlib, got {brief(value)}."
        )


def style() -> None:
    """Set matplotlib's defaults to the book's style."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.0, 3.6),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "figure.facecolor": PAPER,
            "axes.facecolor": PAPER,
            "axes.prop_cycle": mpl.cycler(color=CYCLE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.titlelocation": "left",
            "axes.grid": False,
            "font.size": 10,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "image.cmap": SEQUENTIAL,
            "svg.hashsalt": "lowdim",
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
        }
    )


@ok.takes(
    ax=ok.kind(Axes, "the axes of a figure"), at=ok.real(), label=ok.text, axis=ok.one_of("x", "y"), where=ok.real()
)
def mark(ax: Axes, at: float, label: str = "", axis: str = "x", where: float = 0.98, **line) -> None:
    """A thin grey guide line across the axes with a label beside it, such as a threshold."""
    line = {"color": GREY, "linestyle": "--", "linewidth": 1.0, "zorder": 0} | line
    text = {"color": GREY, "fontsize": "small"}
    if axis == "x":
        ax.axvline(at, **line)
        ax.text(at, where, f" {label}", transform=ax.get_xaxis_transform(), va="top", ha="left", **text)
    else:
        ax.axhline(at, **line)
        ax.text(where, at, f"{label} ", transform=ax.get_yaxis_transform(), va="bottom", ha="right", **text)


@ok.takes(
    ax=ok.kind(Axes, "the axes of a figure"),
    x=ok.array("points", finite=False),
    values=ok.array("iterates points", finite=False),
    colour=_colour,
)
def branches(ax: Axes, x, values, colour: str, **dots) -> None:
    """Where iterates end up against a parameter, one pixel each: ``values`` is ``(iterates, len(x))``."""
    repeated = [x] * len(values)
    ax.plot(np.ravel(repeated), np.ravel(values), ",", color=COLOURS.get(colour, colour), rasterized=True, **dots)


@ok.takes(
    ax=ok.kind(Axes, "the axes of a figure"),
    x=ok.array("points", finite=False),
    values=ok.array("points runs", finite=False),
    colour=_colour,
    label=ok.text,
)
def band(ax: Axes, x, values, colour: str, label: str = "", **line) -> None:
    """Median over runs as a line with dots, the range as a band: ``values`` is ``(len(x), runs)``."""
    values, colour = np.asarray(values), COLOURS.get(colour, colour)
    ax.plot(x, np.median(values, 1), "o-", ms=3, color=colour, label=label, **line)
    ax.fill_between(x, values.min(1), values.max(1), color=colour, alpha=0.22, linewidth=0)


def _pictures(name: str, value, known: dict) -> None:
    known["rows"] = [len(row) for row in value] if isinstance(value, list | tuple) and value else []
    if not known["rows"] or not min(known["rows"]) or not all(_is_picture(p) for row in value for p in row):
        raise ParameterError(
            f"{name} must be lists of pairs, an array (height, width) and a dictionary, got {brief(value)}."
        )


def _is_picture(pair) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and np.ndim(pair[0]) == 2 and isinstance(pair[1], dict)


def _words(name: str, value, known: dict) -> None:
    most = {"titles": max(known["rows"]), "names": len(known["rows"])}[name]
    if not isinstance(value, list | tuple) or len(value) > most or not all(isinstance(text, str) for text in value):
        raise ParameterError(f"{name} must be a list of at most {most} texts, got {brief(value)}.")


def _notes(name: str, value, known: dict) -> None:
    fits = isinstance(value, list | tuple) and [len(n) if isinstance(n, list | tuple) else -1 for n in value]
    if value is not None and (fits != known["rows"] or not all(isinstance(n, str) for row in value for n in row)):
        raise ParameterError(f"{name} must hold a text for each of the {known['rows']} pictures, got {brief(value)}.")


@ok.takes(
    ax=ok.kind(Axes, "the axes of a figure"),
    rows=_pictures,
    titles=_words,
    names=_words,
    notes=_notes,
    wide=ok.real(at_least=1),
)
def gallery(ax: Axes, rows, titles=(), names=(), notes=None, wide: float = 1.15):
    """Pictures in a grid inside one set of axes; a grid of axes takes a second to draw.

    Args:
        rows: lists of pictures; a picture is ``(array (height, width), options of imshow)``, drawn one unit wide.
        titles: of the columns.
        names: of the rows.
        notes: lists like ``rows`` of short texts below the pictures.
        wide: distance of two columns.

    Returns:
        The image of the last picture, for a colour bar.

    Raises:
        ParameterError: no pictures, something that is no picture, or texts that do not fit them.
    """
    tall, across = wide + (0.25 if notes else 0.0), max(len(row) for row in rows)
    small = {"fontsize": "small", "ha": "center"}
    for i, row in enumerate(rows):
        for k, (picture, options) in enumerate(row):
            low = -i * tall
            box = (k * wide, k * wide + 1, low, low + 1)
            image = ax.imshow(np.asarray(picture), extent=box, aspect="auto", **options)
            if notes and notes[i][k]:
                ax.text(k * wide + 0.5, low - 0.05, notes[i][k], va="top", **small)
    for k, title in enumerate(titles):
        ax.text(k * wide + 0.5, 1.05, title, va="bottom", **small)
    for i, name in enumerate(names):
        ax.text(-0.08, -i * tall + 0.5, name, va="center", rotation=90, fontsize="small", ha="right")
    ax.set(xlim=(-0.3, (across - 1) * wide + 1), ylim=((1 - len(rows)) * tall - 0.25, 1.3), aspect="equal")
    ax.set_axis_off()
    return image


@ok.takes(figure=ok.kind(Figure, "a matplotlib figure"), dark=ok.flag, dpi=ok.real(above=0))
def png(figure: Figure, dark: bool = False, dpi: int = 160) -> bytes:
    """The figure as PNG bytes; ``dark=True`` swaps ink and paper and leaves the colours alone."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            if axis.get_scale() == "log" and high > 1e3 * low:  # over many decades they are a blur, and half the time
                axis.set_minor_locator(NullLocator())
    drawn, slim = io.BytesIO(), io.BytesIO()
    with _inverted(figure) if dark else _unchanged():
        figure.savefig(drawn, format="png", dpi=dpi, pil_kwargs={"compress_level": 0})
    Image.open(drawn).convert("RGB").save(slim, "PNG")  # the paper is opaque: without its alpha, a tenth less
    return slim.getvalue()


@contextmanager
def _unchanged():
    yield


@contextmanager
def _inverted(figure: Figure):
    """Every artist drawn in ink or paper changes to the dark page's ink or paper, and back afterwards."""
    swap = {to_hex(INK): DARK_INK, to_hex(PAPER): DARK_PAPER, "#000000": DARK_INK}
    undo = []
    for artist in figure.findobj():
        for part in ("color", "edgecolor", "facecolor", "markeredgecolor", "markerfacecolor"):
            get, put = getattr(artist, f"get_{part}", None), getattr(artist, f"set_{part}", None)
            if get is None or put is None:
                continue
            new = _swapped(colour := get(), swap)
            if new is not None:
                undo.append((put, colour))
                put(new)
    try:
        yield
    finally:
        for put, colour in reversed(undo):
            put(colour)


def _swapped(colour, swap):
    """The dark page's colour for one colour of an artist; None to leave it (many colours, none, or not ink)."""
    try:
        red, green, blue, alpha = to_rgba(colour)
    except (ValueError, TypeError):
        if getattr(colour, "shape", (0,))[0] != 1:  # a collection with one colour gives a (1, 4) array
            return None
        red, green, blue, alpha = colour[0]
    new = swap.get(to_hex((red, green, blue)))
    return None if new is None or alpha == 0 else (*to_rgba(new)[:3], alpha)
