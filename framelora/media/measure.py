"""What can be measured on a window: motion, sharpness, brightness, stillness, and a fingerprint of its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

LONG_SIDE, SHORT_SIDE = 128, 32  # pixels; pictures are brought to these before motion is measured
STILL = 8  # of 255; a pixel whose brightness stays within this range does not change
# A picture says something when so many of the 64 places of its hash differ so much (of 255) from their neighbour. The
# least of the demo's 117 frames has 36; an even wall, a night sky or fog has hardly any, and its hash is noise.
TELLING, LEAST_TELLING = 2, 16

Gray = NDArray[np.uint8]  # [H, W]


@dataclass(frozen=True)
class Measures:
    """Measures of a window. None where there is nothing to measure: one image does not move."""

    motion: float | None  # mean optical flow between neighbouring frames, percent of the diagonal
    motion_ends: float | None  # the same between the first and the last frame
    static: float | None  # share of pixels that do not change along the window, 0..1
    sharpness: float  # variance of the Laplacian of brightness, mean of first, middle and last frame
    brightness: float  # mean of Rec. 601 luma over the window, 0..1
    hash: str  # difference hashes (64 bits, hex) of first, middle and last frame


def measure_windows(frames: NDArray[np.uint8], windows: Sequence[tuple[int, int]]) -> list[Measures]:
    """Measure windows of one shot.

    Args:
        frames: `[F, H, W, 3]` RGB, 0..255.
        windows: number of the first and of the last frame of each.
    """
    cv2.setNumThreads(1)  # the same sums in the same order on every machine
    full = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    small = [reduced(gray) for gray in full]
    diagonal = (full[0].shape[1], full[0].shape[0])
    steps: dict[int, float] = {}
    sharp: dict[int, float] = {}
    hashes: dict[int, str] = {}
    measured = []
    for first, last in windows:
        for number in range(first, last):
            if number not in steps:
                steps[number] = flow(small[number], small[number + 1], diagonal)
        looked_at = (first, (first + last) // 2, last)
        for number in looked_at:
            sharp.setdefault(number, float(cv2.Laplacian(full[number], cv2.CV_64F).var()))
            hashes.setdefault(number, difference_hash(full[number]))
        stack = np.stack(small[first : last + 1])
        moves = last > first
        measured.append(
            Measures(
                float(np.mean([steps[number] for number in range(first, last)])) if moves else None,
                flow(small[first], small[last], diagonal) if moves else None,
                float(np.mean(np.ptp(stack, axis=0) < STILL)) if moves else None,
                float(np.mean([sharp[number] for number in looked_at])),
                float(np.mean([full[number].mean() for number in range(first, last + 1)]) / 255),
                "".join(hashes[number] for number in looked_at),
            )
        )
    return measured


def reduced(gray: Gray) -> Gray:
    """A picture brought to a size on which flow is quick and measures the same for every bucket."""
    height, width = gray.shape
    scale = LONG_SIDE / max(height, width)
    size = (max(SHORT_SIDE, round(width * scale)), max(SHORT_SIDE, round(height * scale)))
    return np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), np.uint8)


def flow(first: Gray, second: Gray, size: tuple[int, int]) -> float:
    """Mean length of the optical flow (DIS) between two reduced pictures, in percent of the diagonal of `size`."""
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    field = method.calc(first, second, None)  # type: ignore[call-overload]
    pixels = field * (np.array(size) / first.shape[::-1])
    return float(np.mean(np.hypot(pixels[..., 0], pixels[..., 1])) / np.hypot(*size) * 100)


def picture_hashes(frames: NDArray[np.uint8]) -> list[str]:
    """The difference hash of each frame of a shot `[F, H, W, 3]`; empty where a picture is too even to say anything."""
    hashes = []
    for frame in frames:
        steps = _steps(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
        telling = int((np.abs(steps) >= TELLING).sum()) >= LEAST_TELLING
        hashes.append(np.packbits(steps > 0).tobytes().hex() if telling else "")
    return hashes


def difference_hash(gray: Gray) -> str:
    """64 bits, as 16 hex digits: whether each of 8 x 8 places is darker than the one to its right."""
    return np.packbits(_steps(gray) > 0).tobytes().hex()


def _steps(gray: Gray) -> NDArray[np.int16]:
    """How much brighter each of 8 x 8 places is than the one to its left, -255..255."""
    cells = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return cells[:, 1:] - cells[:, :-1]
