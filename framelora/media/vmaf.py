"""VMAF, as Netflix's libvmaf in ffmpeg computes it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray


def vmaf(frames: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.float64]:
    """VMAF of each RGB frame `[F, H, W, 3]` against the true one, 0..100: `[F]`, with libvmaf's default model.

    The model compares luma after conversion to yuv420p, at the frames' own size.

    Raises:
        RuntimeError: ffmpeg failed.
    """
    height, width = frames.shape[1:3]
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "25", "-i"]
    with tempfile.TemporaryDirectory() as folder:
        for name, clip in (("frames", frames), ("truth", truth)):
            Path(folder, name).write_bytes(np.ascontiguousarray(clip).tobytes())
        convert = "format=yuv420p"
        graph = f"[0]{convert}[x];[1]{convert}[y];[x][y]libvmaf=log_fmt=json:log_path=log:n_threads=1"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-nostdin"]
        command += [*given, "frames", *given, "truth", "-sws_flags", "bitexact+accurate_rnd"]
        command += ["-lavfi", graph, "-f", "null", "-"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ffmpeg's libvmaf failed: {done.stderr.strip()[-300:]}")
        log = json.loads(Path(folder, "log").read_text())
    return np.array([frame["metrics"]["vmaf"] for frame in log["frames"]])
