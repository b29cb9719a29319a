"""Framer's sampler and pipeline, against its procedure written out step by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as svd
from PIL import Image

from framelora.families.framer.codec import condition_latents, load_vae, resize_antialiased
from framelora.families.framer.networks.controlnet import new_controlnet
from framelora.families.framer.networks.heatmap import heatmaps
from framelora.families.framer.networks.sampling import SCHEDULERS, Steering, guidance_scales, load_scheduler
from framelora.families.framer.networks.tracks import interpolate_tracks
from framelora.families.framer.networks.unet import load_unet
from framelora.families.framer.pipeline import FramerPipeline

BASE = REPOSITORY / "bases/tiny-framer"


class TestSchedulers:
    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_all_see_the_same_sigmas_and_tell_the_unet_a_quarter_of_their_log(self, name: str) -> None:
        scheduler = load_scheduler(BASE, name)
        scheduler.set_timesteps(4)
        rho = [(1 - i / 3) * 700 ** (1 / 7) + i / 3 * 0.002 ** (1 / 7) for i in range(4)]
        expected = [value**7 for value in rho] + [0.0]
        np.testing.assert_allclose(np.asarray(scheduler.sigmas), expected, rtol=2e-3)
        np.testing.assert_allclose(
            np.asarray(scheduler.timesteps), [0.25 * math.log(sigma) for sigma in expected[:-1]], atol=1e-3
        )
        sample = torch.randn(1, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
        scaled = scheduler.scale_model_input(sample, scheduler.timesteps[0])
        torch.testing.assert_close(scaled, sample / math.sqrt(700**2 + 1), rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_all_find_the_data_when_the_network_knows_it(self, name: str) -> None:
        """A network that answers with the v of the true x0 (v = (eps - sigma x0) / sqrt(sigma^2 + 1)) ends in x0."""
        scheduler = load_scheduler(BASE, name)
        scheduler.set_timesteps(6)
        generator = torch.Generator().manual_seed(1)
        truth = torch.randn(1, 3, 4, 2, 2, generator=generator)
        x = torch.randn(truth.shape, generator=generator) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            sigma = math.exp(4 * timestep.item())
            scheduler.scale_model_input(x, timestep)
            v = ((x - truth) / sigma - sigma * truth) / math.sqrt(sigma**2 + 1)
            x = scheduler.step(v, timestep, x, generator=generator).prev_sample
        torch.testing.assert_close(x, truth, rtol=1e-3, atol=2e-2)

    def test_lcm_denoises_fully_and_adds_noise_of_the_next_sigma(self) -> None:
        scheduler = load_scheduler(BASE, "lcm")
        scheduler.set_timesteps(3)
        x, prediction = (torch.randn(1, 2, 4, 2, 2, generator=torch.Generator().manual_seed(s)) for s in (2, 3))
        sigma, following = scheduler.sigmas[0].item(), scheduler.sigmas[1].item()
        scheduler.scale_model_input(x, scheduler.timesteps[0])
        got = scheduler.step(prediction, scheduler.timesteps[0], x, generator=torch.Generator().manual_seed(4))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
        denoised = x / (sigma**2 + 1) - prediction * sigma / math.sqrt(sigma**2 + 1)
        torch.testing.assert_close(got.prev_sample, denoised + following * noise, rtol=1e-4, atol=1e-4)

    def test_an_unknown_name_is_refused(self) -> None:
        with pytest.raises(ValueError, match="euler, dpm"):
            load_scheduler(BASE, "ddim")


class TestGuidance:
    def test_it_rises_linearly_along_the_frames(self) -> None:
        assert guidance_scales(1.0, 3.0, 5).tolist() == [1, 1.5, 2, 2.5, 3]

    @pytest.mark.parametrize("frames", [3, 5, 14])
    def test_with_its_highest_value_in_the_middle(self, frames: int) -> None:
        """Every frame takes the mean of two neighbours of the ramp followed by its mirror image."""
        ramp = [1 + 2 * i / (frames - 1) for i in range(frames)]
        double = ramp + ramp[::-1]
        expected = [(double[2 * i] + double[2 * i + 1]) / 2 for i in range(frames)]
        np.testing.assert_allclose(guidance_scales(1.0, 3.0, frames, middle_max=True), expected, rtol=1e-5)

    def test_the_controlnet_takes_part_from_a_share_of_the_steps_up_to_another(self) -> None:
        steering = Steering(torch.zeros(1), 1.0, (0.2, 0.6))
        assert [step for step in range(10) if steering.covers(step, 10)] == [2, 3, 4, 5]
        assert all(Steering(torch.zeros(1)).covers(step, 7) for step in range(7))


class TestPreparation:
    @pytest.mark.parametrize("shape", [(64, 96), (320, 512), (20, 30), (224, 224)])
    def test_the_resize_for_clip_is_that_of_diffusers_svd_pipeline(self, shape: tuple[int, int]) -> None:
        pixels = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        expected = svd._resize_with_antialiasing(pixels, (48, 32))
        torch.testing.assert_close(resize_antialiased(pixels, 48, 32), expected, rtol=1e-5, atol=1e-5)

    def test_condition_latents_are_the_mode_of_the_noisy_picture_and_not_scaled(self) -> None:
        """The guide's code samples the posterior and scales it, and adds no noise: FACTS of its training, not ours."""
        vae = load_vae(BASE).eval()
        pixels, noise = (torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
        with torch.no_grad():
            got = condition_latents(vae, pixels, noise, 0.1)
            torch.testing.assert_close(got, vae.encode(pixels + 0.1 * noise).latent_dist.mean)
            assert torch.equal(got, condition_latents(vae, pixels, noise, 0.1))


def picture(seed: int, width: int = 40, height: int = 28) -> Image.Image:
    """Smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 10, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a ControlNet whose residuals are not zero."""
    folder = tmp_path_factory.mktemp("base")
    for part in BASE.iterdir():
        (folder / part.name).symlink_to(part)
    network = new_controlnet(load_unet(BASE), vae_factor=4, seed=0)
    torch.manual_seed(1)
    for layer in [*network.controlnet_down_blocks, network.controlnet_mid_block]:
        torch.nn.init.normal_(layer.weight, std=0.05)
    torch.nn.init.normal_(network.controlnet_cond_embedding.conv_out.weight, std=0.05)
    network.save_pretrained(folder / "controlnet")
    return folder


@pytest.fixture(scope="module")
def pipeline(base: Path) -> FramerPipeline:
    return FramerPipeline(base, controlnet=True)


class TestPipeline:
    @pytest.mark.parametrize(
        "options",
        [
            {"max_guidance_scale": 1.0},
            {"max_guidance_scale": 3.0},
            {"max_guidance_scale": 2.5, "middle_max_guidance": True},
            {
                "max_guidance_scale": 3.0,
                "controlnet_cond_scale": 0.5,
                "controlnet_step_range": (0.25, 0.75),
                "steer": 1,
            },
        ],
    )
    def test_it_equals_framers_procedure_written_out(self, pipeline: FramerPipeline, options: dict[str, Any]) -> None:
        width, height, frames, steps = 32, 24, 4, 4
        start, end = picture(1), picture(2)
        steer = options.pop("steer", 0)
        tracks = interpolate_tracks([[(4, 4), (20, 12)], [(16, 10)]], frames) if steer else None
        got = pipeline(
            start,
            end,
            width=width,
            height=height,
            num_frames=frames,
            num_inference_steps=steps,
            fps=7,
            motion_bucket_id=100,
            noise_aug_strength=0.05,
            point_tracks=tracks,
            heatmap_side=6,
            generator=torch.Generator().manual_seed(9),
            output_type="latent",
            **options,
        )

        generator = torch.Generator().manual_seed(9)
        unet: Any = pipeline.unet
        ends, tokens = [], []
        for image in (start, end):
            pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), np.float32) / 127.5 - 1
            tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
            tensor = tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            with torch.no_grad():
                ends.append(pipeline.vae.encode(tensor).latent_dist.mode())
            whole = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
            seen = (svd._resize_with_antialiasing(whole, (32, 32)) + 1) / 2
            statistics = [
                torch.tensor(pipeline.clip_settings[name]).view(3, 1, 1) for name in ("image_mean", "image_std")
            ]
            with torch.no_grad():
                tokens.append(pipeline.image_encoder((seen - statistics[0]) / statistics[1]).image_embeds)
        x = torch.randn((1, frames, 8, 6, 8), generator=generator) * math.sqrt(700**2 + 1)
        peak = options["max_guidance_scale"]
        scales = [1 + (peak - 1) * i / 3 for i in range(4)]
        if options.get("middle_max_guidance"):
            double = scales + scales[::-1]
            scales = [(double[2 * i] + double[2 * i + 1]) / 2 for i in range(4)]
        rho = [((1 - i / 3) * 700 ** (1 / 7) + i / 3 * 0.002 ** (1 / 7)) ** 7 for i in range(4)] + [0.0]

        for step in range(steps):
            sigma = rho[step]
            halves = []
            for keep in (0.0, 1.0):
                row = torch.ones(frames, 9, 6, 8)
                row[:, :8] = unet.mask_token.detach()[0]
                row[0, :8], row[-1, :8] = keep * ends[0][0], keep * ends[1][0]
                row[0, 8] = row[-1, 8] = 0
                sample = torch.cat([x[0] / math.sqrt(sigma**2 + 1), row], dim=1)[None]
                conditions = {
                    "encoder_hidden_states": keep * torch.stack([tokens[0][0], tokens[1][0]])[None],
                    "added_time_ids": torch.tensor([[6.0, 100.0, 0.05]]),
                }
                time = torch.tensor(0.25 * math.log(sigma))
                extra: dict[str, Any] = {}
                with torch.no_grad():
                    if steer and step in (1, 2):
                        maps = heatmaps(tracks, width=width, height=height, side=6)[None]
                        down, mid = pipeline.controlnet(sample, time, **conditions, controlnet_cond=maps)  # type: ignore[misc]
                        extra["down_block_additional_residuals"] = [0.5 * part for part in down]
                        extra["mid_block_additional_residual"] = 0.5 * mid
                    halves.append(unet(sample, time, **conditions, **extra).sample)
            guided = halves[0] + torch.tensor(scales).view(1, -1, 1, 1, 1) * (halves[1] - halves[0])
            denoised = x / (sigma**2 + 1) - guided * sigma / math.sqrt(sigma**2 + 1)
            x = x + (rho[step + 1] - sigma) * (x - denoised) / sigma
        torch.testing.assert_close(got, x, rtol=1e-3, atol=2e-3)

    def test_a_controlnet_of_zero_strength_changes_nothing(self, pipeline: FramerPipeline) -> None:
        tracks = interpolate_tracks([[(4, 4), (20, 12)]], 3)
        clips = [
            pipeline(
                picture(1),
                picture(2),
                width=32,
                height=24,
                num_frames=3,
                num_inference_steps=2,
                point_tracks=given,
                controlnet_cond_scale=scale,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            )
            for given, scale in ((None, 1.0), (tracks, 0.0), (tracks, 1.0))
        ]
        torch.testing.assert_close(clips[0], clips[1], rtol=1e-5, atol=1e-5)
        assert (clips[0] - clips[2]).abs().max() > 0.01  # type: ignore[operator]

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"num_frames": 2}, "at least 3"),
            ({"width": 33}, "multiple of 4"),
            ({"point_tracks": torch.zeros(4, 1, 2)}, "3 frames, points, 2"),
            ({"scheduler": "ddim"}, "no scheduler ddim"),
            ({"output_type": "pil"}, "output_type"),
        ],
    )
    def test_what_the_model_cannot_take_is_refused(
        self, pipeline: FramerPipeline, arguments: dict[str, Any], match: str
    ) -> None:
        given = {"width": 32, "height": 24, "num_frames": 3, "num_inference_steps": 1} | arguments
        with pytest.raises(ValueError, match=match):
            pipeline(picture(1), picture(2), **given)

    def test_tracks_without_controlnet_are_refused(self) -> None:
        with pytest.raises(ValueError, match="controlnet=True"):
            FramerPipeline(BASE)(
                picture(1), picture(2), width=32, height=24, num_frames=3, point_tracks=torch.zeros(3, 1, 2)
            )
