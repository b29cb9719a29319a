"""All frames of a video, scaled and upright, with their times: one pass of ffmpeg in a process of its own.

A process of its own can be stopped when it hangs, and a decoder that a broken file brings down takes nobody along.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import av
import ffmpeg
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from framelora.media.probe import DEMUXERS, Facts, Limits, OverLimit, Unreadable

PIPE = 1 << 20  # bytes that the decoder may be ahead; what Linux lets anybody ask for
PATIENCE = 60.0  # seconds of waiting for one frame, after which a decoder is stopped
TICK = 1.0  # seconds between two looks at a decoder
MAX_MEMORY = 8 << 30  # bytes of address space for a decoder
# Light of PQ and HLG in units of reference white (203 cd/m2, ITU-R BT.2408), primaries to BT.709, and the Moebius
# curve, which keeps what is below 30 % of reference white as it is: measured, reference white becomes 218 of 255, and
# 1000 cd/m2 251.
TONE_MAP = (
    "zscale=tin={transfer}:pin=2020:min=2020_ncl:t=linear:npl=203,format=gbrpf32le,zscale=p=709,"
    "tonemap=mobius:desat=0,zscale=t=709:m=709:r=limited"
)
TRANSFERS = {"pq": "smpte2084", "hlg": "arib-std-b67"}


def filters(facts: Facts, size: tuple[int, int]) -> str:
    """What is done to each frame: deinterlaced, scaled to `(width, height)`, tone-mapped, as far as it needs it."""
    steps = ["bwdif=mode=send_frame:deint=interlaced"] if facts.interlaced else []
    # Without it more than 8 bits come out up to 2.6 levels too dark, white as 253: measured.
    deep = "+full_chroma_int" if av.VideoFormat(facts.pixel_format).components[0].bits > 8 else ""
    steps.append(f"scale={size[0]}:{size[1]}:flags=bilinear{deep}")
    if facts.transfer:
        steps.append(TONE_MAP.format(transfer=TRANSFERS[facts.transfer]))
    return ",".join([*steps, "setsar=1", "format=rgb24"])


def read_frames(
    path: Path, facts: Facts, size: tuple[int, int], limits: Limits
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Decode a video with the strictest error detection.

    Args:
        path: a file that `probe_video` accepts.
        facts: what that said.
        size: `(width, height)` of the frames, whatever the aspect.
        limits: frames and seconds after which it is given up.

    Yields:
        Display time in seconds, ascending, and the frame `[H, W, 3]`, RGB, 0..255.

    Raises:
        Unreadable: some part of the stream is damaged or cut off, or the decoder hangs. Sound frames come before.
        OverLimit: more frames or seconds than the limits allow.
    """
    source = ffmpeg.input(
        f"file:{path}",
        format=DEMUXERS[path.suffix.lower()],
        protocol_whitelist="file,pipe",
        err_detect="explode",
        threads=1,
        max_pixels=limits.max_pixels,
    )["v:0"]
    sink, pipe = os.pipe()
    with contextlib.suppress(OSError):  # the user's pipes may hold no more together: it is slower then
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)
    command = (
        source.output(
            f"pipe:{pipe}",
            format="nut",
            vcodec="rawvideo",
            vf=filters(facts, size),
            fps_mode="vfr",  # as they come; of two frames with one time the second comes a tick later
            enc_time_base="demux",
            map_metadata=-1,
        )
        .global_args("-hide_banner", "-loglevel", "error", "-nostdin", "-xerror", "-filter_threads", "1")
        .compile(cmd=imageio_ffmpeg.get_ffmpeg_exe())
    )
    with tempfile.TemporaryFile() as errors, os.fdopen(sink, "rb", buffering=0) as reader:
        with os.fdopen(pipe, "wb", buffering=0):
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, pass_fds=[pipe]
            )
        with contextlib.suppress(ProcessLookupError):
            allowed = resource.getrlimit(resource.RLIMIT_AS)[1]
            most = MAX_MEMORY if allowed == resource.RLIM_INFINITY else min(MAX_MEMORY, allowed)
            resource.prlimit(process.pid, resource.RLIMIT_AS, (most, most))
        watch = Watch(process)
        try:
            count = 0
            for count, (moment, frame) in enumerate(_unpack(reader, watch), 1):
                if count == 1:
                    first = moment
                if count > limits.max_frames or moment - first > limits.max_seconds:
                    raise OverLimit(
                        f"goes on beyond {count - 1} frames or {moment - first:.0f} s: data.max_* forbid it"
                    )
                yield moment, frame
            with watch.waiting():
                process.wait()
        finally:
            watch.stop()
        if watch.hung:
            raise Unreadable(f"can't be decoded (no frame in {PATIENCE:.0f} s)")
        if process.returncode:
            raise Unreadable(f"is damaged or cut off ({first_reason(errors)})")
        if not count:
            raise Unreadable("holds no frame that decodes")


def _unpack(reader: IO[bytes], watch: Watch) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Frames that come through a pipe; they end where the pipe does."""
    try:
        options = {"protocol_whitelist": "pipe"}
        with watch.waiting():
            container = av.open(f"pipe:{reader.fileno()}", format="nut", options=options, metadata_errors="replace")
        with container:
            unit = container.streams.video[0].time_base
            frames = container.decode(video=0)
            while True:
                with watch.waiting():
                    frame = next(frames, None)
                if frame is None:
                    return
                yield frame.pts * unit.numerator / unit.denominator, frame.to_ndarray()
    except av.FFmpegError:
        return  # ffmpeg ended within a frame or before the first: its exit code tells


def first_reason(errors: IO[bytes]) -> str:
    """The first line that ffmpeg complained with, without addresses: those differ from run to run."""
    errors.seek(0)
    lines = errors.read(10_000).decode(errors="replace").strip().splitlines() or ["unknown reason"]
    return re.sub(r"^(\[[^]]*\] )+", "", lines[0])[:120].rstrip(".")


class Watch:
    """Kills a process that keeps its reader waiting for too long, and any that is still there at the end.

    Looks are counted in which the reader waits, not seconds on a clock: what the reader does with a frame counts for
    nothing, however slow it is, and a time in which all is stopped (Ctrl-Z, a suspended job) counts as one look.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.hung = False
        self.turns = 0  # from reading to waiting and back: odd while the reader waits
        self.done = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around each wait of the reader for the process."""
        self.turns += 1
        try:
            yield
        finally:
            self.turns += 1

    def stop(self) -> None:
        """End the watch, and the process."""
        self.done.set()
        self.process.kill()
        self.process.wait()

    def _look(self) -> None:
        looks, before = 0, 0  # looks at one wait
        while not self.done.wait(TICK):
            if self.process.poll() is not None:
                return
            now = self.turns
            looks = looks + 1 if now % 2 and now == before else 0
            before = now
            if looks * TICK >= PATIENCE:
                self.hung = True
                self.process.kill()
                return
