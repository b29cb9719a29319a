"""Parameters of what is read and how it is cut: captions, extract and pair."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from framelora.schema.base import Bucket, Fraction, Positive, Section


class Data(Section):
    root: str
    """Folder of the clips and image pairs, relative to the repository."""


class Extract(Section):
    fps: Annotated[float, Field(gt=0)]
    """Frames a second to keep. A slower source keeps its own rate: frames are never doubled."""
    buckets: Annotated[list[Bucket], Field(min_length=1)]
    """Allowed frame sizes, WIDTHxHEIGHT pixels; each source takes the one nearest in aspect, and is centre-cropped."""
    shot_threshold: Annotated[float, Field(gt=0)]
    """PySceneDetect ContentDetector's threshold: lower finds more cuts."""
    min_shot_seconds: Annotated[float, Field(gt=0)]
    """Cuts nearer than this to the one before are ignored."""
    max_shot_seconds: Annotated[float, Field(gt=0)]
    """Longer shots are divided, so memory does not grow with the length of a video; no window crosses a division."""
    on_error: Literal["stop", "skip"]
    """What an undecodable source does: stop the stage, or be listed in reports/extract/ and left out."""


class Pair(Section):
    num_frames: Annotated[int, Field(ge=3)]
    """Frames of a window, both ends included; with two there is nothing to learn."""
    stride: Positive
    """Frames from the start of one window to the start of the next."""
    val_fraction: Fraction
    """Share of the sources held out for the validation loss."""
    test_fraction: Fraction
    """Share of the sources held out for renders and metrics."""
    split_seed: int
    """Another seed deals the sources anew to train, val and test."""

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> Pair:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1")
        return self
