"""Frame sizes: the bucket nearest in aspect, and how a picture is scaled to cover it before the centre crop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from framelora.schema.data import Extract


def budget_buckets(pixels: int, multiple: int, max_aspect: float) -> list[str]:
    """All sizes that use up a budget: for each width the greatest height, both multiples of the same number.

    Args:
        pixels: the most pixels of a frame.
        multiple: what width and height are multiples of, in pixels.
        max_aspect: the longer side is at most this many times the shorter one.

    Returns:
        `WIDTHxHEIGHT`, the squarest first; of sizes with one height only the widest. Never empty where a square of
        one `multiple` fits.
    """
    heights: dict[int, int] = {}
    for width in range(multiple, pixels // multiple + 1, multiple):
        height = min(pixels // width, int(width * max_aspect)) // multiple * multiple
        if height and width <= height * max_aspect:
            heights[height] = width  # widths rise: the last one of a height is the widest
    found = [(width, height) for height, width in heights.items()]
    # A narrow size that the aspect keeps short fits into a larger one: it does not use the budget up.
    sizes = [
        one for one in found if not any(other != one and other[0] >= one[0] and other[1] >= one[1] for other in found)
    ]
    sizes.sort(key=lambda size: abs(math.log(size[0] / size[1])))
    return [f"{width}x{height}" for width, height in sizes]


def allowed_sizes(params: Extract, kind: str = "video") -> list[str]:
    """The frame sizes of the parameters of `extract`: those listed, or all of the budget.

    Args:
        params: the section.
        kind: of the source: video, image_pair, or image, which may have sizes of its own.
    """
    if kind == "image" and params.image_buckets:
        return list(params.image_buckets)
    budget = params.bucket_budget
    if budget is None:
        return list(params.buckets)
    return budget_buckets(budget.most_pixels, budget.multiple, budget.max_aspect)


def nearest_bucket(width: int, height: int, buckets: Sequence[str]) -> tuple[int, int]:
    """The bucket `(width, height)` whose aspect is nearest (ratio of ratios); the first one of equals.

    Args:
        width, height: picture as displayed, in pixels.
        buckets: allowed sizes as `WIDTHxHEIGHT`.
    """
    sizes = [(int(w), int(h)) for w, h in (text.split("x") for text in buckets)]
    return min(sizes, key=lambda bucket: abs(math.log(bucket[0] / bucket[1]) - math.log(width / height)))


def upscale(width: int, height: int, bucket: tuple[int, int]) -> float:
    """How many times a picture is enlarged to cover a bucket; below 1 it is reduced."""
    return max(bucket[0] / width, bucket[1] / height)


def cover(width: int, height: int, bucket: tuple[int, int]) -> tuple[int, int]:
    """Size `(width, height)` to which a picture is scaled so that it just covers a bucket, aspect kept."""
    scale = upscale(width, height, bucket)
    return max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale))


def centre_crop(frames: NDArray[np.uint8], bucket: tuple[int, int]) -> NDArray[np.uint8]:
    """Cut the middle of frames `[..., H, W, 3]` to a bucket `(width, height)`."""
    top = (frames.shape[-3] - bucket[1]) // 2
    left = (frames.shape[-2] - bucket[0]) // 2
    return frames[..., top : top + bucket[1], left : left + bucket[0], :]
