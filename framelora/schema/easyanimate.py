"""Parameters of the EasyAnimate family."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from framelora.schema.base import Fraction, Positive, Section

# Names of EasyAnimate's predict scripts (GPU_memory_mode).
MemoryMode = Literal["none", "model_cpu_offload", "model_cpu_offload_and_qfloat8", "sequential_cpu_offload"]
Weight = Annotated[float, Field(ge=0)]


class MaskModes(Section):
    """How often a mask mode is drawn, relative to the others; 0 is off and costs no cell."""

    all: Weight
    """Nothing is given: text to video. One cell a size."""
    first_frames: Weight
    """The first k frames are given. One cell a window and k."""
    both_ends: Weight
    """The first and the last k frames are given. One cell a window and k."""
    block: Weight
    """A block is hidden. This and the modes below: `pixel_draws` cells a window."""
    block_in_time: Weight
    """A block is hidden in a part of the clip."""
    pixels: Weight
    """Single pixels are hidden."""
    blocks: Weight
    """Squares of a grid are hidden."""
    ellipse: Weight
    """An ellipse is hidden."""
    circle: Weight
    """A circle is hidden."""
    frames: Weight
    """Whole frames are hidden."""

    @model_validator(mode="after")
    def _something_to_draw(self) -> MaskModes:
        if not any(self.model_dump().values()):
            raise ValueError("give a mode a weight above 0: `all` is text to video")
        return self


class TrainSize(Section):
    scale: Annotated[float, Field(gt=0, le=1)]
    """Both sides, as a share of the window's own, rounded down to what the base takes; the rest is cropped."""
    num_frames: Positive | None
    """Frames, from the window's first; null: all of them."""


class EasyAnimateConditioning(Section):
    static_clips: Literal["off", "middle_frame"]
    """What is trained on: the windows as they are, or the middle frame of each, held for the window's length (UFO)."""
    flips: bool
    """Whether half of what is trained on is mirrored, left to right: each window has a second set of cells. Refused
    when a caption says left or right."""
    train_sizes: Annotated[list[TrainSize], Field(min_length=1)]
    """Sizes at which each training window is learned, once an epoch each and with a set of cells each; validation and
    renders stay at the window's own. The original draws a size for every batch (random_hw_adapt)."""
    mask_modes: MaskModes
    """Inpaint models (-InP): how what they are given is drawn in training. Without effect on a text-to-video base."""
    first_frames: Annotated[list[Positive], Field(min_length=1)]
    """Mode `first_frames` keeps the first k frames: the values of k, one cell each (the original draws 1 to 4)."""
    both_ends: Annotated[list[Positive], Field(min_length=1)]
    """Mode `both_ends` keeps the first and the last k frames: the values of k, one cell each."""
    pixel_draws: Positive
    """Masks drawn for each window and each of the remaining modes; training picks one of these cells."""
    mask_seed: int
    """Another seed draws other masks, and other noise on what is given."""
    fresh_masks: bool
    """Draw these masks anew in every step, as the original does: under train.latents: live only, since a mask that no
    cell holds needs the VAE."""


class EasyAnimateEncode(Section):
    dtype: Literal["float32", "float16", "bfloat16"]
    """How latents and text embeddings are stored; latents are computed in float32."""
    max_sequence_length: Positive
    """Tokens a caption is padded to."""
    long_captions: Literal["stop", "truncate"]
    """What a caption of more tokens than the encoder takes does: stop the stage, or be cut, with a line for each."""
    negative_prompt: str
    """Text that guidance leads away from in renders."""


class EasyAnimateObjective(Section):
    caption_dropout_prob: Fraction
    """Probability that a caption is replaced by the empty one."""
    weighting_scheme: Literal["none", "logit_normal", "mode", "sigma_sqrt", "cosmap"]
    """How timesteps are drawn (logit_normal, mode; else uniformly) and losses weighted (sigma_sqrt, cosmap)."""
    logit_mean: float
    """Mean of the logit under logit_normal."""
    logit_std: Annotated[float, Field(gt=0)]
    """Standard deviation of the logit under logit_normal."""
    mode_scale: float
    """Scale of the mode scheme (SD3: 1.29)."""
    largest_difference: Annotated[float, Field(gt=0)]
    """Values that miss the target by more than this count as zero."""
    motion_sub_loss_ratio: Annotated[float, Field(ge=0, lt=1)]
    """Share of a second loss, on differences of neighbouring latent frames; 0 is off."""
    noise_share_in_frames_ratio: Annotated[float, Field(ge=0, lt=1)]
    """r: the noise of a latent frame is r times that of the frame before plus 1 - r times its own; 0 is off."""
    zeroed_all_masked_prob: Fraction
    """Inpaint models, mode `all`: probability that the conditioning is zero, as in text-to-video sampling."""


class EasyAnimateRender(Section):
    guidance_scale: Annotated[float, Field(ge=0)]
    """Classifier-free guidance; at 1 the negative prompt is not computed."""
    condition: Literal["none", "first_frame", "both_ends"]
    """What an inpaint model is given: nothing (text to video), the first frame, or the first and the last."""
    dtype: Literal["float32", "bfloat16"]
    """How the denoiser's weights are held and computed with; adapters stay float32 on it."""
    memory_mode: MemoryMode
    """What is in the GPU's memory: everything; the network at work; the same with the denoiser's layers stored as
    float8; or the layer at work. Names of EasyAnimate's GPU_memory_mode."""


class EasyAnimate(Section):
    conditioning: EasyAnimateConditioning
    encode: EasyAnimateEncode
    objective: EasyAnimateObjective
    render: EasyAnimateRender
