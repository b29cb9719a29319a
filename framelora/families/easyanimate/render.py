"""Clips from EasyAnimate: its flow sampler with classifier-free guidance, from text, a first frame, or both ends."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import EasyAnimateTransformer3DModel
from numpy.typing import NDArray
from torch import Tensor

from framelora.compute import DTYPES
from framelora.families.base import ReadUnit, Window
from framelora.families.easyanimate.codec import load_scheduler, load_vae
from framelora.families.easyanimate.networks.memory import Placement
from framelora.families.easyanimate.networks.transformer import load_transformer
from framelora.families.easyanimate.spec import read_spec
from framelora.families.easyanimate.units import NEGATIVE, clip_unit, masked_details, masked_unit

if TYPE_CHECKING:
    from framelora.schema.easyanimate import EasyAnimate


class Renderer:
    """Samples clips with a denoiser, and decodes latents."""

    def __init__(self, base: Path, params: EasyAnimate, device: torch.device) -> None:
        self.base = base
        self.params = params
        self.device = device
        self.notes: list[str] = []
        self.spec = read_spec(base)
        self.dtype = DTYPES[params.render.dtype]
        mode = params.render.memory_mode
        if device.type == "cpu" and mode != "none":
            effect = "float8 weights are used, but nothing is offloaded" if "qfloat8" in mode else "without effect"
            self.notes.append(f"easyanimate.render.memory_mode: {mode}: there is no GPU: {effect}")
            mode = mode if "qfloat8" in mode else "none"
        self.placement = Placement(mode, device, self.dtype)
        self.vae = load_vae(base).eval().requires_grad_(False)

    def load_denoiser(self) -> EasyAnimateTransformer3DModel:
        """The base's denoiser, for the adapter to be put on; it goes to its device when it is used."""
        return load_transformer(self.base, self.dtype).eval().requires_grad_(False)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents `[C, f, h, w]`, as the VAE encodes them (not scaled), to RGB frames `[F, H, W, 3]`, 0..255."""
        with self.placement.at_work(self.vae):
            pixels = self.vae.decode(latents[None].to(self.device)).sample[0]
        levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()

    def through_vae(self, window: Window, read: ReadUnit) -> NDArray[np.uint8]:
        """The true frames of a window, encoded and decoded: no render of this base can be better."""
        return self.decode(read("latents", clip_unit(window, static=False))["mean"].float())

    def sample(
        self, transformer: torch.nn.Module, window: Window, read: ReadUnit, *, num_inference_steps: int, seed: int
    ) -> NDArray[np.uint8]:
        """Render a window's caption (and, on an inpaint base, from its first frame or both ends).

        Args:
            transformer: the denoiser, with or without an adapter.
            window: the window; its size and length are the clip's.
            read: gives its cached tensors.
            num_inference_steps: steps of the sampler.
            seed: seed of the initial noise.

        Returns:
            `[F, H, W, 3]` RGB, 0..255.
        """
        details = masked_details(window, "render", self.base, self.params)
        masked = read(*masked_unit(window, False, details[0]))["masked"].float() if details else None
        return self.sample_clip(
            transformer,
            read("text", window.content_id)["embeds"].float(),
            read("text", NEGATIVE)["embeds"].float(),
            masked,
            size=(window.num_frames, window.height, window.width),
            num_inference_steps=num_inference_steps,
            seed=seed,
        )

    @torch.no_grad()
    def sample_clip(
        self,
        transformer: torch.nn.Module,
        text: Tensor,
        negative: Tensor,
        masked: Tensor | None,
        *,
        size: tuple[int, int, int],
        num_inference_steps: int,
        seed: int,
    ) -> NDArray[np.uint8]:
        """Render a clip from embeddings, as diffusers' EasyAnimatePipeline and EasyAnimateInpaintPipeline do.

        Args:
            transformer: the denoiser, with or without an adapter.
            text: embedding of the prompt, `[L, D]`.
            negative: embedding of what guidance leads away from, `[L, D]`.
            masked: mask and masked-video latents `[1 + C, f, h, w]`, not scaled; None is text to video, for which an
                inpaint model gets zeros.
            size: frames (4n + 1), height, width.
            num_inference_steps: steps of the sampler.
            seed: seed of the initial noise.

        Returns:
            `[F, H, W, 3]` RGB, 0..255.
        """
        spec, guidance = self.spec, self.params.render.guidance_scale
        num_frames, height, width = size
        grid = (spec.latent_frames(num_frames), height // spec.spatial_ratio, width // spec.spatial_ratio)
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn((1, spec.latent_channels, *grid), generator=generator).to(self.device)
        guided = guidance > 1.0
        embeds = (torch.stack([negative, text]) if guided else text[None]).to(self.device)
        conditioning = {"encoder_hidden_states": embeds}
        if spec.inpaint:
            shown = torch.zeros((1 + spec.latent_channels, *grid)) if masked is None else masked * spec.scaling_factor
            conditioning["inpaint_latents"] = shown.to(self.device).expand(len(embeds), -1, -1, -1, -1)

        scheduler = copy.deepcopy(load_scheduler(self.base))
        scheduler.set_timesteps(num_inference_steps, device=self.device, mu=1)
        given = {name: tensor.to(self.dtype) for name, tensor in conditioning.items()}
        with self.placement.at_work(transformer, denoiser=True):
            for timestep in scheduler.timesteps:
                prediction = transformer(
                    latents.expand(len(embeds), -1, -1, -1, -1).to(self.dtype),
                    timestep.expand(len(embeds)),
                    **given,
                ).sample.float()
                if guided:
                    unconditional, conditional = prediction.chunk(2)
                    prediction = unconditional + guidance * (conditional - unconditional)
                latents = scheduler.step(prediction, timestep, latents).prev_sample
        return self.decode(latents[0] / spec.scaling_factor)
