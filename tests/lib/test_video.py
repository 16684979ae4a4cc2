"""Clips: every kind of file that the loader takes, and one clear sentence for every kind that it does not."""

import numpy as np
import pytest
from PIL import Image

from lowdim.checks import ParameterError
from lowdim.video import clip_named, load_video, pan, tiny, walker

CLIP = np.random.default_rng(0).random((6, 8, 5))


def test_arrays(tmp_path):
    np.save(tmp_path / "clip.npy", CLIP)
    np.savez(tmp_path / "clip.npz", first=CLIP, other=1)
    np.save(tmp_path / "bytes.npy", (255 * CLIP).astype(np.uint8))
    np.save(tmp_path / "wide.npy", 300 * CLIP - 5)
    for name, tol in (("clip.npy", 1e-6), ("clip.npz", 1e-6), ("bytes.npy", 1 / 254)):
        clip = load_video(tmp_path / name)
        assert clip.dtype == np.float32
        np.testing.assert_allclose(clip, CLIP, atol=tol)
    wide = load_video(tmp_path / "wide.npy")
    assert wide.min() >= 0
    assert wide.max() == 1
    assert load_video(tmp_path / "clip.npy", size=(3, 4), step=2).shape == (3, 4, 3)


def test_folder_and_animation(tmp_path):
    frames = [Image.fromarray((255 * CLIP[..., k]).astype(np.uint8)) for k in range(5)]
    (tmp_path / "frames").mkdir()
    for k, frame in enumerate(frames):
        frame.save(tmp_path / f"frames/{k:03}.png")
    (tmp_path / "frames/readme.txt").write_text("not a frame")
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    for name in ("frames", "clip.gif"):
        np.testing.assert_allclose(load_video(tmp_path / name), CLIP, atol=0.01)
        assert load_video(tmp_path / name, step=2).shape == (6, 8, 3)


def test_clips_that_ship():
    assert tiny().shape == (25, 14, 24)
    assert tiny(10, 30, 3).shape == (10, 30, 3)
    for make in (walker, pan):
        clip = make(16, 28, 45)
        assert clip.shape == (16, 28, 45)
        assert clip.dtype == np.float32
        assert 0 <= clip.min() < clip.max() <= 1
        assert np.abs(np.diff(clip)).max() > 0.01  # it moves
    np.testing.assert_array_equal(clip_named("walker", 8, 10, 4), walker(8, 10, 4))


def test_bad_input(tmp_path):
    np.save(tmp_path / "flat.npy", CLIP[0])
    np.save(tmp_path / "complex.npy", CLIP + 0j)
    np.save(tmp_path / "nan.npy", CLIP * np.nan)
    (tmp_path / "text.gif").write_text("not a picture")
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "film.mp4").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for k in (3, 4):
        Image.new("L", (k, k)).save(tmp_path / f"mixed/{k}.png")
    cases = {
        "nothing.gif": "a file or a folder that exists",
        "flat.npy": "n1 x n2 x q",
        "complex.npy": "real numbers n1 x n2 x q, got complex128",
        "nan.npy": "finite numbers",
        "text.gif": "text.gif is none",
        "text.npy": "an array that NumPy can read",
        "empty": "at least 2 frames, got 0",
        "mixed": "frames of one size",
    }
    for name, words in cases.items():
        with pytest.raises(ParameterError, match=words):
            load_video(tmp_path / name)
    with pytest.raises(ParameterError, match=r"size must be \(height, width\)"):
        load_video(tmp_path / "flat.npy", size=(3,))
    with pytest.raises(ParameterError, match="step must be a whole number >= 1"):
        load_video(tmp_path / "flat.npy", step=0)
    try:
        import imageio_ffmpeg  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ParameterError, match="needs the package imageio-ffmpeg"):
            load_video(tmp_path / "film.mp4")
