"""Tracks as pictures: what Framer's trajectory ControlNet sees.

The constants are Framer's (aim-uofa/Framer, `models_diffusers/utils.py`), and so is the arithmetic, down to where it
truncates: a published ControlNet was trained on exactly these pictures.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TEMPLATE_SIDE = 200  # pixels
TEMPLATE_SIGMA = 40.0  # pixels
SIDE = 20  # half the side of a point's box in the picture, pixels


@functools.cache
def gaussian_template() -> NDArray[np.uint8]:
    """A Gaussian of `TEMPLATE_SIGMA` cut to a circle, `[200, 200]`, scaled so that its peak is 255."""
    centre = TEMPLATE_SIDE / 2
    squares = (np.arange(TEMPLATE_SIDE) - centre) ** 2
    density = np.exp(-(squares[:, None] + squares[None]) / (2 * TEMPLATE_SIGMA**2)) / (2 * np.pi * TEMPLATE_SIGMA**2)
    disc = np.zeros((TEMPLATE_SIDE, TEMPLATE_SIDE), np.float32)
    cv2.circle(disc, (TEMPLATE_SIDE // 2, TEMPLATE_SIDE // 2), TEMPLATE_SIDE // 2, 1, -1)
    cut = density.astype(np.float32) * disc
    template: NDArray[np.uint8] = (cut / cut.max() * 255).astype(np.uint8)
    template.setflags(write=False)
    return template


def draw_point(picture: NDArray[np.float32], x: float, y: float, side: int = SIDE) -> None:
    """Draw a point's heat into a picture `[H, W]`, over what is there.

    The template is scaled to the part of the point's box that lies inside the picture: at a border it is squeezed, not
    cut off. Points outside draw nothing.
    """
    height, width = picture.shape
    if not (0 <= x < width and 0 <= y < height):
        return
    left, right = int(max(x - side, 1)), int(min(x + side, width - 1))
    top, bottom = int(max(y - side, 1)), int(min(y + side, height - 1))
    if right - left >= 1 and bottom - top >= 1:
        picture[top:bottom, left:right] = cv2.resize(gaussian_template(), (right - left, bottom - top))


def heatmaps(
    tracks: Tensor | NDArray[np.floating],
    visible: Tensor | NDArray[np.bool_] | None = None,
    *,
    width: int,
    height: int,
    side: int = SIDE,
) -> Tensor:
    """Draw tracks, one picture a frame; of points that overlap the later one wins.

    Args:
        tracks: `[F, P, 2]`, x and y in pixels.
        visible: `[F, P]`; None means all. A hidden point draws nothing.
        width, height: of the pictures, in pixels.
        side: half the side of a point's box, in pixels.

    Returns:
        `[F, 3, H, W]` float32, 0..255 (at most 254, since scaling the template down averages its peak).
    """
    points = np.asarray(tracks, dtype=np.float64)
    shown = np.ones(points.shape[:2], bool) if visible is None else np.asarray(visible, dtype=bool)
    pictures = np.zeros((len(points), height, width), np.float32)
    for picture, places, seen in zip(pictures, points, shown, strict=True):
        for x, y in places[seen]:
            draw_point(picture, float(x), float(y), side)
    return torch.from_numpy(pictures)[:, None].repeat(1, 3, 1, 1)
