"""Parameters of what is read and how it is cut: captions, extract and pair."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from framelora.schema.base import Bucket, Fraction, Positive, Section


class Data(Section):
    root: str
    """Folder of the clips, images and image pairs, relative to the repository."""
    images: bool
    """Whether single images are training data too; EasyAnimate learns from them, Framer does not."""
    max_pixels: Positive
    """A frame or image with more pixels is refused before it is decoded."""
    max_frames: Positive
    """A video with more frames is refused."""
    max_seconds: Annotated[float, Field(gt=0)]
    """A video that lasts longer is refused."""


class Captions(Section):
    severities: dict[str, Literal["error", "warning", "info", "off"]]
    """Severities of rules that are not those of the table; `framelora validate --rules` prints it."""
    min_seconds: Annotated[float, Field(ge=0)]
    """Rule too-short: the guides advise 2 to 6 s at 8 frames a second."""
    max_seconds: Annotated[float, Field(gt=0)]
    """Rule too-long; a long clip is cut at its shots."""
    min_tokens: Annotated[int, Field(ge=0)]
    """Rule short-caption, in tokens of the base model's tokenizer, or words where it has none."""
    max_tokens: Positive
    """Rule long-caption, in the same. Trigger word, prefix and suffix count; an encoder's chat template does not."""
    max_repeats: Positive
    """Rule repeated-caption: contents that may share one text."""
    trigger_word: str
    """Put in front of every caption that does not hold it; empty for none."""
    prefix: str
    """Text before every caption that is not empty, as it is, spaces included."""
    suffix: str
    """Text after every caption that is not empty."""
    tag_variants: Positive
    """Orders of a caption's comma-separated tags that training draws from; 1 keeps the order as written."""
    keep_tags: Annotated[int, Field(ge=0)]
    """Tags at the start that stay in place."""
    tag_seed: int
    """Another seed draws other orders."""


class BucketBudget(Section):
    pixels: Positive | None
    """The most pixels of a frame; null: `tokens` says."""
    tokens: Positive | None
    """The most squares of `multiple` x `multiple` pixels in a frame; null: `pixels` says. With EasyAnimate's multiple
    of 16 these are the tokens that its transformer sees for one latent frame."""
    multiple: Literal[8, 16, 32, 64]
    """Width and height are multiples of it: 16 for EasyAnimate, 64 for SVD and Framer."""
    max_aspect: Annotated[float, Field(ge=1)]
    """The longer side is at most this many times the shorter one."""

    @model_validator(mode="after")
    def _one_budget(self) -> BucketBudget:
        if (self.pixels is None) == (self.tokens is None):
            raise ValueError("give pixels or tokens, and null for the other")
        if self.most_pixels < self.multiple**2:
            raise ValueError("the budget is smaller than one square of `multiple` pixels")
        return self

    @property
    def most_pixels(self) -> int:
        """The budget in pixels."""
        return self.pixels if self.pixels is not None else (self.tokens or 0) * self.multiple**2


class Extract(Section):
    fps: Annotated[float, Field(gt=0)]
    """Frames a second to keep. A slower source keeps its own rate: frames are never doubled."""
    buckets: list[Bucket]
    """Allowed frame sizes, WIDTHxHEIGHT pixels; each source takes the one nearest in aspect, and is centre-cropped."""
    bucket_budget: BucketBudget | None
    """All sizes of this budget, in place of `buckets`, which is empty then."""
    image_buckets: list[Bucket]
    """The same for single images (data.images), which may be larger than videos; empty: the sizes of videos."""
    max_upscale: Annotated[float, Field(ge=1)]
    """A source that would have to be enlarged more than this is left out, and listed."""
    detector: Literal["content", "adaptive", "threshold", "histogram", "hash"]
    """PySceneDetect's detector of cuts."""
    shot_threshold: Annotated[float, Field(gt=0)]
    """The detector's threshold; lower finds more cuts. PySceneDetect's defaults: content 27, adaptive 3, histogram 0.2,
    hash 0.35, threshold 12 (the brightness, 0 to 255, at which a picture counts as faded out)."""
    min_shot_seconds: Annotated[float, Field(gt=0)]
    """Cuts nearer than this to the one before are ignored."""
    max_shot_seconds: Annotated[float, Field(gt=0)]
    """Longer shots are divided, so memory does not grow with the length of a video; no window crosses a division."""
    black_level: Annotated[float, Field(ge=0, le=255)]
    """Frames whose mean brightness (0 to 255) is below it are left out and end the shot before them; 0 keeps all."""
    trim_fades: bool
    """Leave out frames between black and a picture: those with less than 70 % of their shot's median brightness."""
    on_error: Literal["stop", "skip"]
    """What an undecodable source does: stop the stage, or be listed in reports/extract/ and left out."""

    @model_validator(mode="after")
    def _some_size(self) -> Extract:
        if bool(self.buckets) == (self.bucket_budget is not None):
            raise ValueError("give buckets, or an empty list and a bucket_budget")
        return self


class Pair(Section):
    num_frames: Annotated[int, Field(ge=3)]
    """Frames of a window, both ends included; with two there is nothing to learn."""
    stride: Positive
    """Frames from the start of one window to the start of the next."""
    image_frames: Positive
    """Frames of the clip that a single image makes: 1, a picture; more, the picture held still (a static clip)."""
    short_shots: Literal["drop", "still"]
    """What a shot of fewer than `num_frames` frames gives: nothing, or its middle frame, as a single image's
    (`image_frames`), for families that learn from images: UFO needs no more of a clip."""
    val_fraction: Fraction
    """Share of the sources held out for the validation loss."""
    test_fraction: Fraction
    """Share of the sources held out for renders and metrics."""
    split_seed: int
    """Another seed deals the sources anew to train, val and test."""
    split_column: str | None
    """Metadata column that says train, val or test; a source without a value in it is dealt."""
    group_column: str | None
    """Metadata column; sources of one value (a scene, say) are dealt together, a source without a value alone."""
    pseudo_middles: Literal["off", "flow", "rife"]
    """Make middles for image pairs, which have none, so that they can be trained on: both ends moved along their
    optical flow, or the interpolation network RIFE (its own package). What is learned is what that method does. Such
    windows are marked wherever they go, and are never scored. Pairs that are dealt to test stay as they are."""
    filters: list[str]
    """Conditions that every window and image must meet, on measures and metadata columns: `motion > 0.5`."""
    leak_bits: Annotated[int, Field(ge=-1, le=16)]
    """Pictures whose hashes differ in at most this many of 64 bits are nearly equal; shots of two splits are leaks when
    more than half of the pictures of a window of one are nearly equal to pictures of the other. -1: not looked for."""
    leaks: Literal["report", "drop"]
    """What leaks do: be reported, or have their shots left out: those of val for test, those of train for both."""

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> Pair:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1")
        return self
