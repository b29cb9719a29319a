"""Two images in, a clip out: Framer's pipeline on pictures, outside the graph.

`FramerPipeline` takes the arguments of Framer's own pipeline (aim-uofa/Framer,
`StableVideoDiffusionInterpControlPipeline.__call__`) under the same names, and draws its random numbers in the same
order: noise of the first image, noise of the last image, initial latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from framelora.families.framer.codec import (
    clip_pixels,
    condition_latents,
    decode_latents,
    load_image_encoder,
    load_vae,
    to_signed,
)
from framelora.families.framer.networks.controlnet import SteeredUNet, load_controlnet
from framelora.families.framer.networks.heatmap import SIDE, heatmaps
from framelora.families.framer.networks.sampling import Ends, Steering, guidance_scales, load_scheduler, sample_latents
from framelora.families.framer.networks.tracks import interpolate_tracks
from framelora.families.framer.networks.unet import added_time_ids, load_unet

__all__ = ["FramerPipeline", "Pipeline", "interpolate_tracks"]

# What a base model's folder holds at least.
FILES = (
    "unet/config.json",
    "vae/config.json",
    "image_encoder/config.json",
    "feature_extractor/preprocessor_config.json",
    "scheduler/scheduler_config.json",
)
MIN_FRAMES = 3  # with two there is nothing between the ends


class FramerPipeline:
    """Renders clips between two images.

    Attributes:
        unet: the denoiser; put an adapter on it by assigning what `adapters.lora.load_adapter` returns.
        controlnet: the trajectory ControlNet, or None.
    """

    def __init__(
        self,
        base: Path,
        *,
        controlnet: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            base: folder of a base model.
            controlnet: load its trajectory ControlNet, for `point_tracks`.
            device: where to compute; None means the CPU.
            dtype: of the denoiser and the ControlNet. The VAE and CLIP stay fp32 (half precision gives black frames).

        Raises:
            FileNotFoundError: `controlnet` is asked for and the base has none.
        """
        self.base = base
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.unet: nn.Module = load_unet(base, dtype).to(self.device).eval().requires_grad_(False)
        self.controlnet: nn.Module | None = None
        if controlnet:
            self.use_controlnet(base)
        self.vae = load_vae(base).to(self.device).eval().requires_grad_(False)
        encoder, self.clip_settings = load_image_encoder(base)
        self.image_encoder = encoder.to(self.device).eval().requires_grad_(False)

    def use_controlnet(self, folder: Path) -> None:
        """Load the trajectory ControlNet in `folder/controlnet`. Raises `FileNotFoundError` when there is none."""
        self.controlnet = load_controlnet(folder, self.dtype).to(self.device).eval().requires_grad_(False)

    @property
    def vae_factor(self) -> int:
        """Pixels to a latent along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image,
        image_end: Image.Image,
        *,
        height: int,
        width: int,
        num_frames: int,
        num_inference_steps: int = 30,
        scheduler: str = "euler",
        min_guidance_scale: float = 1.0,
        max_guidance_scale: float = 3.0,
        middle_max_guidance: bool = False,
        fps: int = 7,
        motion_bucket_id: int = 127,
        noise_aug_strength: float = 0.02,
        point_tracks: Tensor | NDArray[np.floating] | None = None,
        heatmap_side: int = SIDE,
        controlnet_cond_scale: float = 1.0,
        controlnet_step_range: Sequence[float] = (0.0, 1.0),
        decode_chunk_size: int | None = None,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "np",
    ) -> NDArray[np.uint8] | Tensor:
        """Render the frames between two images.

        Args:
            image, image_end: first and last frame. CLIP sees them as they are; for the VAE they are scaled to the size
                of the clip (Lanczos, aspect not kept), if they differ.
            height, width: of the clip in pixels; multiples of what the VAE shrinks by.
            num_frames: frames of the clip with both ends, at least 3.
            num_inference_steps, scheduler: see `networks.sampling.load_scheduler`.
            min_guidance_scale, max_guidance_scale, middle_max_guidance: see `networks.sampling.guidance_scales`.
            fps: told to the UNet, which gets fps - 1.
            motion_bucket_id, noise_aug_strength: told to the UNet; the strength also is the noise on both images.
            point_tracks: `[F, P, 2]`, x and y in pixels of the clip; None leaves the ControlNet out.
            heatmap_side: half the side of a point's box in the heatmaps, in pixels (Framer: 20).
            controlnet_cond_scale: factor of the ControlNet's residuals.
            controlnet_step_range: the shares of the steps between which the ControlNet takes part.
            decode_chunk_size: frames the VAE decodes at once; None means all.
            generator: of all noise, on the CPU; None is torch's own.
            latents: initial noise `[1, F, C, h, w]` (standard normal); None draws it.
            output_type: `np` for frames, `latent` for latents.

        Returns:
            RGB frames `[F, H, W, 3]`, 0..255; or latents `[1, F, C, h, w]`, scaled by the VAE's factor.

        Raises:
            ValueError: a size, a number of frames, tracks or another argument that the model can't take.
        """
        self._check(height, width, num_frames, point_tracks, output_type)
        ends = self._encode(image, image_end, height, width, noise_aug_strength, generator)
        shape = (1, num_frames, ends.first.shape[1], height // self.vae_factor, width // self.vae_factor)
        noise = torch.randn(shape, generator=generator) if latents is None else latents
        denoiser, steering = self.unet, None
        if point_tracks is not None and self.controlnet is not None:
            hints = heatmaps(point_tracks, width=width, height=height, side=heatmap_side)
            low, high = controlnet_step_range
            steering = Steering(hints[None].to(self.device, self.dtype), controlnet_cond_scale, (low, high))
            denoiser = SteeredUNet(self.unet, self.controlnet)
        sampled = sample_latents(
            denoiser,
            load_scheduler(self.base, scheduler),
            noise.to(self.device, self.dtype),
            ends,
            added_time_ids(1, fps, motion_bucket_id, noise_aug_strength).to(self.device),
            num_inference_steps=num_inference_steps,
            guidance=guidance_scales(min_guidance_scale, max_guidance_scale, num_frames, middle_max_guidance),
            generator=generator,
            steering=steering,
        )
        if output_type == "latent":
            return sampled
        unscaled = sampled[0].float() / self.vae.config.scaling_factor
        return decode_latents(self.vae, unscaled, decode_chunk_size or num_frames)

    def _check(self, height: int, width: int, num_frames: int, tracks: Any, output_type: str) -> None:
        if height % self.vae_factor or width % self.vae_factor or height < 1 or width < 1:
            raise ValueError(f"the size {width}x{height} must be a multiple of {self.vae_factor} on both sides")
        if num_frames < MIN_FRAMES:
            raise ValueError(f"{num_frames} frames leave nothing between the ends: ask for at least {MIN_FRAMES}")
        if output_type not in ("np", "latent"):
            raise ValueError(f"there is no output_type {output_type}: np or latent")
        if tracks is None:
            return
        if self.controlnet is None:
            raise ValueError("tracks need the ControlNet: make the pipeline with controlnet=True")
        if tracks.ndim != 3 or tracks.shape[0] != num_frames or tracks.shape[2] != 2:
            raise ValueError(f"tracks of shape {tuple(tracks.shape)} are not [{num_frames} frames, points, 2]")

    def _encode(
        self,
        image: Image.Image,
        image_end: Image.Image,
        height: int,
        width: int,
        noise_aug_strength: float,
        generator: torch.Generator | None,
    ) -> Ends:
        processor = VaeImageProcessor(vae_scale_factor=self.vae_factor)
        latents, embeds = [], []
        for picture in (image.convert("RGB"), image_end.convert("RGB")):
            pixels = processor.preprocess(picture, height=height, width=width)
            noise = torch.randn(pixels.shape, generator=generator)
            pair = (pixels.to(self.device), noise.to(self.device))
            latents.append(condition_latents(self.vae, *pair, noise_aug_strength).to(self.dtype))
            whole = to_signed(np.array(picture)[None]).to(self.device)
            side = self.image_encoder.config.image_size
            embeds.append(self.image_encoder(clip_pixels(whole, side, self.clip_settings)).image_embeds)
        return Ends(latents[0], latents[1], torch.stack(embeds, dim=1).to(self.dtype))


Pipeline = FramerPipeline  # what every family calls its own
