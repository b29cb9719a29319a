"""Framer's sampler: from noise to the latents of a clip between two known ends.

The procedure is that of Framer's pipeline (aim-uofa/Framer, `pipelines/`), which is SVD's with a last frame, guidance
that varies along the frames, and a ControlNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import EDMDPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from framelora.families.framer.networks.unet import bare_unet

SCHEDULERS = ("euler", "dpm++", "lcm")


class LCMEulerScheduler(EulerDiscreteScheduler):
    """Latent consistency sampling on Euler's sigmas: each step denoises fully and adds new noise of the next sigma.

    Song et al. 2023 (arXiv 2303.01469, algorithm 1); Luo et al. 2023 (arXiv 2310.04378) call it LCM. diffusers'
    LCMScheduler is for models with discrete timesteps, and this one has continuous ones.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
    ) -> EulerDiscreteSchedulerOutput:
        """One step; `generator` draws the new noise."""
        denoised = super().step(model_output, timestep, sample).pred_original_sample
        noise = randn_tensor(denoised.shape, generator=generator, device=denoised.device, dtype=denoised.dtype)
        return EulerDiscreteSchedulerOutput(denoised + self.sigmas[self.step_index] * noise, denoised)


def load_scheduler(base: Path, name: str = "euler") -> Any:
    """The sampler of a base model's schedule (`base/scheduler`): its sigmas in the same places for every name.

    Args:
        base: folder of the base model.
        name: `euler`, `dpm++` (DPM-Solver++ of second order, multistep; Lu et al. 2022, arXiv 2211.01095), or `lcm`.

    Raises:
        ValueError: the name is none of these.
    """
    if name == "euler":
        return EulerDiscreteScheduler.from_pretrained(base / "scheduler", local_files_only=True)
    if name == "lcm":
        return LCMEulerScheduler.from_pretrained(base / "scheduler", local_files_only=True)
    if name != "dpm++":
        raise ValueError(f"there is no scheduler {name}: choose one of {', '.join(SCHEDULERS)}")
    config = EulerDiscreteScheduler.load_config(base / "scheduler", local_files_only=True)
    # diffusers' ordinary DPMSolverMultistepScheduler would give the UNet timesteps 0..999 and end at sigma 14.6: this
    # model knows log(sigma) / 4 up to sigma 700.
    return EDMDPMSolverMultistepScheduler(
        sigma_min=config["sigma_min"],
        sigma_max=config["sigma_max"],
        sigma_data=1.0,
        sigma_schedule="karras",
        prediction_type=config["prediction_type"],
        num_train_timesteps=config["num_train_timesteps"],
        solver_order=2,
    )


def guidance_scales(minimum: float, maximum: float, num_frames: int, middle_max: bool = False) -> Tensor:
    """Guidance of each frame `[F]`: rising linearly to the last frame, or to the middle and down again.

    Args:
        minimum: at the first frame (with `middle_max` also about the last).
        maximum: at the last frame (with `middle_max` about the middle one).
        num_frames: F.
        middle_max: Framer's `middle_max_guidance`: the ramp and its mirror image, shrunk to F values (linear, by pixel
            centres, so neither end is met exactly).
    """
    ramp = torch.linspace(minimum, maximum, num_frames)
    if not middle_max:
        return ramp
    there_and_back = torch.cat([ramp, ramp.flip(0)])[None, None]
    return nn.functional.interpolate(there_and_back, size=num_frames, mode="linear", align_corners=False)[0, 0]


@dataclass(frozen=True)
class Ends:
    """What the denoiser is told of the end frames of B clips."""

    first: Tensor  # condition latents `[B, C, h, w]`, not scaled
    last: Tensor  # the same
    image_embeds: Tensor  # CLIP embeddings of first and last `[B, 2, D]`

    def with_unconditional(self) -> Ends:
        """`[2B]`: the unconditional half, which has zeros for latents and tokens, before the conditional one."""
        halves = (torch.cat([torch.zeros_like(part), part]) for part in (self.first, self.last, self.image_embeds))
        return Ends(*halves)


@dataclass(frozen=True)
class Steering:
    """How a ControlNet takes part."""

    hints: Tensor  # heatmaps `[B, F, 3, H, W]`
    scale: float = 1.0  # factor of its residuals
    step_range: tuple[float, float] = (0.0, 1.0)  # from, and up to but without, these shares of the steps

    def covers(self, step: int, num_steps: int) -> bool:
        """Whether it takes part in step `step` (from 0) of `num_steps`."""
        return self.step_range[0] <= step / num_steps < self.step_range[1]


@torch.no_grad()
def sample_latents(
    denoiser: nn.Module,
    scheduler: Any,
    noise: Tensor,
    ends: Ends,
    time_ids: Tensor,
    *,
    num_inference_steps: int,
    guidance: Tensor,
    generator: torch.Generator | None = None,
    steering: Steering | None = None,
) -> Tensor:
    """Sample the latents of clips.

    The unconditional half keeps mask and mask token (and heatmaps); where all guidance is 1 it is not computed.

    Args:
        denoiser: a FramerUNet, with or without an adapter; for `steering` a SteeredUNet.
        scheduler: of `load_scheduler`.
        noise: standard normal `[B, F, C, h, w]`.
        ends: condition of B clips.
        time_ids: `[B, 3]` of `added_time_ids`.
        num_inference_steps: steps of the sampler.
        guidance: `[F]` of `guidance_scales`.
        generator: of the noise that a scheduler adds on the way (`lcm`).
        steering: ControlNet's part; None leaves it out.

    Returns:
        `[B, F, C, h, w]`, scaled by the VAE's factor as the denoiser's inputs are.
    """
    num_frames = noise.shape[1]
    guided = bool((guidance != 1).any())
    if guided:
        ends, time_ids = ends.with_unconditional(), torch.cat([time_ids, time_ids])
    scales = guidance.to(noise.device, noise.dtype).view(1, num_frames, 1, 1, 1)
    condition = bare_unet(denoiser).condition(ends.first, ends.last, num_frames)
    conditions = {"encoder_hidden_states": ends.image_embeds, "added_time_ids": time_ids}

    scheduler.set_timesteps(num_inference_steps, device=noise.device)
    latents = noise * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        inputs = torch.cat([scaled.repeat(2 if guided else 1, 1, 1, 1, 1), condition], dim=2)
        extra: dict[str, Any] = {}
        if steering is not None and steering.covers(step, num_inference_steps):
            hints = steering.hints.repeat(2 if guided else 1, 1, 1, 1, 1)
            extra = {"hints": hints, "conditioning_scale": steering.scale}
        prediction = denoiser(inputs, timestep, **conditions, **extra).sample
        if guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + scales * (conditional - unconditional)
        latents = scheduler.step(prediction, timestep, latents, generator=generator).prev_sample
    return latents
