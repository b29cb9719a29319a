"""In-betweens that need none of our models: an adapter that loses to them must be seen to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from framelora.media.flow import flow_warp

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


BASELINES = {"hold_first": hold_first, "blend": blend, "still": still, "flow_warp": flow_warp}
