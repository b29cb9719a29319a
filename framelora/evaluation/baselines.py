"""In-betweens that need none of our models: an adapter that loses to them must be seen to."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from framelora.evaluation.flow import optical_flow, warp

Frames = NDArray[np.uint8]


def hold_first(first: Frames, last: Frames, num_frames: int) -> Frames:
    """The first frame `[H, W, 3]` held until the last one: `[F, H, W, 3]`."""
    return np.stack([first] * (num_frames - 1) + [last])


def blend(first: Frames, last: Frames, num_frames: int) -> Frames:
    """Linear cross-fade from the first frame to the last in 8-bit values: `[F, H, W, 3]`."""
    share = np.linspace(0.0, 1.0, num_frames)[:, None, None, None]
    mixed = (1.0 - share) * first.astype(np.float64) + share * last.astype(np.float64)
    return np.rint(mixed).astype(np.uint8)


def still(first: Frames, last: Frames, num_frames: int) -> Frames:
    """The first frame `[H, W, 3]` throughout: perfect on any measure of flicker, without any motion: `[F, H, W, 3]`."""
    return np.stack([first] * num_frames)


def flow_warp(first: Frames, last: Frames, num_frames: int) -> Frames:
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


BASELINES = {"hold_first": hold_first, "blend": blend, "still": still, "flow_warp": flow_warp}
