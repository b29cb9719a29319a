"""Frames into a video file in memory: one thread and no time stamps of the day, so equal frames give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping

import av
import numpy as np
from numpy.typing import NDArray


def encode_video(
    frames: NDArray[np.uint8],
    *,
    container_format: str,
    codec: str,
    pixel_format: str,
    fps: int,
    options: Mapping[str, str],
) -> bytes:
    """Encode RGB frames `[F, H, W, 3]`, 0..255.

    Args:
        frames: at least one.
        container_format: `mp4`, `nut`, ...
        codec: encoder's name in ffmpeg.
        pixel_format: what the encoder is given.
        fps: frames a second that the file says.
        options: the encoder's own.
    """
    sink = io.BytesIO()
    with av.open(sink, "w", format=container_format, options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=fps, options=dict(options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
        container.mux(stream.encode())
    return sink.getvalue()
