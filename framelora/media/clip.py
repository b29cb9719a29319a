"""A clip as a file that people open: mp4, gif, webp, or a folder of PNG images, by the name's extension."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from framelora.console import UserError, relative
from framelora.files import write_bytes
from framelora.media.preview import encode_mp4

ANIMATIONS = {".gif": "GIF", ".webp": "WEBP"}


def check_output(path: Path) -> None:
    """Say early that a clip can't be written to a path.

    Raises:
        UserError: the extension is unknown, a folder stands where a file is to go, or a folder of images is not empty.
    """
    suffix = path.suffix.lower()
    if suffix and suffix not in (".mp4", *ANIMATIONS):
        raise UserError(f"{path}: {suffix} is unknown: end the name in .mp4, .gif or .webp, or give a folder for PNGs")
    if suffix and path.is_dir():
        raise UserError(f"{relative(path)} is a folder: choose another name")
    if not suffix and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{relative(path)} exists: choose a new or empty folder for the PNGs")


def write_clip(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    """Write RGB frames `[F, H, W, 3]`; a name without extension is a folder of `0000.png` and so on.

    Raises:
        UserError: as `check_output`.
    """
    check_output(path)
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        write_bytes(path, encode_mp4(frames, fps))
    elif suffix:
        write_bytes(path, animation(frames, fps, ANIMATIONS[suffix]))
    else:
        for number, frame in enumerate(frames):
            sink = io.BytesIO()
            Image.fromarray(frame).save(sink, "PNG")
            write_bytes(path / f"{number:04d}.png", sink.getvalue())


def animation(frames: NDArray[np.uint8], fps: int, kind: str) -> bytes:
    """An endless animation that Pillow knows: GIF (in steps of 10 ms and 256 colours) or WEBP."""
    first, *others = (Image.fromarray(frame) for frame in frames)
    sink = io.BytesIO()
    options = {"quality": 95} if kind == "WEBP" else {}
    first.save(sink, kind, save_all=True, append_images=others, duration=round(1000 / fps), loop=0, **options)
    return sink.getvalue()
