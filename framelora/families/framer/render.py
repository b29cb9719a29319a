"""In-betweens from Framer: SVD's sampler with a first and a last frame (Framer's pipeline, without trajectories)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from numpy.typing import NDArray
from torch import Tensor

from framelora.families.base import ReadUnit, Window
from framelora.families.framer.codec import load_vae
from framelora.families.framer.networks.unet import FramerUNet, added_time_ids, bare_unet, load_unet
from framelora.families.framer.units import end_unit

if TYPE_CHECKING:
    from framelora.schema.framer import Framer


class Renderer:
    """Samples clips with a denoiser, and decodes latents."""

    def __init__(self, base: Path, params: Framer, device: torch.device) -> None:
        self.base = base
        self.params = params
        self.device = device
        self.vae = load_vae(base).to(device).eval().requires_grad_(False)

    def load_denoiser(self) -> FramerUNet:
        """The base's denoiser, for the adapter to be put on."""
        return load_unet(self.base).to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents `[F, C, h, w]`, as the VAE encodes them (not scaled), to RGB frames `[F, H, W, 3]`, 0..255."""
        chunks = latents.to(self.device).split(self.params.render.decode_chunk_frames)
        pixels = torch.cat([self.vae.decode(chunk, num_frames=len(chunk)).sample for chunk in chunks])
        levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def through_vae(self, window: Window, read: ReadUnit) -> NDArray[np.uint8]:
        """The true frames of a window, encoded and decoded: no render of this base can be better."""
        mean = read("latents", window.start_shot)["mean"].float()
        return self.decode(mean[window.start_frame : window.end_frame + 1])

    @torch.no_grad()
    def sample(
        self, unet: torch.nn.Module, window: Window, read: ReadUnit, *, num_inference_steps: int, seed: int
    ) -> NDArray[np.uint8]:
        """Render a clip between the two ends of a window.

        Guidance rises linearly along the frames from `min_guidance_scale` to `max_guidance_scale`; where both are 1
        the unconditional half is not computed. The unconditional half has zero CLIP tokens and zero end latents, but
        keeps mask and mask token.

        Args:
            unet: the denoiser, with or without an adapter.
            window: window or image pair.
            read: gives the cached tensors of its ends.
            num_inference_steps: steps of the sampler.
            seed: seed of the initial noise.

        Returns:
            `[F, H, W, 3]` RGB, 0..255.
        """
        first, last = (read("ends", end_unit(shot, frame)) for shot, frame in window.ends)
        first_latents, last_latents = (end["condition_latents"].float()[None].to(self.device) for end in (first, last))
        embeds = torch.stack([first["image_embeds"], last["image_embeds"]]).float()[None].to(self.device)
        guided = (self.params.render.min_guidance_scale, self.params.render.max_guidance_scale) != (1.0, 1.0)
        if guided:
            embeds = torch.cat([torch.zeros_like(embeds), embeds])
            first_latents = torch.cat([torch.zeros_like(first_latents), first_latents])
            last_latents = torch.cat([torch.zeros_like(last_latents), last_latents])
        condition = bare_unet(unet).condition(first_latents, last_latents, window.num_frames)
        conditioning = self.params.conditioning
        time_ids = added_time_ids(
            len(embeds), conditioning.fps, conditioning.motion_bucket_id, conditioning.noise_aug_strength
        ).to(self.device)
        guidance = (
            torch.linspace(
                self.params.render.min_guidance_scale, self.params.render.max_guidance_scale, window.num_frames
            )
            .view(1, -1, 1, 1, 1)
            .to(self.device)
        )

        scheduler = load_scheduler(self.base)
        scheduler.set_timesteps(num_inference_steps, device=self.device)
        channels, height, width = first_latents.shape[1:]
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((1, window.num_frames, channels, height, width), generator=generator)
        latents = noise.to(self.device) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, timestep).expand(len(embeds), -1, -1, -1, -1)
            prediction = unet(
                torch.cat([scaled, condition], dim=2),
                timestep,
                encoder_hidden_states=embeds,
                added_time_ids=time_ids,
            ).sample
            if guided:
                unconditional, conditional = prediction.chunk(2)
                prediction = unconditional + guidance * (conditional - unconditional)
            latents = scheduler.step(prediction, timestep, latents).prev_sample
        return self.decode(latents[0] / self.vae.config.scaling_factor)


def load_scheduler(base: Path) -> EulerDiscreteScheduler:
    """Load the sampler's configuration (`base/scheduler`)."""
    return EulerDiscreteScheduler.from_pretrained(base / "scheduler", local_files_only=True)
