"""Source files to shots of frames: every frame is decoded once, cuts are found on the way."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import decord
import ffmpeg
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scenedetect import FrameTimecode
from scenedetect.detector import FlashFilter
from scenedetect.detectors import ContentDetector

from framelora.media.buckets import centre_crop, cover, nearest_bucket
from framelora.media.probe import DEMUXERS, Unreadable, open_image, probe_video

CHUNK = 32  # frames decoded at once; it bounds memory and changes no pixel
# Slack of a time stamp, in seconds: Matroska rounds to milliseconds.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Shot:
    """Frames between two cuts at an even rate.

    Attributes:
        frames: `[F, H, W, 3]` RGB, 0..255.
        times: display time of each frame in the source, in seconds.
        fps: rate of the frames.
    """

    frames: NDArray[np.uint8]
    times: list[float]
    fps: float


def check_damage(path: Path) -> list[float]:
    """Decode a video with ffmpeg's strictest error detection, and throw the pictures away.

    decord hides damage: its decoder paints over broken macroblocks and says nothing. It also takes packets for frames:
    those before the start of a losslessly trimmed clip, which no player shows, and VP8's hidden reference frames. So
    what frames there are, and when they are shown, is ffmpeg's to say.

    Returns:
        Display time of each frame in seconds, ascending.

    Raises:
        Unreadable: some part of the stream is damaged or cut off.
    """
    command = (
        ffmpeg.input(
            str(path),
            format=DEMUXERS[path.suffix.lower()],
            protocol_whitelist="file,pipe",
            err_detect="explode",
            noautorotate=None,
        )["v:0"]
        .output("pipe:", format="framecrc", fps_mode="passthrough", enc_time_base="demux")
        .global_args("-hide_banner", "-loglevel", "error", "-nostdin", "-xerror")
        .compile(cmd=imageio_ffmpeg.get_ffmpeg_exe())
    )
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["unknown reason"])[0]
        reason = re.sub(r"^(\[[^]]*\] )+", "", reason)  # `[h264 @ 0x5631]`: an address, another one in every run
        raise Unreadable(f"is damaged or cut off ({reason[:120].rstrip('.')})")
    lines = result.stdout.splitlines()
    clock = next((Fraction(line.split()[2]) for line in lines if line.startswith("#tb 0:")), Fraction(1))
    # A line a frame: stream, decoding and display time, duration, bytes, checksum.
    times = [float(int(line.split(",")[2]) * clock) for line in lines if not line.startswith("#")]
    if not times:
        raise Unreadable("holds no frame that decodes")
    return times


def sample_times(times: Sequence[float], fps: float, target_fps: float) -> tuple[list[int], float]:
    """Choose the frames to keep: at each tick of the target rate, the frame that a player shows at that time.

    Args:
        times: time stamps of all frames, ascending, in seconds.
        fps: the source's average rate.
        target_fps: rate to keep; a slower source keeps its own.

    Returns:
        Indices into `times` (ascending; one stands twice where a source of variable rate holds a picture longer than a
        tick), and the rate that results.
    """
    rate = min(fps, target_fps) if fps > 0 else target_fps
    end = times[-1] + (1 / fps if fps > 0 else 0.0)
    ticks = times[0] + np.arange(max(1, math.floor((end - times[0] + ROUNDING) * rate))) / rate
    return (np.searchsorted(np.asarray(times), ticks + ROUNDING, side="right") - 1).tolist(), rate


def decodable_width(width: int) -> int:
    """A width that decord can hand over: this one, or one more.

    It pads rows to 32 pixels, and takes a padding that makes the row a multiple of its width (8, 12, 16, 24, 48 and 72
    pixels) for more colour channels.
    """
    padded = -(-width // 32) * 32
    return width + 1 if padded != width and 3 * padded % width == 0 else width


def decode_video(
    path: Path,
    *,
    target_fps: float,
    buckets: Sequence[str],
    shot_threshold: float,
    min_shot_seconds: float,
    max_shot_seconds: float,
) -> Iterator[Shot]:
    """Decode a video once, from its first frame to its last, and yield its shots as they end.

    Frames are scaled by the decoder to cover the bucket nearest to the displayed aspect, then centre-cropped. Cuts are
    found on those frames at the source's full rate.

    Raises:
        Unreadable: the file is no video, or is damaged.
    """
    facts = probe_video(path)  # decord chooses its demuxer by content: only a true container may reach it
    times = check_damage(path)
    bucket = nearest_bucket(facts.width, facts.height, buckets)
    width, height = cover(facts.width, facts.height, bucket)
    try:
        reader = decord.VideoReader(
            str(path), ctx=decord.cpu(0), width=decodable_width(width), height=height, num_threads=1
        )
        if len(reader) < len(times):
            raise Unreadable(f"can't be decoded (decord finds {len(reader)} of its {len(times)} frames)")
        kept, fps = sample_times(times, facts.fps, target_fps)
        copies = np.bincount(kept, minlength=len(times))  # how often each frame of the source is kept
        detector = ContentDetector(
            threshold=shot_threshold, min_scene_len=min_shot_seconds, filter_mode=FlashFilter.Mode.SUPPRESS
        )
        frames: list[NDArray[np.uint8]] = []
        stamps: list[float] = []
        longest = max(1, int(max_shot_seconds * fps))
        clock = Fraction(facts.fps).limit_denominator(1001) or Fraction(25)

        for start in range(0, len(times), CHUNK):
            chunk = reader.get_batch(list(range(start, min(start + CHUNK, len(times))))).asnumpy()
            for index, frame in enumerate(centre_crop(chunk, bucket), start):
                bgr = np.ascontiguousarray(frame[..., ::-1])
                cut = detector.process_frame(FrameTimecode(index, fps=clock), bgr)
                if frames and cut:
                    yield Shot(np.stack(frames), stamps, fps)
                    frames, stamps = [], []
                for _ in range(copies[index]):
                    if len(frames) >= longest:
                        yield Shot(np.stack(frames), stamps, fps)
                        frames, stamps = [], []
                    frames.append(frame)
                    stamps.append(round(times[index], 6))
    except decord.DECORDError as error:
        reason = str(error).strip().splitlines()[0].split("] ")[-1]
        raise Unreadable(f"can't be decoded ({reason[:160]})") from None
    if frames:
        yield Shot(np.stack(frames), stamps, fps)


def decode_image(path: Path, buckets: Sequence[str]) -> Shot:
    """Decode an image to one frame: scaled (antialiased bicubic) to cover its bucket, then centre-cropped.

    Raises:
        Unreadable: as `open_image` does.
    """
    image = open_image(path)
    bucket = nearest_bucket(image.width, image.height, buckets)
    scaled = image.resize(cover(image.width, image.height, bucket), Image.Resampling.BICUBIC)
    return Shot(centre_crop(np.asarray(scaled)[None], bucket), [0.0], 0.0)
