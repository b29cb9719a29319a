"""Framer's networks and objective, against computations written out from the formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY

from framelora.adapters.folder import adapter_files
from framelora.adapters.lora import adapter_tensors, add_lora, config_dict, load_adapter, set_weight
from framelora.families.base import EncodeUnit, Window
from framelora.families.framer import encode, loss, render
from framelora.families.framer.networks.unet import DEFAULT_LORA_TARGETS, FramerUNet, added_time_ids, load_unet
from framelora.families.framer.render import load_scheduler
from framelora.families.framer.spec import read_spec
from framelora.params import Params, load_params

BASE = REPOSITORY / "bases/tiny-framer"


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(REPOSITORY / "params.yaml")


@pytest.fixture(scope="module")
def unet() -> FramerUNet:
    return load_unet(BASE).eval().requires_grad_(False)


def batch_of(size: int, frames: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "mean": normal(size, frames, 8, 8, 8),
        "std": 0.1 * normal(size, frames, 8, 8, 8).abs(),
        "first": normal(size, 8, 8, 8),
        "last": normal(size, 8, 8, 8),
        "image_embeds": normal(size, 2, 32),
    }


def without_dropout(params: Params, p: float = 0.0):  # type: ignore[no-untyped-def]
    objective = params.framer.objective.model_copy(update={"conditioning_dropout_prob": p})
    return params.framer.model_copy(update={"objective": objective})


class TestPublishedCheckpoint:
    @pytest.fixture
    def published(self) -> dict[str, Any]:
        keys: dict[str, Any] = json.loads((REPOSITORY / "tests/data/framer_unet_keys.json").read_text())
        return keys

    def test_names_and_shapes_at_full_size_are_those_of_the_checkpoint(self, published: dict[str, Any]) -> None:
        with torch.device("meta"):
            full = FramerUNet(**published["config"])
        assert {name: list(tensor.shape) for name, tensor in full.state_dict().items()} == published["shapes"]

    def test_rank_64_on_the_default_targets_trains_52_million_parameters(
        self, published: dict[str, Any], params: Params
    ) -> None:
        with torch.device("meta"):
            full = FramerUNet(**published["config"])
            adapter = params.adapter.model_copy(update={"rank": 64, "alpha": 64.0})
            model = add_lora(full, adapter, DEFAULT_LORA_TARGETS, seed=0)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert sum(parameter.numel() for parameter in trained) == 52_117_504
        assert len(trained) == 2 * 352


class TestObjective:
    def test_it_equals_the_textbook_form_of_the_edm_loss(self, unet: FramerUNet, params: Params) -> None:
        """mean[(1 + s^2) / s^2 (x0_hat - x0)^2] with x0_hat = c_skip x + c_out F, in float64."""
        framer, batch, seeds = without_dropout(params), batch_of(3), [11, 12, 13]
        got = loss.loss(unet, batch, seeds, BASE, framer)
        for item, seed in enumerate(seeds):
            posterior_noise, noise, sigma, _ = loss.draw(seed, batch["mean"].shape[1:], framer)
            x0 = (batch["mean"][item] + batch["std"][item] * posterior_noise) * read_spec(BASE).scaling_factor
            x = x0 + sigma * noise
            mask = torch.ones(4, 1, 8, 8)
            mask[0] = mask[3] = 0
            token = unet.mask_token.detach()[0, 0].expand(8, 8, 8)
            condition = torch.stack([batch["first"][item], token, token, batch["last"][item]])
            prediction = unet(
                torch.cat([x / (sigma**2 + 1).sqrt(), condition, mask], dim=1)[None],
                0.25 * sigma.log(),
                encoder_hidden_states=batch["image_embeds"][item][None],
                added_time_ids=torch.tensor([[6.0, 127.0, 0.02]]),
            ).sample[0]
            s = sigma.double()
            c_skip, c_out = 1 / (s**2 + 1), -s / (s**2 + 1).sqrt()
            denoised = c_skip * x.double() + c_out * prediction.double()
            expected = ((1 + s**2) / s**2 * (denoised - x0.double()) ** 2).mean()
            assert got[item].item() == pytest.approx(expected.item(), rel=2e-4)

    def test_sigma_is_log_normal(self, params: Params) -> None:
        objective = params.framer.objective.model_copy(update={"sigma_log_mean": 0.7, "sigma_log_std": 1.6})
        framer = params.framer.model_copy(update={"objective": objective})
        logs = torch.stack([loss.draw(seed, torch.Size((1,)), framer)[2] for seed in range(4000)]).log()
        assert logs.mean().item() == pytest.approx(0.7, abs=0.08)
        assert logs.std().item() == pytest.approx(1.6, abs=0.08)

    def test_an_items_loss_depends_on_its_own_seed_and_not_on_its_neighbours(
        self, unet: FramerUNet, params: Params
    ) -> None:
        batch = batch_of(3)
        together = loss.loss(unet, batch, [1, 2, 3], BASE, params.framer)
        alone = [
            loss.loss(unet, {k: v[i : i + 1] for k, v in batch.items()}, [i + 1], BASE, params.framer) for i in range(3)
        ]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)

    def test_dropout_takes_clip_below_2p_and_latents_from_p_to_3p(
        self, unet: FramerUNet, params: Params, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, torch.Tensor] = {}
        real = FramerUNet.forward

        def forward(self, sample, *args, **kwargs):  # type: ignore[no-untyped-def]
            seen["condition"], seen["embeds"] = sample[:, :, 8:16], kwargs["encoder_hidden_states"]
            return real(self, sample, *args, **kwargs)

        monkeypatch.setattr(FramerUNet, "forward", forward)
        framer, batch = without_dropout(params, 0.2), batch_of(1)
        drawn = {0.1: (False, True), 0.3: (False, False), 0.5: (True, False), 0.7: (True, True)}
        plain = loss.draw(5, batch["mean"].shape[1:], framer)
        for uniform, (clip_kept, latents_kept) in drawn.items():
            monkeypatch.setattr(loss, "draw", lambda *_, u=uniform: (*plain[:3], torch.tensor(u)))
            loss.loss(unet, batch, [5], BASE, framer)
            assert bool(seen["embeds"].any()) is clip_kept
            assert bool(seen["condition"][0, [0, -1]].any()) is latents_kept
            assert torch.equal(seen["condition"][0, 1], unet.mask_token.detach()[0, 0].expand(8, 8, 8))

    def test_time_ids_are_fps_minus_one_bucket_and_noise(self) -> None:
        assert added_time_ids(2, 7, 127, 0.02).tolist() == [[6, 127, pytest.approx(0.02)]] * 2


@pytest.fixture(scope="module")
def encoder(params: Params) -> encode.Encoder:
    return encode.Encoder(BASE, params.framer, torch.device("cpu"))


class TestEncoding:
    @pytest.fixture
    def frames(self):  # type: ignore[no-untyped-def]
        return (torch.rand(5, 64, 96, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()

    def test_latents_are_the_posterior_of_each_frame_alone(self, encoder: encode.Encoder, frames) -> None:  # type: ignore[no-untyped-def]
        tensors = encoder.encode(EncodeUnit("latents", "s", "s"), frames)
        one = encoder.vae.encode(torch.from_numpy(frames[2:3]).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
        torch.testing.assert_close(tensors["mean"][2], one.mean[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(tensors["std"][2], one.std[0], rtol=1e-4, atol=1e-4)

    def test_condition_latents_are_the_unscaled_mode_of_the_noisy_frame(
        self,
        encoder: encode.Encoder,
        frames,
        params: Params,  # type: ignore[no-untyped-def]
    ) -> None:
        tensors = encoder.encode(EncodeUnit("ends", "s@0", "s", (0,)), frames[:1])
        clean = encoder.vae.encode(torch.from_numpy(frames[:1]).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()[0]
        difference = (tensors["condition_latents"] - clean).std() / clean.std()
        assert 0.0005 < difference < 0.3  # noise of 0.02 in pixels: near the clean mode, and not it
        again = encoder.encode(EncodeUnit("ends", "s@0", "s", (0,)), frames[:1])
        assert torch.equal(again["condition_latents"], tensors["condition_latents"])

    def test_clip_sees_pixels_normalised_with_its_own_statistics(self, encoder: encode.Encoder) -> None:
        grey = encoder.clip_pixels(torch.zeros(1, 3, 64, 96))  # mid-grey in [-1, 1]
        expected = (0.5 - torch.tensor(encoder.clip_settings["image_mean"])) / torch.tensor(
            encoder.clip_settings["image_std"]
        )
        side = encoder.image_encoder.config.image_size
        torch.testing.assert_close(grey, expected.view(1, 3, 1, 1).expand(1, 3, side, side))


class TestAdapter:
    def test_weight_zero_is_the_base_and_scales_multiply_alpha_over_rank(self, params: Params, tmp_path: Path) -> None:
        adapter = params.adapter.model_copy(update={"rank": 4, "alpha": 8.0})
        model = add_lora(load_unet(BASE), adapter, DEFAULT_LORA_TARGETS, seed=0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        files = adapter_files(adapter_tensors(model), config_dict(model), {"cell": "x"})
        assert files == adapter_files(adapter_tensors(model), config_dict(model), {"cell": "x"})
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        loaded = load_adapter(load_unet(BASE).eval(), tmp_path)
        inputs = (torch.randn(1, 3, 17, 8, 8), torch.tensor(0.3))
        more = {"encoder_hidden_states": torch.randn(1, 2, 32), "added_time_ids": added_time_ids(1, 7, 127, 0.02)}
        with torch.no_grad():
            base = load_unet(BASE).eval()(*inputs, **more).sample
            set_weight(loaded, 0.0)
            torch.testing.assert_close(loaded(*inputs, **more).sample, base, rtol=1e-5, atol=1e-5)
            for weight in (1.0, 0.15):
                set_weight(loaded, weight)
                merged = load_unet(BASE).eval()
                for name, down in adapter_tensors(loaded).items():
                    if "lora_A" in name:
                        layer = merged.get_submodule(name.split(".lora_A")[0].removeprefix("base_model.model."))
                        up = adapter_tensors(loaded)[name.replace("lora_A", "lora_B")]
                        layer.weight += weight * 8.0 / 4 * up @ down
                torch.testing.assert_close(
                    loaded(*inputs, **more).sample, merged(*inputs, **more).sample, rtol=1e-3, atol=1e-4
                )

    def test_an_unknown_target_is_refused_by_name(self, params: Params) -> None:
        adapter = params.adapter.model_copy(update={"target_modules": ["to_q", "to_nowhere"]})
        with pytest.raises(ValueError, match="to_nowhere"):
            add_lora(load_unet(BASE), adapter, DEFAULT_LORA_TARGETS, seed=0)

    def test_files_hold_no_sets_and_one_metadata_key(self, params: Params) -> None:
        model = add_lora(load_unet(BASE), params.adapter, DEFAULT_LORA_TARGETS, seed=0)
        files = adapter_files(adapter_tensors(model), config_dict(model), {"b": 1, "a": 2})
        config = json.loads(files["adapter_config.json"])
        assert config["target_modules"] == sorted(DEFAULT_LORA_TARGETS)
        weights = files["adapter_model.safetensors"]
        header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
        assert header["__metadata__"] == {"framelora": '{"a":2,"b":1}'}


class TestRender:
    def test_the_samplers_timesteps_are_a_quarter_of_log_sigma(self) -> None:
        scheduler = load_scheduler(BASE)
        scheduler.set_timesteps(4)
        assert scheduler.sigmas[0].item() == pytest.approx(700, rel=1e-3)
        for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            assert timestep.item() == pytest.approx(0.25 * math.log(sigma.item()), abs=1e-4)

    def test_frames_of_a_baseline_go_through_the_vae_as_the_truth_does(
        self, params: Params, encoder: encode.Encoder
    ) -> None:
        renderer = render.Renderer(BASE, params.framer, torch.device("cpu"))
        frames = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
        latents = encoder.encode(EncodeUnit("latents", "s", "s"), frames)
        truth = renderer.through_vae(Window("p", "c", "window", "s", 0, "s", 2, 3, 24, 16), lambda *_: latents)
        np.testing.assert_array_equal(renderer.frames_through_vae(frames), truth)

    @pytest.mark.parametrize("guidance", [(1.0, 1.0, False), (1.0, 3.0, False), (1.0, 9.0, True)])
    def test_one_step_is_the_denoised_estimate_with_guidance_rising_along_frames(
        self, unet: FramerUNet, params: Params, guidance: tuple[float, float, bool]
    ) -> None:
        """Independent computation of a one-step sample: x0_hat = c_skip x + c_out F at sigma 700."""
        section = params.framer.render.model_copy(
            update=dict(zip(("min_guidance_scale", "max_guidance_scale", "middle_max_guidance"), guidance, strict=True))
        )
        renderer = render.Renderer(BASE, params.framer.model_copy(update={"render": section}), torch.device("cpu"))
        window = Window("p", "c", "window", "s", 0, "s", 3, 4, 16, 16)
        tensors = {
            f"s@{frame:05d}": {
                "condition_latents": torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(frame)),
                "image_embeds": torch.randn(32, generator=torch.Generator().manual_seed(frame + 10)),
            }
            for frame in (0, 3)
        }
        got = renderer.sample(unet, window, lambda _, unit: tensors[unit], num_inference_steps=1, seed=3)

        sigma = 700.0
        x = torch.randn((1, 4, 8, 8, 8), generator=torch.Generator().manual_seed(3)) * math.sqrt(sigma**2 + 1)
        token = unet.mask_token.detach()[0, 0].expand(8, 8, 8)
        mask = torch.tensor([0.0, 1, 1, 0]).view(4, 1, 1, 1).expand(4, 1, 8, 8)

        def predict(keep: float) -> torch.Tensor:
            ends = [keep * tensors[unit]["condition_latents"] for unit in ("s@00000", "s@00003")]
            embeds = keep * torch.stack([tensors[unit]["image_embeds"] for unit in ("s@00000", "s@00003")])
            condition = torch.cat([torch.stack([ends[0], token, token, ends[1]]), mask], dim=1)
            with torch.no_grad():
                return unet(
                    torch.cat([x[0] / math.sqrt(sigma**2 + 1), condition], dim=1)[None],
                    torch.tensor(0.25 * math.log(sigma)),
                    encoder_hidden_states=embeds[None],
                    added_time_ids=torch.tensor([[6.0, 127.0, 0.02]]),
                ).sample

        conditional, unconditional = predict(1.0), predict(0.0)
        lowest, highest, middle = guidance
        ramp = [lowest + (highest - lowest) * frame / 3 for frame in range(4)]
        if middle:  # the means of neighbours of the ramp followed by its mirror image
            ramp = [(ramp[0] + ramp[1]) / 2, (ramp[2] + ramp[3]) / 2, (ramp[3] + ramp[2]) / 2, (ramp[1] + ramp[0]) / 2]
        scale = torch.tensor(ramp).view(1, 4, 1, 1, 1)
        prediction = unconditional + scale * (conditional - unconditional)
        denoised = x / (sigma**2 + 1) - prediction * sigma / math.sqrt(sigma**2 + 1)
        expected = renderer.decode(denoised[0] / read_spec(BASE).scaling_factor)
        difference = abs(got.astype(int) - expected.astype(int))
        assert difference.max() <= 2
        assert difference.mean() < 0.2

    def test_the_sampler_is_the_parameters_unless_another_is_asked_for(self, unet: FramerUNet, params: Params) -> None:
        window = Window("p", "c", "window", "s", 0, "s", 2, 3, 16, 16)
        generator = torch.Generator().manual_seed(0)
        tensors = {
            f"s@{frame:05d}": {
                "condition_latents": torch.randn(8, 8, 8, generator=generator),
                "image_embeds": torch.randn(32, generator=generator),
            }
            for frame in (0, 2)
        }

        def sample(chosen: str, asked: str | None = None) -> Any:
            section = params.framer.render.model_copy(update={"scheduler": chosen})
            renderer = render.Renderer(BASE, params.framer.model_copy(update={"render": section}), torch.device("cpu"))
            given = {"num_inference_steps": 3, "seed": 3, "scheduler": asked}
            return renderer.sample(unet, window, lambda _, unit: tensors[unit], **given).astype(int)

        for name in ("dpm++", "lcm"):
            np.testing.assert_array_equal(sample(name), sample("euler", name))
            assert abs(sample(name) - sample("euler")).mean() > 0.3
