"""Source files to shots of frames: every frame is decoded once, cuts are found on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from framelora.media.buckets import centre_crop, cover, nearest_bucket
from framelora.media.frames import read_frames
from framelora.media.probe import Limits, open_image, probe_video
from framelora.media.shots import Cutting, Shot, cut_shots


def decode_video(
    path: Path, *, target_fps: float, buckets: Sequence[str], cutting: Cutting, limits: Limits
) -> Iterator[Shot]:
    """Decode a video once, from its first frame to its last, and yield its shots as they end.

    Frames are scaled to cover the bucket nearest to the displayed aspect, then centre-cropped.

    Raises:
        Unreadable: the file is no video, or is damaged; the shots before the damage have been yielded then.
        OverLimit: it is larger or longer than the limits.
    """
    facts = probe_video(path, limits)
    bucket = nearest_bucket(facts.width, facts.height, buckets)
    frames = read_frames(path, facts, cover(facts.width, facts.height, bucket), limits)
    cropped = ((time, centre_crop(frame, bucket)) for time, frame in frames)
    yield from cut_shots(cropped, facts.fps, target_fps, cutting)


def decode_image(path: Path, buckets: Sequence[str], limits: Limits) -> Shot:
    """Decode an image to one frame: scaled (antialiased bicubic) to cover its bucket, then centre-cropped.

    Raises:
        Unreadable: as `open_image` does.
    """
    image = open_image(path, limits)
    bucket = nearest_bucket(image.width, image.height, buckets)
    scaled = image.resize(cover(image.width, image.height, bucket), Image.Resampling.BICUBIC)
    return Shot(centre_crop(np.asarray(scaled)[None], bucket), [0.0], 0.0)
