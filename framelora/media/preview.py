"""Pictures for people: mp4 players' videos and PNG contact sheets. Never read back by a stage."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from framelora.media.mux import encode_video


def encode_mp4(frames: NDArray[np.uint8], fps: int) -> bytes:
    """Encode RGB frames `[F, H, W, 3]` as H.264 that every browser plays. Equal frames give equal bytes."""
    return encode_video(
        frames,
        container_format="mp4",
        codec="libx264",
        pixel_format="yuv420p",
        fps=fps,
        # x264's macroblock tree was seen to read past rows of some widths: three byte strings in thirty runs.
        options={"crf": "12", "x264-params": "no-mbtree=1"},
    )


def contact_sheet(rows: Mapping[str, NDArray[np.uint8]]) -> bytes:
    """Lay clips `[F, H, W, 3]` out as rows of frames, a label above each row; PNG bytes."""
    label = 14  # pixels of height
    height, width = next(iter(rows.values())).shape[1:3]
    columns = max(len(frames) for frames in rows.values())
    sheet = Image.new("RGB", (columns * width, len(rows) * (height + label)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, frames) in enumerate(rows.items()):
        top = row * (height + label)
        draw.text((2, top + 1), name, fill="black")
        for number, frame in enumerate(frames):
            sheet.paste(Image.fromarray(frame), (number * width, top + label))
    sink = io.BytesIO()
    sheet.save(sink, "PNG")
    return sink.getvalue()
