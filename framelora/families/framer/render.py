"""In-betweens from Framer: SVD's sampler with a first and a last frame, along tracks where it is given a ControlNet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from framelora.families.base import ReadUnit, Window
from framelora.families.framer.codec import decode_latents, load_vae, to_signed
from framelora.families.framer.networks.controlnet import SteeredUNet, load_controlnet, starting_controlnet
from framelora.families.framer.networks.heatmap import heatmaps
from framelora.families.framer.networks.sampling import (
    Ends,
    Steering,
    guidance_scales,
    load_scheduler,
    sample_latents,
)
from framelora.families.framer.networks.unet import FramerUNet, added_time_ids, load_unet
from framelora.families.framer.spec import read_spec
from framelora.families.framer.units import end_unit

if TYPE_CHECKING:
    from framelora.schema.framer import Framer


class Renderer:
    """Samples clips with a denoiser, and decodes latents."""

    def __init__(self, base: Path, params: Framer, device: torch.device) -> None:
        self.notes: list[str] = []
        self.base = base
        self.params = params
        self.device = device
        self.vae = load_vae(base).to(device).eval().requires_grad_(False)

    def load_denoiser(self) -> FramerUNet:
        """The base's denoiser, for the adapter to be put on."""
        return load_unet(self.base).to(self.device).eval().requires_grad_(False)

    def load_controlnet(self, denoiser: FramerUNet, adapter: Path, seed: int) -> torch.nn.Module:
        """The ControlNet that was trained in full, or the one that an adapter was trained on.

        Args:
            denoiser: the base's denoiser, nothing put on it: a ControlNet that was new in training began with its
                weights.
            adapter: folder with `controlnet/` in it where it was trained in full.
            seed: `train.seed` of that training.
        """
        if (adapter / "controlnet").is_dir():
            network = load_controlnet(adapter)
        else:
            network = starting_controlnet(denoiser, self.base, torch.float32, read_spec(self.base).spatial_ratio, seed)
        return network.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents `[F, C, h, w]`, as the VAE encodes them (not scaled), to RGB frames `[F, H, W, 3]`, 0..255."""
        return decode_latents(self.vae, latents.to(self.device), self.params.render.decode_chunk_frames)

    def through_vae(self, window: Window, read: ReadUnit) -> NDArray[np.uint8]:
        """The true frames of a window, encoded and decoded: no render of this base can be better."""
        mean = read("latents", window.start_shot)["mean"].float()
        return self.decode(mean[window.start_frame : window.end_frame + 1])

    @torch.no_grad()
    def frames_through_vae(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Frames `[F, H, W, 3]` encoded and decoded, as a whole clip."""
        return self.decode(self.vae.encode(to_signed(frames).to(self.device)).latent_dist.mode())

    @torch.no_grad()
    def sample(
        self,
        unet: torch.nn.Module,
        window: Window,
        read: ReadUnit,
        *,
        num_inference_steps: int,
        seed: int,
        scheduler: str | None = None,
        controlnet: torch.nn.Module | None = None,
    ) -> NDArray[np.uint8]:
        """Render a clip between the two ends of a window, with the sampler and guidance of `framer.render`.

        Args:
            unet: the denoiser, with or without an adapter.
            window: window or image pair.
            read: gives the cached tensors of its ends.
            num_inference_steps: steps of the sampler.
            seed: seed of the initial noise.
            scheduler: name of the sampler; None takes that of the parameters.
            controlnet: steers the clip along the window's own tracks; None leaves them out.

        Returns:
            `[F, H, W, 3]` RGB, 0..255.
        """
        first, last = (read("ends", end_unit(shot, frame)) for shot, frame in window.ends)
        ends = Ends(
            first["condition_latents"].float()[None].to(self.device),
            last["condition_latents"].float()[None].to(self.device),
            torch.stack([first["image_embeds"], last["image_embeds"]]).float()[None].to(self.device),
        )
        conditioning, params = self.params.conditioning, self.params.render
        time_ids = added_time_ids(1, conditioning.fps, conditioning.motion_bucket_id, conditioning.noise_aug_strength)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((1, window.num_frames, *ends.first.shape[1:]), generator=generator)
        steering = None
        if controlnet is not None:
            unet, steering = SteeredUNet(unet, controlnet), Steering(self.hints(window, read))
        latents = sample_latents(
            unet,
            load_scheduler(self.base, scheduler or params.scheduler),
            noise.to(self.device),
            ends,
            time_ids.to(self.device),
            num_inference_steps=num_inference_steps,
            guidance=guidance_scales(
                params.min_guidance_scale, params.max_guidance_scale, window.num_frames, params.middle_max_guidance
            ),
            generator=generator,
            steering=steering,
        )
        return self.decode(latents[0] / self.vae.config.scaling_factor)

    def hints(self, window: Window, read: ReadUnit) -> Tensor:
        """Heatmaps `[1, F, 3, H, W]` of a window's best tracks: as many as the ControlNet was shown at most."""
        cell, objective = read("tracks", window.pair), self.params.objective
        found = cell["visible"][0].bool().nonzero().flatten()[: objective.control_points_max]
        pictures = heatmaps(
            cell["tracks"][:, found],
            cell["visible"][:, found].bool(),
            width=window.width,
            height=window.height,
            side=objective.heatmap_side,
        )
        return pictures[None].to(self.device)
