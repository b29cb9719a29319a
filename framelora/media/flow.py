"""Dense optical flow between two frames, frames moved along it, and in-betweens that are made so."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[Any]  # RGB, 0..255
Flow = NDArray[np.float32]


def optical_flow(start: Frame, end: Frame) -> Flow:
    """Where each pixel of `start` `[H, W, 3]` is found in `end`, in pixels (x, y): `[H, W, 2]`."""
    one, other = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (start, end))
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(search.calc(one, other, np.zeros((*one.shape, 2), np.float32)), dtype=np.float32)


def warp(frame: Frame, flow: NDArray[np.floating]) -> NDArray[np.float64]:
    """A frame `[H, W, 3]` read at each pixel's place plus its flow `[H, W, 2]`; the border is repeated outside."""
    height, width = frame.shape[:2]
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    places = np.stack([x, y], axis=-1) + flow
    map_x, map_y = (places[..., axis].astype(np.float32) for axis in (0, 1))
    warped = cv2.remap(frame.astype(np.float32), map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(warped, dtype=np.float64)


def flow_warp(first: NDArray[np.uint8], last: NDArray[np.uint8], num_frames: int) -> NDArray[np.uint8]:
    """Both ends moved along the optical flow between them, then cross-faded: `[F, H, W, 3]`.

    Flow by dense inverse search (Kroeger et al. 2016). The flow from a frame in between to each end is
    approximated from the flows between the ends, as if motion were even: Jiang et al. 2018 (Super SloMo), equation 4.
    """
    cv2.setNumThreads(1)
    forth, back = optical_flow(first, last), optical_flow(last, first)
    middles = []
    for t in np.linspace(0.0, 1.0, num_frames)[1:-1]:
        to_first = t * (t * back - (1 - t) * forth)
        to_last = (1 - t) * ((1 - t) * forth - t * back)
        mixed = (1 - t) * warp(first, to_first) + t * warp(last, to_last)
        middles.append(np.rint(mixed).astype(np.uint8))
    return np.stack([first, *middles, last])
