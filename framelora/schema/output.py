"""Parameters of renders, scores and the report."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from framelora.schema.base import Positive, Section


def _each_once(counts: list[int]) -> list[int]:
    if len(set(counts)) < len(counts):
        raise ValueError("name each number of steps once")
    return counts


def _distinct(weights: list[float]) -> list[float]:
    if len({f"{weight:g}" for weight in weights}) < len(weights):
        raise ValueError("name each weight once (six digits count)")
    return weights


def _inside_the_graph(mixtures: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    for name, mixture in mixtures.items():
        if not re.fullmatch("[a-z0-9_]+", name) or name.startswith("step_"):
            raise ValueError(f"{name!r}: use small letters, digits and underscores only, and no `step_` in front")
        if not mixture:
            raise ValueError(f"{name} names no adapter: write FOLDER: WEIGHT")
        for folder in mixture:
            path = PurePosixPath(folder)
            start = path.parts[:2] == ("models", "start") and len(path.parts) > 2 and ".." not in path.parts
            if folder != "models/adapter" and not start:
                raise ValueError(f"{folder} is neither models/adapter nor a folder inside models/start/: copy it there")
    return mixtures


class Render(Section):
    seed: int
    """Seed of the initial noise, together with the pair's id."""
    num_inference_steps: Positive
    """Steps of the sampler."""
    step_sweep: Annotated[list[Positive], AfterValidator(_each_once)]
    """Numbers of steps at which the adapter (at the largest weight; without one the base) is rendered as well, with
    every sampler that the family has: the report shows quality against steps. Each is a method, `steps_SAMPLER_N`."""
    lora_weights: Annotated[list[float], Field(min_length=1), AfterValidator(_distinct)]
    """Weights of the adapter to render, each multiplied with alpha / rank. The base, which is weight 0, is always
    rendered; a negative weight takes away what was learned."""
    adapters: Annotated[dict[str, dict[str, float]], AfterValidator(_inside_the_graph)]
    """More to render beside the trained adapter, as `with_NAME`: adapters by their folders, acting together, each at
    its weight. A folder is `models/adapter`, which was trained, or one inside `models/start/`."""
    checkpoints: bool
    """Whether each checkpoint in models/checkpoints/ is rendered too, at weight 1: how samples change as it learns."""
    rife: bool
    """Whether to render the interpolation network RIFE beside the other baselines; see docs/metrics.md."""
    video_fps: Positive
    """Frame rate of the preview videos."""


def _judged(names: list[str]) -> list[str]:
    if "psnr" not in names or len(set(names)) < len(names):
        raise ValueError("name psnr, by which the page judges, and each metric once")
    return names


MetricName = Literal[
    "psnr",
    "ssim",
    "ms_ssim",
    "st_lpips",
    "vmaf",
    "temporal_error",
    "warp_error",
    "flicker",
    "neighbour_ssim",
    "first_ssim",
    "flow_magnitude",
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
]


class Score(Section):
    metrics: Annotated[list[MetricName], AfterValidator(_judged)]
    """Metrics of each sample; docs/metrics.md says what they measure. The page judges by psnr."""
    fid_weights: str | None
    """TorchScript file of the Inception network behind FID; null: the tables say that it needs weights."""
    fvd_weights: str | None
    """TorchScript file of the I3D network behind FVD."""
    subject_consistency_weights: str | None
    """Folder of DINO ViT-B/16 as transformers saves it. docs/metrics.md tells of this and the next three."""
    background_consistency_weights: str | None
    """Folder of CLIP ViT-B/32 as transformers saves it."""
    motion_smoothness_weights: str | None
    """TorchScript file of AMT-S."""
    dynamic_degree_weights: str | None
    """TorchScript file of RAFT."""
    bootstrap_samples: Positive
    """Resamplings behind each confidence interval."""
    seed: int
    """Seed of the resampling."""


class Report(Section):
    title: str
    """Heading of the report page."""
