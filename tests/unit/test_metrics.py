"""Metrics and baselines against computations written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from framelora.evaluation.baselines import blend, hold_first
from framelora.evaluation.metrics import bootstrap_interval, psnr, ssim

RANDOM = np.random.default_rng(0)
TRUTH = RANDOM.integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)
NOISY = np.clip(TRUTH + RANDOM.normal(0, 20, TRUTH.shape), 0, 255).astype(np.uint8)


def test_psnr_is_the_mean_over_frames_of_each_frames_own() -> None:
    errors = ((TRUTH.astype(float) - NOISY) ** 2).mean(axis=(1, 2, 3))
    assert psnr(NOISY, TRUTH) == pytest.approx((10 * np.log10(255**2 / errors)).mean(), abs=1e-3)


def test_identical_frames_count_as_100_db_and_do_not_swallow_the_others() -> None:
    assert psnr(TRUTH, TRUTH) == 100.0
    half = np.concatenate([TRUTH[:1], NOISY[:1]])
    assert psnr(half, TRUTH[[0, 0]]) == pytest.approx((100 + psnr(NOISY[:1], TRUTH[:1])) / 2, abs=1e-3)


def test_ssim_follows_wang_et_al() -> None:
    """Wang et al. 2004, equation 13: Gaussian window of sigma 1.5 (11 wide), K1 = 0.01, K2 = 0.03, on each channel."""
    total = []
    for frame, truth in zip(NOISY / 255.0, TRUTH / 255.0, strict=True):
        for channel in range(3):
            x, y = frame[..., channel], truth[..., channel]

            def local(image: np.ndarray) -> np.ndarray:
                return gaussian_filter(image, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

            mx, my = local(x), local(y)
            vx, vy, cov = local(x * x) - mx**2, local(y * y) - my**2, local(x * y) - mx * my
            c1, c2 = 0.01**2, 0.03**2
            total.append(((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())
    assert ssim(NOISY, TRUTH) == pytest.approx(np.mean(total), abs=2e-3)


def test_the_blend_goes_linearly_from_one_end_to_the_other() -> None:
    first, last = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 200, np.uint8)
    assert blend(first, last, 5)[:, 0, 0, 0].tolist() == [0, 50, 100, 150, 200]
    assert hold_first(first, last, 5)[:, 0, 0, 0].tolist() == [0, 0, 0, 0, 200]


class TestInterval:
    def test_it_resamples_clips_so_copies_of_a_window_add_no_certainty(self) -> None:
        gains = RANDOM.normal(0.1, 1.0, 8)
        clips = [f"clip{number}" for number in range(8)]
        once = bootstrap_interval(gains, clips, samples=2000, seed=0)
        tenfold = bootstrap_interval(np.repeat(gains, 10), np.repeat(clips, 10).tolist(), samples=2000, seed=0)
        assert tenfold == pytest.approx(once, abs=1e-9)

    def test_it_covers_the_true_mean_about_as_often_as_it_says(self) -> None:
        hits = 0
        for trial in range(200):
            gains = np.random.default_rng(trial).normal(0.3, 1.0, 40)
            low, high = bootstrap_interval(gains, [str(n) for n in range(40)], samples=400, seed=trial)
            hits += low <= 0.3 <= high
        assert 0.88 <= hits / 200 <= 0.99

    def test_one_clip_gives_an_interval_without_width(self) -> None:
        assert bootstrap_interval(np.array([1.0, 3.0]), ["a", "a"], samples=10, seed=0) == (2.0, 2.0)
