"""What a frame costs in each lossless format: bytes, time to write, time to read. It chose extract's format.

python benchmarks/frame_formats.py VIDEO --width 512 --height 320
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load, save

from framelora.media.frames import read_frames
from framelora.media.lossless import decode_frames, encode_frames
from framelora.media.probe import NO_FILE_BEYOND, probe_video

Frames = NDArray[np.uint8]
Codec = tuple[Callable[[Frames], bytes], Callable[[bytes], Frames]]


def png_pack(frames: Frames) -> bytes:
    """PNG at compression level 1, one after the other."""
    parts = []
    for frame in frames:
        sink = io.BytesIO()
        Image.fromarray(frame).save(sink, "PNG", compress_level=1)
        parts.append(np.frombuffer(sink.getvalue(), np.uint8))
    return save({f"{number:06d}": part for number, part in enumerate(parts)})


def png_unpack(data: bytes) -> Frames:
    """Reads what `png_pack` wrote."""
    return np.stack([np.asarray(Image.open(io.BytesIO(part.tobytes()))) for _, part in sorted(load(data).items())])


def ffv1_pack(frames: Frames) -> bytes:
    """FFV1 in Matroska."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return sink.getvalue()


def ffv1_unpack(data: bytes) -> Frames:
    """Reads what `ffv1_pack` wrote."""
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


FORMATS: dict[str, Codec] = {
    "raw": (lambda frames: save({"frames": frames}), lambda data: load(data)["frames"]),
    "png": (png_pack, png_unpack),
    "ffv1": (ffv1_pack, ffv1_unpack),
    "h264 rgb, qp 0": (encode_frames, decode_frames),
}


def main(
    video: Path, width: int = 512, height: int = 320, num_frames: int = 48, start: int = 0, rounds: int = 3
) -> None:
    """Print a row for each format; times are the best of some rounds."""
    stream = read_frames(video, probe_video(video), (width, height), NO_FILE_BEYOND)
    frames = np.stack([frame for _, frame in itertools.islice(stream, start, start + num_frames)])
    stream.close()
    print(f"{width}x{height}, {num_frames} frames of {video.name}, one thread")
    print(f"{'format':16s} {'KiB/frame':>10s} {'write ms':>9s} {'read ms':>8s}")
    for name, (pack, unpack) in FORMATS.items():
        writes, reads = [], []
        for _ in range(rounds):
            begin = time.perf_counter()
            data = pack(frames)
            middle = time.perf_counter()
            same = np.array_equal(unpack(data), frames)
            reads.append(time.perf_counter() - middle)
            writes.append(middle - begin)
            assert same, name
        per_frame = 1000 / num_frames
        size = len(data) / num_frames / 1024
        print(f"{name:16s} {size:10.1f} {min(writes) * per_frame:9.2f} {min(reads) * per_frame:8.2f}")


if __name__ == "__main__":
    typer.run(main)
