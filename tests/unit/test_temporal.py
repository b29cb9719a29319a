"""Steadiness and motion of clips whose motion and flicker are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from framelora.evaluation.measures import measure
from framelora.evaluation.temporal import BY_CLIP, first_ssim, flicker, flow_magnitude, neighbour_ssim, warp_error
from framelora.evaluation.totals import flat_metrics, total_table

Clip = NDArray[np.uint8]


def moving(pixels: int, frames: int = 5) -> Clip:
    """A smooth texture that moves right by some pixels a frame."""
    noise = np.random.default_rng(2).random((14, 40, 3)).astype(np.float32)
    wide = cv2.resize(noise, (320, 112), interpolation=cv2.INTER_CUBIC)
    texture = (np.clip(wide, 0, 1) * 255).astype(np.uint8)
    return np.stack([texture[:, 160 - n * pixels : 256 - n * pixels] for n in range(frames)])


def flickering(levels: int) -> Clip:
    clip = np.repeat(moving(0)[:1], 5, axis=0).astype(np.int16)
    clip[1::2] += levels
    return np.clip(clip, 0, 255).astype(np.uint8)


def test_a_still_clip_is_perfectly_steady_and_does_not_move() -> None:
    still = moving(0)
    assert (flicker(still), warp_error(still)) == (0, 0)
    assert neighbour_ssim(still) == first_ssim(still) == pytest.approx(1)
    assert flow_magnitude(still) < 0.01


def test_motion_counts_as_flicker_and_not_as_warp_error() -> None:
    clip = moving(3)
    error = warp_error(clip)
    assert error is not None
    assert flicker(clip) > 10
    assert error < 0.15 * flicker(clip)
    assert flow_magnitude(clip) == pytest.approx(3, rel=0.15)
    assert flow_magnitude(moving(1)) == pytest.approx(1, rel=0.2)
    assert first_ssim(clip) < neighbour_ssim(clip) < 1


def test_flicker_is_not_explained_by_motion() -> None:
    clip = flickering(12)
    error = warp_error(clip)
    assert error is not None
    assert error > 8
    assert flicker(clip) == pytest.approx(12, abs=1)


def test_the_table_of_a_sample_and_the_share_of_the_bases_motion() -> None:
    clips = {"base": moving(4), "adapter_0.15": moving(3), "still": moving(0), "truth": moving(2)}
    rows = [
        {"pair": "a-0", "kind": "window", "method": method, **measure(clip, clip, list(BY_CLIP), middles=True)}
        for method, clip in clips.items()
    ]
    import pandas as pd

    samples = pd.DataFrame(rows)
    flat = flat_metrics(samples, total_table(samples, list(BY_CLIP), bootstrap=20, seed=0))
    assert flat["dynamics_adapter_0.15"] == pytest.approx(0.75, abs=0.08)
    assert flat["dynamics_truth"] == pytest.approx(0.5, abs=0.08)
    assert flat["dynamics_still"] == flat["warp_error_still"] == 0.0
    assert "dynamics_base" not in flat
    assert flat["warp_error_base"] == pytest.approx(warp_error(clips["base"]), abs=1e-4)
