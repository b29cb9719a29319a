"""Parameters of the Framer family."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from framelora.schema.base import Fraction, Positive, Section


class FramerConditioning(Section):
    fps: Positive
    """Frame rate told to the UNet (it gets fps - 1, as SVD was trained)."""
    motion_bucket_id: Annotated[int, Field(ge=0)]
    """SVD's motion bucket told to the UNet."""
    noise_aug_strength: Annotated[float, Field(ge=0)]
    """Standard deviation of the noise on the condition images, in units of the [-1, 1] pixel range."""

    condition_noise: Literal["bank", "latent", "off"]
    """Noise on the ends in training: `bank` draws one of K noisy encodings of each end and tells the UNet its strength;
    `latent` adds white noise to clean latents, which costs no cells and is not what pixel noise does to latents; `off`
    uses the one encoding with `noise_aug_strength` that renders use. Renders are the same under all three."""
    condition_noise_draws: Positive
    """K: noisy encodings of each end frame (`bank`), with strengths stratified over the law."""
    condition_noise_log_mean: float
    """Mean of the log of the strength in training (SVD_Xtend: -3.0)."""
    condition_noise_log_std: Annotated[float, Field(gt=0)]
    """Standard deviation of that log (SVD_Xtend: 0.5)."""
    condition_noise_seed: int
    """Seed of the bank's noise, together with the frame and the draw."""


class FramerEncode(Section):
    vae_batch: Positive
    """Frames the VAE encodes at once."""
    dtype: Literal["float32", "float16", "bfloat16"]
    """How latents are stored; they are computed in float32."""
    tracks: Literal["none", "lucas_kanade", "cotracker"]
    """How points are tracked over windows, for the ControlNet: pyramidal Lucas-Kanade (OpenCV) with a check forwards
    and backwards, or CoTracker, where its package and weights are installed. Tracks that come with a video
    (`NAME.tracks.json`) go before both."""
    cotracker_weights: str | None
    """File of CoTracker's weights (`scaled_offline.pth`), for `tracks: cotracker`."""
    track_points: Positive
    """Points to look for in the first frame of a window."""


class FramerObjective(Section):
    sigma_log_mean: float
    """Mean of log sigma in training (SVD_Xtend: 0.7)."""
    sigma_log_std: Annotated[float, Field(gt=0)]
    """Standard deviation of log sigma in training (SVD_Xtend: 1.6)."""
    conditioning_dropout_prob: Annotated[float, Field(ge=0, le=1 / 3)]
    """p: CLIP tokens are dropped in [0, 2p), condition latents in [p, 3p) of one uniform draw (SVD_Xtend)."""
    control_points_max: Positive
    """The ControlNet trains on 1 to this many of a window's tracked points, drawn anew each time."""
    control_point_dropout: Fraction
    """Chance of each drawn point to be left out again."""
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
    tracks: Literal["none", "own"]
    """Whether to render held-out windows along their own tracks as well (`steered_WEIGHT`), by the trained ControlNet:
    what it bought. It is shown up to `control_points_max` of them."""
    decode_chunk_frames: Positive
    """Frames the VAE decodes at once; they see each other, so this changes the pictures."""


class Framer(Section):
    conditioning: FramerConditioning
    encode: FramerEncode
    objective: FramerObjective
    render: FramerRender
