"""A small picture of a shot, for tables of the data."""

from __future__ import annotations

import io

from PIL import Image

from framelora.media.lossless import decode_frames

WIDTH = 192  # pixels


def thumbnail(shot: bytes) -> bytes:
    """The middle frame of a stored shot as JPEG, at most `WIDTH` wide."""
    frames = decode_frames(shot)
    picture = Image.fromarray(frames[len(frames) // 2])
    if picture.width > WIDTH:
        picture = picture.resize(
            (WIDTH, max(1, round(picture.height * WIDTH / picture.width))), Image.Resampling.LANCZOS
        )
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=85)
    return sink.getvalue()
