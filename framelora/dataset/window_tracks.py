"""Tracks of a video as its windows see them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from framelora.media.buckets import cover

Place = tuple[float, float, float]  # time in s from the video's start, x and y in its pixels as displayed


def in_window(
    tracks: Sequence[Sequence[Place]], size: tuple[int, int], times: Sequence[float], bucket: tuple[int, int]
) -> list[list[list[float] | None]]:
    """Tracks as a window sees them.

    Args:
        tracks: of `dataset.tracks.parse`.
        size: `(width, height)` of the source, as displayed.
        times: of the window's frames in the source, s from its start.
        bucket: `(width, height)` of the window's frames, which cover it scaled and centre-cropped.

    Returns:
        For each track that is seen in at least one frame, its place `[x, y]` in each, in pixels of the window (to a
        thousandth); None where it is hidden or outside.
    """
    scaled = cover(*size, bucket)
    left, top = (scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2
    # A point at one moment only is seen in the frame that is on the screen then.
    slack = max(np.diff(times).max(), 1e-3) / 2 if len(times) > 1 else 1e-3
    found: list[list[list[float] | None]] = []
    for track in tracks:
        stamps, x, y = (np.array(values) for values in zip(*track, strict=True))
        places: list[list[float] | None] = []
        for time in times:
            place = None
            if stamps[0] - slack <= time <= stamps[-1] + slack:
                across = float(np.interp(time, stamps, x)) * scaled[0] / size[0] - left
                down = float(np.interp(time, stamps, y)) * scaled[1] / size[1] - top
                if 0 <= across < bucket[0] and 0 <= down < bucket[1]:
                    place = [round(across, 3), round(down, 3)]
            places.append(place)
        if any(place is not None for place in places):
            found.append(places)
    return found
