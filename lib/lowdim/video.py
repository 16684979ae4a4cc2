"""Clips ``(n1, n2, q)``: a loader for a reader's own, and small ones that need no download.

The clips of the phase-retrieval papers cannot be shipped. In their place: a real clip that comes with scikit-image, and
two that are made from photographs of scikit-image and scikit-learn.
"""

import math
from importlib import resources
from pathlib import Path

import numpy as np

from lowdim import checks as ok
from lowdim.checks import ParameterError, integer
from lowdim.data import shipped

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
GREY = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue (ITU-R BT.601, as in Pillow)


@ok.takes(path=ok.path, size=ok.optional(ok.kind((tuple, list), "(height, width)")))
def load_video(path, size: tuple[int, int] | None = None, step: int = 1) -> np.ndarray:
    """A clip from a file or a folder: grey, float32 in [0, 1], ``(n1, n2, q)``.

    Args:
        path: ``.npy`` or ``.npz`` (its first array; ``n1 x n2 x q``), a folder of images in the order of their names,
            an animated GIF (or another animation that Pillow reads), or a film (``.mp4``, ``.avi``, ``.mov``, ``.mkv``,
            ``.webm``) where the package imageio-ffmpeg is installed.
        size: ``(h, w)`` to resize to, bilinear; the clip's own size by default.
        step: keep every ``step``-th frame.

    Raises:
        ParameterError: nothing there, something that is no clip, or a reader that is not installed.
    """
    path, step = Path(path), integer("step", step, at_least=1)
    if size is not None:
        if len(size) != 2:
            raise ParameterError(f"size must be (height, width), got {tuple(size)!r}.")
        size = tuple(integer(f"size[{k}]", n, at_least=1) for k, n in enumerate(size))
    if not path.exists():
        raise ParameterError(f"video must be a file or a folder that exists, got {str(path)!r}.")
    if path.is_dir():
        frames = _folder(path, size, step)
    elif path.suffix in (".npy", ".npz"):
        frames = [_resized(f, size) for f in np.moveaxis(_array(path), -1, 0)[::step]]
    elif path.suffix in (".mp4", ".avi", ".mov", ".mkv", ".webm"):
        frames = _film(path, size, step)
    else:
        frames = _animation(path, size, step)
    if len(frames) < 2:
        raise ParameterError(f"video must have at least 2 frames, got {len(frames)} in {path.name}.")
    if len({f.shape for f in frames}) > 1:
        raise ParameterError(f"video must have frames of one size, got several in {path.name}: give size=(h, w).")
    return np.stack(frames, -1).astype(np.float32)


def _array(path: Path) -> np.ndarray:
    try:
        content = np.load(path, allow_pickle=False)
        content = content[content.files[0]] if path.suffix == ".npz" else content
    except (ValueError, OSError, IndexError, EOFError) as error:
        raise ParameterError(f"video must be an array that NumPy can read, {path.name} is not ({error}).") from error
    if content.ndim != 3 or content.dtype.kind not in "fiub":
        raise ParameterError(
            f"video must hold real numbers n1 x n2 x q, got {content.dtype} of shape {content.shape} in {path.name}."
        )
    clip = content.astype(np.float64)
    if not np.isfinite(clip).all():
        raise ParameterError(f"video must hold finite numbers, {path.name} has others.")
    if content.dtype.kind in "iu":
        clip /= np.iinfo(content.dtype).max
    if clip.min() < 0 or clip.max() > 1:  # other units: the largest range becomes [0, 1]
        low, high = min(clip.min(), 0.0), clip.max()
        clip = (clip - low) / (high - low)
    return clip


def _folder(path: Path, size, step: int) -> list[np.ndarray]:
    from PIL import Image

    names = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES)[::step]
    return [_resized(_grey(Image.open(name)), size) for name in names]


def _animation(path: Path, size, step: int) -> list[np.ndarray]:
    from PIL import Image, ImageSequence, UnidentifiedImageError

    try:
        with Image.open(path) as film:
            return [
                _resized(_grey(frame), size) for k, frame in enumerate(ImageSequence.Iterator(film)) if k % step == 0
            ]
    except UnidentifiedImageError as error:
        raise ParameterError(
            f"video must be .npy, .npz, a folder of images, an animation such as GIF, or a film; {path.name} is none."
        ) from error


def _film(path: Path, size, step: int) -> list[np.ndarray]:
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise ParameterError(
            f"{path.name} needs the package imageio-ffmpeg, which is not installed: install it or give a GIF or .npy."
        ) from error
    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    width, height = next(reader)["size"]
    frames = []
    for k, raw in enumerate(reader):
        if k % step == 0:
            colours = np.frombuffer(raw, np.uint8).reshape(height, width, 3)
            frames.append(_resized(colours @ GREY / 255, size))
    return frames


def _grey(image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), np.float64) @ GREY / 255


def _resized(frame: np.ndarray, size) -> np.ndarray:
    """Bilinear, through Pillow (which averages when it shrinks)."""
    if size is None or frame.shape == size:
        return frame
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(frame, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR), np.float64)


# ---------------------------------------------------------------- clips that ship


def _scikit_image(name: str) -> Path:
    return Path(str(resources.files("skimage") / "data" / name))


def _scikit_learn(name: str) -> Path:
    """A photograph that comes with scikit-learn."""
    return shipped(f"images/{name}")


@ok.takes(h=ok.count(), w=ok.count(), q=ok.count(2))
def tiny(h: int = 25, w: int = 14, q: int = 24) -> np.ndarray:
    """A real clip that comes with scikit-image (``no_time_for_that_tiny.gif``), resized, its first ``q`` frames."""
    clip = load_video(_scikit_image("no_time_for_that_tiny.gif"), (h, w))
    return clip[..., : integer("q", q, at_least=2, at_most=clip.shape[-1])]


@ok.takes(h=ok.count(), w=ok.count(), q=ok.count(2))
def walker(h: int = 16, w: int = 28, q: int = 45) -> np.ndarray:
    """A textured sprite that crosses a still photograph (scikit-image's camera man): ``(h, w, q)``.

    The sprite is a super-Gaussian whose width, height and brightness change as it moves.
    """
    from PIL import Image

    photograph = np.asarray(Image.open(_scikit_image("camera.png")), np.float64)[150:420, 40:512] / 255
    background = _resized(photograph, (h, w))
    rows, columns = np.mgrid[:h, :w] + 0.5
    frames = []
    for s in np.linspace(0, 1, q):
        x, y = w * (0.12 + 0.76 * s), h * (0.58 + 0.06 * math.sin(6 * math.pi * s))
        across = (columns - x) / (0.11 * w * (1 + 0.25 * math.sin(5 * math.pi * s)))
        mask = np.exp(-((across**2 + ((rows - y) / (0.17 * h)) ** 2) ** 2))
        frames.append(background * (1 - mask) + mask * (0.85 + 0.15 * np.cos(0.9 * (columns - x))))
    return np.stack(frames, -1).clip(0, 1).astype(np.float32)


@ok.takes(h=ok.count(), w=ok.count(), q=ok.count(2))
def pan(h: int = 16, w: int = 28, q: int = 45) -> np.ndarray:
    """A window that slides over a photograph (scikit-learn's china.jpg): ``(h, w, q)``."""
    from PIL import Image

    photograph = np.asarray(Image.open(_scikit_learn("china.jpg"))) @ GREY / 255
    still = _resized(photograph, (2 * h, round(1.9 * w)))
    frames = []
    for s in np.linspace(0, 1, q):
        top, left = 0.35 * h * s, 0.55 * w * s
        i, j = int(top), int(left)
        a, b = top - i, left - j  # between pixels
        piece = still[i : i + h + 1, j : j + w + 1]
        across = (1 - b) * piece[:, :-1] + b * piece[:, 1:]
        frames.append((1 - a) * across[:-1] + a * across[1:])
    return np.stack(frames, -1).clip(0, 1).astype(np.float32)


@ok.takes(name=ok.text)
def clip_named(name: str, *shape: int, size=None, step: int = 1) -> np.ndarray:
    """``"tiny"``, ``"walker"``, ``"pan"``, or a path for ``load_video``: ``(n1, n2, q)``.

    Args:
        shape: ``h, w, q`` for the clips that ship; their own sizes by default.
        size, step: for a path, as in ``load_video``.

    Raises:
        ParameterError: as ``load_video``.
    """
    made = {"tiny": tiny, "walker": walker, "pan": pan}
    return made[name](*shape) if name in made else load_video(name, size, step)
