"""The metrics by name: what the keys of reports/metrics.json mean, their units, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """One metric, as tables and pages show it."""

    name: str
    label: str
    unit: str
    better: Literal["higher", "lower"]
    digits: int
    about: str
    has_mid: bool = True
    """Whether it is also given for the frame in the middle alone, as NAME_mid."""
    alone: bool = False
    """Whether it looks at the clip alone, so that the truth has it too."""
    needs_weights: bool = False
    """Whether it needs a network, by the path in `score.NAME_weights`."""

    @property
    def title(self) -> str:
        """Label and unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def improvement(self, value: Any, base: Any) -> Any:
        """How much better a value, or a column of them, is than the base's: positive is better in either direction."""
        return value - base if self.better == "higher" else base - value


PER_SAMPLE = {
    metric.name: metric
    for metric in (
        Metric("psnr", "PSNR", "dB", "higher", 2, "peak signal-to-noise ratio of the middle frames"),
        Metric("ssim", "SSIM", "", "higher", 3, "structural similarity of the middle frames"),
        Metric("ms_ssim", "MS-SSIM", "", "higher", 3, "structural similarity of the middle frames over five scales"),
        Metric("st_lpips", "ST-LPIPS", "", "lower", 4, "distance of the middle frames in the features of a network"),
        Metric("vmaf", "VMAF", "", "higher", 1, "Netflix's video quality score of the middle frames, 0 to 100"),
        Metric(
            "temporal_error",
            "Temporal error",
            "levels",
            "lower",
            2,
            "how far the change from frame to frame is from the true change, in 8-bit levels",
            has_mid=False,
        ),
        Metric(
            "warp_error",
            "Warp error",
            "levels",
            "lower",
            2,
            "change from frame to frame that motion does not explain, in 8-bit levels; looks at no truth",
            has_mid=False,
            alone=True,
        ),
        Metric(
            "flicker",
            "Flicker",
            "levels",
            "lower",
            2,
            "change from frame to frame, motion included, in 8-bit levels; looks at no truth",
            has_mid=False,
            alone=True,
        ),
        Metric(
            "neighbour_ssim",
            "SSIM to the frame before",
            "",
            "higher",
            3,
            "structural similarity of neighbouring frames; looks at no truth",
            has_mid=False,
            alone=True,
        ),
        Metric(
            "first_ssim",
            "SSIM to the first frame",
            "",
            "higher",
            3,
            "structural similarity of each frame to the clip's first; looks at no truth",
            has_mid=False,
            alone=True,
        ),
        Metric(
            "flow_magnitude",
            "Flow",
            "pixels",
            "higher",
            2,
            "length of the optical flow from frame to frame: how much moves; looks at no truth",
            has_mid=False,
            alone=True,
        ),
        Metric(
            "subject_consistency",
            "Subject consistency",
            "",
            "higher",
            4,
            "likeness of the frames to each other in DINO's features, as VBench has it; looks at no truth",
            has_mid=False,
            alone=True,
            needs_weights=True,
        ),
        Metric(
            "background_consistency",
            "Background consistency",
            "",
            "higher",
            4,
            "likeness of the frames to each other in CLIP's features, as VBench has it; looks at no truth",
            has_mid=False,
            alone=True,
            needs_weights=True,
        ),
        Metric(
            "motion_smoothness",
            "Motion smoothness",
            "",
            "higher",
            4,
            "how near every second frame is to AMT's interpolation, as VBench has it; looks at no truth",
            has_mid=False,
            alone=True,
            needs_weights=True,
        ),
        Metric(
            "dynamic_degree",
            "Dynamic degree",
            "",
            "higher",
            3,
            "share of the clips that move by RAFT's flow, as VBench has it; looks at no truth",
            has_mid=False,
            alone=True,
            needs_weights=True,
        ),
    )
}
ADAPTED = ("adapter_", "with_", "steered_")  # so begin the methods that are the base with adapters on it
ENDS = Metric("ends_psnr", "PSNR of the ends", "dB", "higher", 2, "of the first and the last frame", has_mid=False)
PER_SET = {
    metric.name: metric
    for metric in (
        Metric("fid", "FID", "", "lower", 2, "Frechet distance of Inception features, middle frames", has_mid=False),
        Metric("fvd", "FVD", "", "lower", 2, "Frechet distance of I3D features, whole windows", has_mid=False),
    )
}
ALL = {**PER_SAMPLE, ENDS.name: ENDS, **PER_SET}
