"""Parameters of renders, scores and the report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from framelora.schema.base import Positive, Section


class Render(Section):
    seed: int
    """Seed of the initial noise, together with the pair's id."""
    num_inference_steps: Positive
    """Steps of the sampler."""
    lora_weights: Annotated[list[float], Field(min_length=1)]
    """Weights of the adapter to render, each multiplied with alpha / rank; the base is always rendered."""
    video_fps: Positive
    """Frame rate of the preview videos."""


class Score(Section):
    bootstrap_samples: Positive
    """Resamplings behind each confidence interval."""
    seed: int
    """Seed of the resampling."""


class Report(Section):
    title: str
    """Heading of the report page."""
