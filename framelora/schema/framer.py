"""Parameters of the Framer family."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from framelora.schema.base import Positive, Section


class FramerConditioning(Section):
    fps: Positive
    """Frame rate told to the UNet (it gets fps - 1, as SVD was trained)."""
    motion_bucket_id: Annotated[int, Field(ge=0)]
    """SVD's motion bucket told to the UNet."""
    noise_aug_strength: Annotated[float, Field(ge=0)]
    """Standard deviation of the noise on the condition images, in units of the [-1, 1] pixel range."""


class FramerEncode(Section):
    vae_batch: Positive
    """Frames the VAE encodes at once."""
    dtype: Literal["float32", "float16", "bfloat16"]
    """How latents are stored; they are computed in float32."""


class FramerObjective(Section):
    sigma_log_mean: float
    """Mean of log sigma in training (SVD_Xtend: 0.7)."""
    sigma_log_std: Annotated[float, Field(gt=0)]
    """Standard deviation of log sigma in training (SVD_Xtend: 1.6)."""
    conditioning_dropout_prob: Annotated[float, Field(ge=0, le=1 / 3)]
    """p: CLIP tokens are dropped in [0, 2p), condition latents in [p, 3p) of one uniform draw (SVD_Xtend)."""
    heatmap_side: Positive
    """Half the side of a tracked point's box in the ControlNet's heatmaps, in pixels (Framer: 20 at 512x320)."""


class FramerRender(Section):
    min_guidance_scale: Annotated[float, Field(ge=0)]
    """Guidance at the first frame; it rises linearly along the frames."""
    max_guidance_scale: Annotated[float, Field(ge=0)]
    """Guidance at the last frame."""
    middle_max_guidance: bool
    """Let guidance rise to the middle frame and fall to the last, as Framer can."""
    scheduler: Literal["euler", "dpm++", "lcm"]
    """Sampler: euler (Framer's), dpm++ (multistep, for about half as many steps), lcm (for 4 to 8 steps)."""
    decode_chunk_frames: Positive
    """Frames the VAE decodes at once; they see each other, so this changes the pictures."""


class Framer(Section):
    conditioning: FramerConditioning
    encode: FramerEncode
    objective: FramerObjective
    render: FramerRender
