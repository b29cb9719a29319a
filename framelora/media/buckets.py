"""Frame sizes: the bucket nearest in aspect, and how a picture is scaled to cover it before the centre crop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def nearest_bucket(width: int, height: int, buckets: Sequence[str]) -> tuple[int, int]:
    """The bucket `(width, height)` whose aspect is nearest (ratio of ratios); the first one of equals.

    Args:
        width, height: picture as displayed, in pixels.
        buckets: allowed sizes as `WIDTHxHEIGHT`.
    """
    sizes = [(int(w), int(h)) for w, h in (text.split("x") for text in buckets)]
    return min(sizes, key=lambda bucket: abs(math.log(bucket[0] / bucket[1]) - math.log(width / height)))


def cover(width: int, height: int, bucket: tuple[int, int]) -> tuple[int, int]:
    """Size `(width, height)` to which a picture is scaled so that it just covers a bucket, aspect kept."""
    scale = max(bucket[0] / width, bucket[1] / height)
    return max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale))


def centre_crop(frames: NDArray[np.uint8], bucket: tuple[int, int]) -> NDArray[np.uint8]:
    """Cut the middle of frames `[..., H, W, 3]` to a bucket `(width, height)`."""
    top = (frames.shape[-3] - bucket[1]) // 2
    left = (frames.shape[-2] - bucket[0]) // 2
    return frames[..., top : top + bucket[1], left : left + bucket[0], :]
