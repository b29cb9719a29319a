"""EasyAnimate: its objective and sampler against independent computations, its cells, and what it refuses."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY
from diffusers import EasyAnimateInpaintPipeline, EasyAnimatePipeline
from easyanimate_base import make_base
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from framelora.families.base import ALL_ROWS, EncodeUnit, Purpose, ReadUnit, Window
from framelora.families.easyanimate import encode, keys, loss, render, spec, units
from framelora.families.easyanimate.codec import TextEncoder, load_scheduler
from framelora.params import load_params
from framelora.schema.easyanimate import EasyAnimate
from framelora.training.live import LiveReader

WINDOW = Window("p", "c", "window", "s", 2, "s", 10, 9, 48, 32)
CAPTIONS = {"c": ["a bird sits"]}
CPU = torch.device("cpu")
Cells = dict[tuple[str, str], dict[str, Tensor]]


def with_params(changes: dict[str, Any]) -> EasyAnimate:
    """The shipped section with leaves changed, `section.name` each."""
    document = load_params(REPOSITORY / "params.yaml").model_dump()["easyanimate"]
    for key, value in changes.items():
        section, name = key.split(".")
        document[section][name] = value
    return EasyAnimate.model_validate(document)


def only(*modes: str) -> dict[str, float]:
    names = load_params(REPOSITORY / "params.yaml").model_dump()["easyanimate"]["conditioning"]["mask_modes"]
    return {name: float(name in modes) for name in names}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("t2v"))


@pytest.fixture(scope="module")
def inpaint_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("inp"), in_channels=9, add_noise_in_inpaint_model=False)


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    """A shot of 20 smooth frames."""
    small = torch.rand((1, 3, 5, 4, 6), generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.interpolate(small, (20, 32, 48), mode="trilinear")[0]
    return (smooth * 255).to(torch.uint8).permute(1, 2, 3, 0).numpy()


def plan(base: Path, params: EasyAnimate, *purposes: Purpose) -> list[EncodeUnit]:
    return units.plan_units(pd.DataFrame(), {purpose: [WINDOW] for purpose in purposes}, CAPTIONS, base, params)


def fill(base: Path, params: EasyAnimate, frames: NDArray[np.uint8], *purposes: Purpose) -> Cells:
    """Every cell that the window needs, computed as the stage does."""
    encoder = encode.Encoder(base, params, CPU)
    return {
        (unit.kind, unit.unit): encoder.encode(unit, frames[list(unit.frames or ())] if unit.shot else None)
        for unit in plan(base, params, *purposes)
    }


def reader(cells: Cells) -> ReadUnit:
    def read(kind: str, unit: str, rows: slice = ALL_ROWS) -> dict[str, Tensor]:
        assert rows == ALL_ROWS
        return cells[kind, unit]

    return read


def batch_of(base: Path, params: EasyAnimate, frames: NDArray[np.uint8], size: int = 2) -> dict[str, Tensor]:
    item = loss.read_window(WINDOW, reader(fill(base, params, frames, "train")), base, params, 0)
    return {name: torch.stack([tensor] * size) for name, tensor in item.items()}


class TestObjective:
    def test_it_is_flow_matching_towards_noise_minus_latents(self, base: Path, frames: NDArray[np.uint8]) -> None:
        """x_t = (1 - sigma) x + sigma eps and the target is eps - x, with sigma = s u / (1 + (s - 1) u), s = 3."""
        params = with_params({"objective.caption_dropout_prob": 0.0})
        batch = batch_of(base, params, frames)
        transformer = loss.load_denoiser(base, torch.float32)
        found = loss.loss(transformer, batch, [5, 6], base, params)
        for place, seed in enumerate((5, 6)):
            drawn = loss.draw(seed, batch["mean"].shape[1:], params)
            linear = torch.linspace(1000, 1, 1000)[int(drawn.timestep * 1000)] / 1000
            sigma = 3 * linear / (1 + 2 * linear)
            x = 0.7125 * (batch["mean"][place] + batch["std"][place] * drawn.posterior_noise)
            noisy = (1 - sigma) * x + sigma * drawn.noise
            out = transformer(
                noisy[None], (1000 * sigma)[None], encoder_hidden_states=batch["text"][place][None]
            ).sample
            expected = (out[0] - (drawn.noise - x)).square().mean()
            assert found[place].item() == pytest.approx(expected.item(), rel=1e-5)

    def test_an_item_draws_by_its_own_seed(self, base: Path, frames: NDArray[np.uint8]) -> None:
        params = with_params({})
        batch = batch_of(base, params, frames, 3)
        transformer = loss.load_denoiser(base, torch.float32)
        together = loss.loss(transformer, batch, [1, 2, 3], base, params)
        alone = [
            loss.loss(transformer, {k: v[:1] for k, v in batch.items()}, [seed], base, params) for seed in (1, 2, 3)
        ]
        assert torch.allclose(together, torch.cat(alone), rtol=1e-5)
        assert len(set(together.tolist())) == 3

    @pytest.mark.parametrize(
        ("scheme", "mean", "std"), [("none", 0.5, 0.289), ("logit_normal", 0.5, 0.208), ("mode", 0.5, 0.379)]
    )
    def test_timesteps_follow_the_scheme(self, scheme: str, mean: float, std: float) -> None:
        params = with_params({"objective.weighting_scheme": scheme})
        drawn = torch.stack([loss.draw(seed, torch.Size((1, 1, 1, 1)), params).timestep for seed in range(3000)])
        assert drawn.mean().item() == pytest.approx(mean, abs=0.02)
        if scheme != "mode":
            assert drawn.std().item() == pytest.approx(std, abs=0.01)
        else:  # s = 1.29 pushes mass towards the middle of the schedule or its ends: not uniform
            assert abs(drawn.std().item() - 0.289) > 0.02

    @pytest.mark.parametrize("scheme", ["none", "logit_normal", "mode"])
    def test_noise_levels_are_quantiles_of_the_drawn_ones(self, scheme: str) -> None:
        params = with_params({"objective.weighting_scheme": scheme, "objective.logit_mean": 0.7})
        places = [loss.draw(seed, torch.Size((1, 1, 1, 1)), params).timestep.item() for seed in range(4000)]
        for quantile in (0.1, 0.5, 0.8):
            expected = np.quantile(1 - np.array(places), quantile)
            assert loss.noise_level(quantile, params) == pytest.approx(expected, abs=0.025)

    def test_validation_levels_fix_the_noise_and_keep_the_caption(self, base: Path, frames: NDArray[np.uint8]) -> None:
        params = with_params({"objective.caption_dropout_prob": 1.0})
        batch = batch_of(base, params, frames, 1)
        seen: dict[str, Any] = {}

        class Recorder(torch.nn.Module):
            def forward(self, noisy: Tensor, timestep: Tensor, **inputs: Tensor) -> Any:
                seen.update(inputs, timestep=timestep)
                return type("Output", (), {"sample": noisy})

        loss.loss(Recorder(), batch, [1], base, params, levels=[0.25])
        sigma = 3 * 0.25 / (1 + 2 * 0.25)
        assert seen["timestep"].item() == pytest.approx(1000 * sigma, abs=1.5)
        assert torch.equal(seen["encoder_hidden_states"], batch["text"])

    def test_cosmap_weighs_by_sigma(self, base: Path, frames: NDArray[np.uint8]) -> None:
        plain, weighted = (with_params({"objective.weighting_scheme": name}) for name in ("none", "cosmap"))
        batch = batch_of(base, plain, frames, 1)
        transformer = loss.load_denoiser(base, torch.float32)
        drawn = loss.draw(4, batch["mean"].shape[1:], plain)
        sigma = load_scheduler(base).sigmas[int(drawn.timestep * 1000)].item()
        ratio = loss.loss(transformer, batch, [4], base, weighted) / loss.loss(transformer, batch, [4], base, plain)
        assert ratio.item() == pytest.approx(2 / (np.pi * (1 - 2 * sigma + 2 * sigma**2)), rel=1e-4)

    def test_differences_above_the_limit_count_as_zero(self, base: Path, frames: NDArray[np.uint8]) -> None:
        params = with_params({"objective.largest_difference": 1e-9})
        batch = batch_of(base, params, frames, 1)
        assert loss.loss(loss.load_denoiser(base, torch.float32), batch, [1], base, params).item() == 0

    def test_noise_is_shared_along_frames(self) -> None:
        shape = torch.Size((2, 3, 4, 4))
        own = loss.draw(1, shape, with_params({})).noise
        shared = loss.draw(1, shape, with_params({"objective.noise_share_in_frames_ratio": 0.5})).noise
        assert torch.equal(shared[:, 0], own[:, 0])
        assert torch.allclose(shared[:, 2], 0.25 * own[:, 0] + 0.25 * own[:, 1] + 0.5 * own[:, 2])

    def test_the_motion_loss_sees_differences_of_frames_only(self, base: Path, frames: NDArray[np.uint8]) -> None:
        """An error that is the same in every frame costs the plain loss, not the motion loss."""
        params = with_params({"objective.motion_sub_loss_ratio": 0.25, "objective.caption_dropout_prob": 0.0})
        plain = with_params({"objective.caption_dropout_prob": 0.0})
        batch = batch_of(base, params, frames, 1)

        class Shifted(torch.nn.Module):
            def forward(self, noisy: Tensor, timestep: Tensor, **_: object) -> Any:
                drawn = loss.draw(9, noisy.shape[1:], params)
                x = 0.7125 * (batch["mean"] + batch["std"] * drawn.posterior_noise)
                return type("Output", (), {"sample": drawn.noise - x + 2.0})

        assert loss.loss(Shifted(), batch, [9], base, plain).item() == pytest.approx(4.0, rel=1e-4)
        assert loss.loss(Shifted(), batch, [9], base, params).item() == pytest.approx(3.0, rel=1e-4)

    def test_captions_are_dropped_at_the_given_rate(self) -> None:
        params = with_params({"objective.caption_dropout_prob": 0.1})
        drops = [loss.draw(seed, torch.Size((1, 1, 1, 1)), params).drop_caption for seed in range(4000)]
        assert sum(drops) / 4000 == pytest.approx(0.1, abs=0.015)

    def test_a_dropped_caption_is_the_cached_empty_one(self, base: Path, frames: NDArray[np.uint8]) -> None:
        params = with_params({"objective.caption_dropout_prob": 1.0})
        batch = batch_of(base, params, frames, 1)
        kept = with_params({"objective.caption_dropout_prob": 0.0})
        assert not torch.equal(batch["text"], batch["empty"])
        transformer = loss.load_denoiser(base, torch.float32)
        dropped = loss.loss(transformer, batch, [1], base, params)
        assert dropped.item() == loss.loss(transformer, batch | {"text": batch["empty"]}, [1], base, kept).item()
        assert dropped.item() != loss.loss(transformer, batch, [1], base, kept).item()


class TestClips:
    def test_a_static_clip_is_one_encoded_frame_and_equals_the_whole_clip_encoded(
        self, base: Path, frames: NDArray[np.uint8]
    ) -> None:
        params = with_params({"conditioning.static_clips": "middle_frame"})
        (unit,) = [unit for unit in plan(base, params, "train") if unit.kind == "latents"]
        assert unit.frames == (6,)  # the middle of frames 2 to 10
        item = loss.read_window(WINDOW, reader(fill(base, params, frames, "train")), base, params, 0)
        held = np.repeat(frames[6:7], 9, axis=0)
        whole = encode.Encoder(base, params, CPU).encode(EncodeUnit("latents", "u", "s"), held)
        assert item["mean"].shape == whole["mean"].shape == (4, 3, 4, 6)
        assert torch.equal(item["mean"], whole["mean"])
        assert torch.equal(item["std"], whole["std"])

    @pytest.mark.parametrize("num_frames", [1, 9])
    def test_a_single_image_is_one_encoded_frame_held_for_its_clips_length(
        self, inpaint_base: Path, frames: NDArray[np.uint8], num_frames: int
    ) -> None:
        params = with_params({"conditioning.mask_modes": only("first_frames")})
        image = Window("i", "c", "image", "s", 0, "s", 0, num_frames, 48, 32)
        planned = units.plan_units(pd.DataFrame(), {"train": [image]}, CAPTIONS, inpaint_base, params)
        assert {(unit.kind, unit.unit) for unit in planned} >= set(units.units_of(image, "train", inpaint_base, params))
        encoder = encode.Encoder(inpaint_base, params, CPU)
        cells = {
            (unit.kind, unit.unit): encoder.encode(unit, frames[list(unit.frames or ())] if unit.shot else None)
            for unit in planned
        }
        item = loss.read_window(image, reader(cells), inpaint_base, params, 1)
        held = np.repeat(frames[:1], num_frames, axis=0)
        whole = encoder.encode(EncodeUnit("latents", "u", "s"), held)
        assert torch.equal(item["mean"], whole["mean"])
        assert item["mean"].shape[1] == (num_frames - 1) // 4 + 1
        # Nothing of one frame can be given but the whole: it is all masked, as in text to image.
        assert (item["masked"][0].mean() == 0) == (num_frames == 1)
        batch = {name: tensor[None] for name, tensor in item.items()}
        found = loss.loss(loss.load_denoiser(inpaint_base, torch.float32), batch, [1], inpaint_base, params)
        assert torch.isfinite(found).all()

    def test_pixels_of_a_single_image_are_hidden_where_those_modes_are_on(self) -> None:
        params = with_params({"conditioning.mask_modes": only("block", "both_ends"), "conditioning.pixel_draws": 2})
        assert units.mask_bank(params.conditioning, 1) == [("block", "block/0"), ("block", "block/1")]

    @pytest.mark.parametrize("static", ["off", "middle_frame"])
    def test_mirrored_copies_are_cells_of_their_own_and_half_of_what_is_read(
        self, inpaint_base: Path, frames: NDArray[np.uint8], static: str
    ) -> None:
        changes = {"conditioning.static_clips": static, "conditioning.mask_modes": only("first_frames", "all")}
        params = with_params({**changes, "conditioning.flips": True})
        cells = fill(inpaint_base, params, frames, "train")
        assert set(units.units_of(WINDOW, "train", inpaint_base, params)) == set(cells) - {("text", "negative")}
        straight = fill(inpaint_base, with_params(changes), frames, "train")
        mirrored = fill(inpaint_base, with_params(changes), frames[:, :, ::-1].copy(), "train")
        counts = {True: 0, False: 0}
        for seed in range(40):
            flipped = loss.draw_flipped(seed)
            counts[flipped] += 1
            item = loss.read_window(WINDOW, reader(cells), inpaint_base, params, seed)
            expected = loss.read_window(
                WINDOW, reader(mirrored if flipped else straight), inpaint_base, with_params(changes), seed
            )
            assert all(torch.equal(item[name], expected[name]) for name in expected)
        assert min(counts.values()) > 10
        assert units.copies("render", params) == (False,)

    @pytest.mark.parametrize("static", ["off", "middle_frame"])
    def test_a_window_is_learned_at_every_size_that_is_listed(
        self, inpaint_base: Path, frames: NDArray[np.uint8], static: str
    ) -> None:
        sizes = [
            {"scale": 1.0, "num_frames": None},
            {"scale": 0.7, "num_frames": None},
            {"scale": 1.0, "num_frames": 5},
        ]
        changes = {"conditioning.static_clips": static, "conditioning.mask_modes": only("first_frames", "all", "block")}
        params = with_params({**changes, "conditioning.train_sizes": sizes})
        windows = units.at_sizes(WINDOW, inpaint_base, params)
        assert windows[0] == WINDOW  # its own size has its own name, and so the cells that it had alone
        assert [(w.width, w.height, w.num_frames) for w in windows] == [(48, 32, 9), (32, 16, 9), (48, 32, 5)]
        assert len({w.pair for w in windows}) == 3
        planned = units.plan_units(pd.DataFrame(), {"train": windows}, CAPTIONS, inpaint_base, params)
        assert {(unit.kind, unit.unit) for unit in planned} - {("text", "negative")} == {
            unit for window in windows for unit in units.units_of(window, "train", inpaint_base, params)
        }
        encoder = encode.Encoder(inpaint_base, params, CPU)
        cells = {
            (unit.kind, unit.unit): encoder.encode(unit, frames[list(unit.frames or ())] if unit.shot else None)
            for unit in planned
        }
        transformer = loss.load_denoiser(inpaint_base, torch.float32)
        for window, (first, shape) in zip(windows, [(2, (3, 4, 6)), (2, (3, 2, 4)), (2, (2, 4, 6))], strict=True):
            item = loss.read_window(window, reader(cells), inpaint_base, params, 1)
            assert item["mean"].shape[1:] == item["masked"].shape[1:] == shape
            batch = {name: tensor[None] for name, tensor in item.items()}
            assert torch.isfinite(loss.loss(transformer, batch, [1], inpaint_base, params)).all()
            middle = (window.start_frame + window.end_frame) // 2
            shown = range(first, first + window.num_frames) if static == "off" else [middle] * window.num_frames
            # By itself: scaled to cover 32x16 (32x21), rows 2 to 17 of it.
            own = [Image.fromarray(frames[number]) for number in shown]
            if window.scaled and window.width == 32:
                own = [image.resize((32, 21), Image.Resampling.BICUBIC).crop((0, 2, 32, 18)) for image in own]
            clip = torch.from_numpy(np.stack([np.asarray(image) for image in own])).permute(3, 0, 1, 2)[None]
            expected = encoder.vae.encode(clip.float() / 127.5 - 1).latent_dist.mean[0]
            assert torch.allclose(item["mean"], expected, atol=1e-5)

    def test_sizes_that_no_window_has_are_refused(self, base: Path) -> None:
        for size, told in (
            ({"scale": 1.0, "num_frames": 13}, r"num_frames 13 is more than a window's 9"),
            ({"scale": 0.3, "num_frames": None}, r"scale 0\.3 of 48x32 leaves a side shorter than 16 pixels"),
        ):
            params = with_params({"conditioning.train_sizes": [size]})
            with pytest.raises(ValueError, match=rf"conditioning\.train_sizes: {told}"):
                units.at_sizes(WINDOW, base, params)
        params = with_params({"conditioning.train_sizes": [{"scale": 1.0, "num_frames": 6}]})
        (window,) = units.at_sizes(WINDOW, base, params)
        problem = units.check_window(window, base)
        assert problem is not None
        assert problem.startswith("easyanimate.conditioning.train_sizes: num_frames 6 is not a multiple of 4 plus 1")

    def test_bytes_are_told_before_anything_is_encoded(self, inpaint_base: Path, frames: NDArray[np.uint8]) -> None:
        sizes = [{"scale": 1.0, "num_frames": None}, {"scale": 0.7, "num_frames": 5}]
        for static in ("off", "middle_frame"):
            changes = {
                "conditioning.train_sizes": sizes,
                "conditioning.static_clips": static,
                "encode.dtype": "float16",
            }
            params = with_params(changes)
            windows = units.at_sizes(WINDOW, inpaint_base, params)
            encoder = encode.Encoder(inpaint_base, params, CPU)
            for unit in units.plan_units(pd.DataFrame(), {"train": windows}, CAPTIONS, inpaint_base, params):
                tensors = encoder.encode(unit, frames[list(unit.frames or ())] if unit.shot else None)
                shape = (len(unit.frames or ()), 48, 32) if unit.shot else (0, 0, 0)
                found = units.unit_bytes(unit, shape, inpaint_base, params)
                assert found == sum(tensor.nbytes for tensor in tensors.values()), unit

    @pytest.mark.parametrize("caption", ["a bird looks Left", "right, then up"])
    def test_clips_whose_captions_name_a_side_are_not_mirrored(self, base: Path, caption: str) -> None:
        windows: dict[Purpose, list[Window]] = {"train": [WINDOW]}
        params = with_params({"conditioning.flips": True})
        with pytest.raises(ValueError, match=r"conditioning\.flips"):
            units.plan_units(pd.DataFrame(), windows, {"c": [caption]}, base, params)
        units.plan_units(pd.DataFrame(), windows, {"c": ["a bright bird, upright"]}, base, params)
        units.plan_units(pd.DataFrame(), {"render": [WINDOW]}, {"c": [caption]}, base, params)

    def test_renders_are_compared_with_the_moving_clip_whatever_is_trained(self, base: Path) -> None:
        params = with_params({"conditioning.static_clips": "middle_frame"})
        assert units.units_of(WINDOW, "render", base, params)[0] == ("latents", "s@00002+9")
        assert units.units_of(WINDOW, "train", base, params)[0] == ("latents", "s@00006+1")

    def test_text_is_one_cell_a_caption_and_the_empty_one_is_always_there(self, base: Path) -> None:
        params = with_params({"encode.negative_prompt": "still"})
        texts = {unit.unit: unit.text for unit in plan(base, params, "train") if unit.kind == "text"}
        assert texts == {"": "", "negative": "still", "c": "a bird sits"}
        assert ("text", "") in units.units_of(WINDOW, "train", base, params)

    def test_training_draws_from_all_orders_of_a_captions_tags(self, base: Path, frames: NDArray[np.uint8]) -> None:
        orders = ["a, bird, tree", "a, tree, bird", "a, bird, tree", "bird, tree, a"]
        params = with_params({})
        planned = {
            purpose: units.plan_units(pd.DataFrame(), {purpose: [WINDOW]}, {"c": orders}, base, params)
            for purpose in ("train", "render")
        }
        unit = next(unit for unit in planned["train"] if unit.unit == "c")
        assert (unit.text, unit.orders) == (orders[0], (orders[1], orders[3]))
        assert next(unit for unit in planned["render"] if unit.unit == "c").orders == ()  # as written
        encoder = encode.Encoder(base, params, CPU)
        cells = {
            (one.kind, one.unit): encoder.encode(one, frames[list(one.frames or ())] if one.shot else None)
            for one in planned["train"]
        }
        single = [
            encoder.encode(EncodeUnit("text", "c", text=text), None)["embeds"].numpy().tobytes()
            for text in (orders[0], orders[1], orders[3])
        ]
        read = [loss.read_window(WINDOW, reader(cells), base, params, seed)["text"] for seed in range(300)]
        counts = [sum(embeds.numpy().tobytes() == one for embeds in read) for one in single]
        assert sum(counts) == 300
        assert min(counts) > 70
        assert units.unit_bytes(unit, (0, 0, 0), base, params) == sum(t.nbytes for t in cells["text", "c"].values())

    def test_another_seed_draws_another_bank(self, inpaint_base: Path, frames: NDArray[np.uint8]) -> None:
        modes = {"conditioning.mask_modes": only("pixels", "first_frames")}
        banks = []
        for seed in (0, 0, 1):
            params = with_params({**modes, "conditioning.mask_seed": seed})
            cells = fill(inpaint_base, params, frames, "train")
            banks.append([cells[key]["masked"] for key in sorted(cells) if key[0] == "masked" and "pixels" in key[1]])
        assert all(torch.equal(one, other) for one, other in zip(banks[0], banks[1], strict=True))
        assert not any(torch.equal(one, other) for one, other in zip(banks[0], banks[2], strict=True))
        keys = [
            {unit.kind: str(units.unit_inputs(unit, with_params({"conditioning.mask_seed": seed}))) for unit in
             plan(inpaint_base, with_params(modes), "train")}
            for seed in (0, 1)
        ]  # fmt: skip
        assert {kind for kind in keys[0] if keys[0][kind] != keys[1][kind]} == {"masked"}

    def test_vae_latents_depend_on_the_frames_before(self, base: Path, frames: NDArray[np.uint8]) -> None:
        """Why a clip is encoded as a whole: the same frames inside another clip have other latents."""
        encoder = encode.Encoder(base, with_params({}), CPU)
        early = encoder.encode(EncodeUnit("latents", "u", "s"), frames[0:9])["mean"]
        late = encoder.encode(EncodeUnit("latents", "u", "s"), frames[4:13])["mean"]
        assert not torch.allclose(early[:, 2], late[:, 1], atol=1e-3)


class TestText:
    @pytest.mark.parametrize("kind", ["bert", "qwen2_vl"])
    def test_embeddings_are_those_of_the_pipeline(self, kind: str, tmp_path: Path) -> None:
        base = make_base(tmp_path, encoder=kind)
        encoder = TextEncoder(base, 24, CPU)
        found = encoder.embed("a bird sits")
        assert found.shape == (24, 16)
        if kind == "qwen2_vl":
            pipe = EasyAnimatePipeline(None, encoder.model, encoder.tokenizer, None, None)
            expected = pipe.encode_prompt("a bird sits", do_classifier_free_guidance=False, max_sequence_length=24)[0]
            assert torch.equal(found, expected[0])
        else:
            words = encoder.tokenizer("a bird sits", return_tensors="pt")
            expected = encoder.model(**words).last_hidden_state[0]
            assert torch.allclose(found[: len(expected)], expected, atol=1e-5)

    def test_a_caption_that_is_too_long_is_an_error(self, base: Path) -> None:
        with pytest.raises(ValueError, match=r"the text has 9 tokens, and the encoder takes 8: shorten it"):
            TextEncoder(base, 8, CPU).embed("a bird sits on the tree still")

    def test_or_is_cut_where_the_parameters_say_so_and_that_is_noted(self, base: Path) -> None:
        params = with_params({"encode.long_captions": "truncate", "encode.max_sequence_length": 8})
        encoder = encode.Encoder(base, params, CPU)
        embeds = encoder.encode(EncodeUnit("text", "c", text="a bird sits on the tree still"), None)["embeds"]
        assert embeds.shape == (8, 16)
        assert encoder.notes == ["8 of 9 tokens kept: a bird sits on the tree still..."]


class TestSampler:
    @pytest.mark.parametrize("guidance", [1.0, 4.0])
    def test_it_is_that_of_the_diffusers_pipeline(self, base: Path, frames: NDArray[np.uint8], guidance: float) -> None:
        params = with_params({"render.guidance_scale": guidance, "encode.negative_prompt": "cloud"})
        cells = fill(base, params, frames, "render")
        renderer = render.Renderer(base, params, CPU)
        transformer = renderer.load_denoiser()
        found = renderer.sample(transformer, WINDOW, reader(cells), num_inference_steps=3, seed=7)
        pipe = EasyAnimatePipeline(renderer.vae, None, None, transformer, load_scheduler(base))
        pipe.set_progress_bar_config(disable=True)
        expected = pipe(
            **self.embeds(cells),
            num_frames=9,
            height=32,
            width=48,
            num_inference_steps=3,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(7),
            output_type="np",
        ).frames[0]
        assert np.abs(found - expected * 255).max() <= 0.51  # ours is rounded to 8 bits

    @pytest.mark.parametrize(("condition", "kept"), [("first_frame", [0]), ("both_ends", [0, 8])])
    def test_an_inpaint_base_gets_what_the_inpaint_pipeline_gives_it(
        self, inpaint_base: Path, frames: NDArray[np.uint8], condition: str, kept: list[int]
    ) -> None:
        params = with_params({"render.condition": condition, "render.guidance_scale": 1.0})
        cells = fill(inpaint_base, params, frames, "render")
        renderer = render.Renderer(inpaint_base, params, CPU)
        transformer = renderer.load_denoiser()
        found = renderer.sample(transformer, WINDOW, reader(cells), num_inference_steps=2, seed=1)
        renderer.vae.register_to_config(cache_mag_vae=True)  # the pipeline reads it, the class has none
        pipe = EasyAnimateInpaintPipeline(renderer.vae, None, None, transformer, load_scheduler(inpaint_base))
        pipe.set_progress_bar_config(disable=True)
        mask = torch.full((1, 1, 9, 32, 48), 255.0)
        mask[:, :, kept] = 0
        expected = pipe(
            **self.embeds(cells),
            video=torch.from_numpy(frames[2:11]).permute(3, 0, 1, 2)[None] / 255.0,
            mask_video=mask,
            num_frames=9,
            height=32,
            width=48,
            num_inference_steps=2,
            guidance_scale=1.0,
            noise_aug_strength=0.0,
            generator=torch.Generator().manual_seed(1),
            output_type="np",
        ).frames[0]
        assert np.abs(found - expected * 255).max() <= 0.51

    @staticmethod
    def embeds(cells: Cells) -> dict[str, Tensor]:
        return {
            "prompt_embeds": cells["text", "c"]["embeds"][None],
            "prompt_attention_mask": torch.ones(1, 64),
            "negative_prompt_embeds": cells["text", "negative"]["embeds"][None],
            "negative_prompt_attention_mask": torch.ones(1, 64),
        }


class TestMasks:
    def test_each_mode_costs_the_cells_it_says(self, inpaint_base: Path) -> None:
        params = with_params(
            {
                "conditioning.mask_modes": only("all", "first_frames", "both_ends", "pixels"),
                "conditioning.first_frames": [1, 2, 20],
                "conditioning.pixel_draws": 4,
            }
        )
        masked = [unit for unit in plan(inpaint_base, params, "train") if unit.kind == "masked"]
        assert len(masked) == 1 + 2 + 1 + 4  # k = 20 is longer than the clip
        assert [unit.unit for unit in masked if not unit.shot] == ["all-9x32x48"]

    def test_a_text_to_video_base_needs_none(self, base: Path) -> None:
        assert {unit.kind for unit in plan(base, with_params({}), "train", "render")} == {"text", "latents"}

    def test_kept_frames_are_told_by_the_mask_channel(self, inpaint_base: Path, frames: NDArray[np.uint8]) -> None:
        params = with_params({"conditioning.mask_modes": only("first_frames", "both_ends", "all")})
        cells = fill(inpaint_base, params, frames, "train")
        channel = {
            unit: tensors["masked"][0].mean(dim=(1, 2)) for (kind, unit), tensors in cells.items() if kind == "masked"
        }
        assert channel["all-9x32x48"].tolist() == [0, 0, 0]
        assert channel["s@00002+9|9|first_frames/1"].tolist() == [1, 0, 0]
        # Of every four frames the grid of latents reads between the second and the third: an end frame alone is told by
        # its latents only, in EasyAnimate's own pipeline too.
        assert channel["s@00002+9|9|both_ends/1"].tolist() == [1, 0, 0]
        ends, first = (cells["masked", f"s@00002+9|9|{mode}/1"]["masked"][1:] for mode in ("both_ends", "first_frames"))
        assert torch.equal(ends[:, :2], first[:, :2])
        assert not torch.allclose(ends[:, 2], first[:, 2], atol=1e-2)

    @pytest.mark.parametrize("mode", ["block", "block_in_time", "pixels", "blocks", "ellipse", "circle", "frames"])
    def test_drawn_masks_hide_something_and_keep_something(self, mode: str) -> None:
        drawn = [encode.draw_mask(mode, 0, (9, 32, 48), np.random.default_rng(seed)) for seed in range(40)]
        shares = np.array([mask.mean() for mask in drawn])
        assert 0.05 < shares.mean() < 0.8
        assert len({mask.tobytes() for mask in drawn}) > 30
        if mode not in ("block_in_time", "frames"):
            assert all((mask == mask[0]).all() for mask in drawn)

    @pytest.mark.parametrize("mode", ["block", "block_in_time", "pixels", "blocks", "ellipse", "circle", "frames"])
    def test_each_mode_hides_what_it_is_called(self, mode: str) -> None:
        masks = [encode.draw_mask(mode, 0, (9, 32, 48), np.random.default_rng(seed)) for seed in range(60)]
        part_of_the_time = [0 < mask.any(axis=(1, 2)).sum() < 9 for mask in masks]
        assert any(part_of_the_time) == (mode in ("block_in_time", "frames"))
        wider = 0
        for mask in masks:
            shown = mask.any(axis=(1, 2))
            if mode == "frames":
                assert all(frame.all() or not frame.any() for frame in mask)
                continue
            picture = mask[shown][0]
            assert (mask[shown] == picture).all()
            rows, columns = np.flatnonzero(picture.any(axis=1)), np.flatnonzero(picture.any(axis=0))
            height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
            if mode.startswith("block_") or mode == "block":
                assert picture.sum() == height * width
                assert (8 <= height <= 24, 12 <= width <= 36) == (True, True)
                assert np.ptp(np.flatnonzero(shown)) + 1 == shown.sum()  # one part of the clip
            elif mode in ("ellipse", "circle") and 0 < rows[0] < rows[-1] < 31 and 0 < columns[0] < columns[-1] < 47:
                assert picture.sum() == pytest.approx(np.pi / 4 * height * width, rel=0.25)
                wider += abs(height - width) > 1
            elif mode == "blocks":
                squares = picture.reshape(8, 4, 12, 4).mean(axis=(1, 3))
                assert set(np.unique(squares)) <= {0.0, 1.0}
            elif mode == "pixels":
                assert len(np.unique(picture.reshape(8, 4, 12, 4).mean(axis=(1, 3)))) > 2
        assert (wider > 0) == (mode == "ellipse")

    def test_what_a_render_is_given_has_the_pipelines_noise_and_training_draws_its_own(
        self, tmp_path: Path, frames: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = make_base(tmp_path, in_channels=9)
        told: dict[str, list[float | None]] = {"train": [], "render": []}
        real = encode.add_noise
        for purpose, sigmas in told.items():
            monkeypatch.setattr(
                encode, "add_noise", lambda clip, seed, sigma, to=sigmas: (to.append(sigma), real(clip, seed, sigma))[1]
            )
            modes = {"conditioning.mask_modes": only("first_frames"), "render.condition": "first_frame"}
            fill(base, with_params(modes), frames, purpose)
        default = inspect.signature(EasyAnimateInpaintPipeline.__call__).parameters["noise_aug_strength"].default
        assert told == {"train": [None], "render": [default]}

    def test_modes_are_drawn_by_weight_and_members_evenly(self, inpaint_base: Path) -> None:
        modes = only("all", "first_frames", "pixels") | {"all": 2.0}
        params = with_params({"conditioning.mask_modes": modes, "conditioning.pixel_draws": 2})
        bank = units.mask_bank(params.conditioning, 9)
        drawn = [loss.draw_masked(seed, bank, params) for seed in range(4000)]
        shares = {detail: sum(item.place == n for item in drawn) / 4000 for n, (_, detail) in enumerate(bank)}
        assert shares == pytest.approx(
            {"all": 0.5, "first_frames/1": 0.25, "pixels/0": 0.125, "pixels/1": 0.125}, abs=0.025
        )
        zeroed = sum(item.zeroed for item in drawn) / sum(bank[item.place][0] == "all" for item in drawn)
        assert zeroed == pytest.approx(0.9, abs=0.02)
        assert not any(item.zeroed for item in drawn if bank[item.place][0] != "all")

    def test_an_item_reads_the_masked_video_that_its_seed_draws_and_no_other(
        self, inpaint_base: Path, frames: NDArray[np.uint8]
    ) -> None:
        params = with_params({"conditioning.mask_modes": only("first_frames", "both_ends", "pixels")})
        bank, cells, read = units.mask_bank(params.conditioning, 9), fill(inpaint_base, params, frames, "train"), []

        def noted(kind: str, unit: str, rows: slice = ALL_ROWS) -> dict[str, Tensor]:
            read.extend([unit] if kind == "masked" else [])
            return cells[kind, unit]

        for seed in range(12):
            item = loss.read_window(WINDOW, noted, inpaint_base, params, seed)
            detail = bank[loss.draw_masked(seed, bank, params).place][1]
            assert read == [f"s@00002+9|9|{detail}"]
            assert torch.equal(item["masked"], cells["masked", read.pop()]["masked"])

    def test_masks_are_drawn_anew_in_live_training(self, inpaint_base: Path, frames: NDArray[np.uint8]) -> None:
        modes = {"conditioning.mask_modes": only("pixels", "first_frames"), "conditioning.static_clips": "middle_frame"}
        params = with_params({**modes, "conditioning.fresh_masks": True})
        live = LiveReader(
            plan(inpaint_base, params, "train"),
            encoder=lambda: encode.Encoder(inpaint_base, params, CPU),
            frames=lambda shot: frames,
            fresh=units.fresh_unit,
        )
        items = [loss.read_window(WINDOW, live.read, inpaint_base, params, seed) for seed in range(24)]
        bank = fill(inpaint_base, with_params(modes), frames, "train")
        masks = {cell["masked"][0].numpy().tobytes() for (kind, _), cell in bank.items() if kind == "masked"}
        drawn = {item["masked"][0].numpy().tobytes() for item in items}
        assert len(masks) == 5 and len(drawn - masks) > 6  # k = 1 is the bank's; every mask of pixels is another
        again = loss.read_window(WINDOW, live.read, inpaint_base, params, 3)
        assert torch.equal(items[3]["masked"], again["masked"])
        assert units.train_inputs(inpaint_base, params, False)["masks"]["draws"] == "fresh"

    def test_the_loss_conditions_on_the_masked_video(self, inpaint_base: Path, frames: NDArray[np.uint8]) -> None:
        params = with_params({"conditioning.mask_modes": only("first_frames"), "objective.caption_dropout_prob": 0.0})
        batch = batch_of(inpaint_base, params, frames, 1)
        seen = {}

        class Recorder(torch.nn.Module):
            def forward(self, noisy: Tensor, timestep: Tensor, **inputs: Tensor) -> Any:
                seen.update(inputs)
                return type("Output", (), {"sample": noisy})

        loss.loss(Recorder(), batch, [1], inpaint_base, params)
        assert torch.equal(seen["inpaint_latents"], batch["masked"] * 0.7125)  # the mask is scaled too

    def test_noise_spares_what_is_masked_and_follows_the_law(self) -> None:
        clip = torch.zeros(1, 3, 5, 16, 16)
        clip[:, :, 2:] = -1
        noisy = [encode.add_noise(clip, seed, None) for seed in range(300)]
        assert all(torch.equal(one[:, :, 2:], clip[:, :, 2:]) for one in noisy)
        logs = torch.stack([one[:, :, :2].std().log() for one in noisy])
        assert logs.mean().item() == pytest.approx(-3.0, abs=0.1)
        assert logs.std().item() == pytest.approx(0.5, abs=0.07)


class TestTrainingKey:
    def changed(self, base: Path, start: dict[str, Any], changes: dict[str, Any]) -> bool:
        before, after = (units.train_inputs(base, with_params(part), False) for part in (start, start | changes))
        return bool(before != after)

    def test_a_text_to_video_base_knows_no_masks(self, base: Path, inpaint_base: Path) -> None:
        changes: dict[str, Any]
        for changes in (
            {"conditioning.mask_modes": only("all")},
            {"conditioning.first_frames": [2]},
            {"objective.zeroed_all_masked_prob": 0.1},
        ):
            assert not self.changed(base, {}, changes)
            assert self.changed(inpaint_base, {}, changes)

    def test_numbers_of_a_mode_that_is_off_do_not_count(self, inpaint_base: Path) -> None:
        off = {"conditioning.mask_modes": only("both_ends")}
        for changes in (
            {"conditioning.first_frames": [2]},
            {"conditioning.pixel_draws": 9},
            {"objective.zeroed_all_masked_prob": 0.1},
        ):
            assert not self.changed(inpaint_base, off, changes)
        assert self.changed(inpaint_base, off, {"conditioning.both_ends": [1, 2]})
        assert self.changed(inpaint_base, {"conditioning.mask_modes": only("pixels")}, {"conditioning.pixel_draws": 9})

    def test_a_weighting_counts_its_own_constants(self, base: Path) -> None:
        counts = {"none": set(), "logit_normal": {"logit_mean", "logit_std"}, "mode": {"mode_scale"}}
        for scheme, names in counts.items():
            start = {"objective.weighting_scheme": scheme}
            leaves = ("logit_mean", "logit_std", "mode_scale")
            changed = {leaf for leaf in leaves if self.changed(base, start, {f"objective.{leaf}": 7.0})}
            assert changed == names
        assert self.changed(base, {}, {"objective.caption_dropout_prob": 0.5})
        assert self.changed(base, {}, {"conditioning.static_clips": "middle_frame"})


def rename_layers(folder: Path, shards: str, names: dict[str, str]) -> None:
    """Write a transformer's weights anew, in pieces of a size, with other names of some layers."""
    from huggingface_hub import save_torch_state_dict

    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    file.unlink()
    for ours, theirs in names.items():
        tensors = {name.replace(f".{ours}.", f".{theirs}."): tensor for name, tensor in tensors.items()}
    pattern = "diffusion_pytorch_model{suffix}.safetensors"
    save_torch_state_dict(tensors, folder, filename_pattern=pattern, max_shard_size=shards)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shards == "60KB")


def refusal(base: Path) -> str:
    with pytest.raises(spec.Unsupported) as caught:
        loss.load_denoiser(base, torch.float32)
    return str(caught.value)


class TestRefusals:
    def test_frames_and_sizes_that_do_not_fit_are_named(self, base: Path, tmp_path: Path) -> None:
        assert units.check_window(WINDOW, base) is None
        fault = units.check_window(Window(**(vars(WINDOW) | {"num_frames": 7})), base)
        assert fault == "pair.num_frames 7 is not a multiple of 4 plus 1: set it to 5 or 9"
        (tmp_path / "vae").mkdir()
        (tmp_path / "transformer").mkdir()
        (tmp_path / "vae/config.json").write_text((base / "vae/config.json").read_text())
        config = json.loads((base / "transformer/config.json").read_text()) | {"patch_size": 4}
        (tmp_path / "transformer/config.json").write_text(json.dumps(config))
        assert "48x32 don't fit: both sides must be multiples of 32" in str(units.check_window(WINDOW, tmp_path))
        fault = units.check_window(Window(**(vars(WINDOW) | {"width": 40})), base)
        assert fault == "frames of 40x32 don't fit: both sides must be multiples of 16; correct extract.buckets"

    @pytest.mark.parametrize(
        ("changes", "part"),
        [
            ({"text_embed_dim_t5": 32}, "EasyAnimate V5 has two text encoders"),
            ({"mmdit_layers": 1}, "mmdit_layers 1 is below num_layers 2"),
            ({"in_channels": 8}, "the transformer takes 8 channels"),
            ({"in_channels": 9, "resize_inpaint_mask_directly": False}, "passes its mask through the VAE"),
        ],
    )
    def test_models_that_would_come_out_wrong_are_refused_by_name(
        self, base: Path, tmp_path: Path, changes: dict[str, Any], part: str
    ) -> None:
        for name in ("vae", "transformer"):
            (tmp_path / name).mkdir()
            config = json.loads((base / name / "config.json").read_text())
            config |= changes if name == "transformer" else {}
            (tmp_path / name / "config.json").write_text(json.dumps(config))
        fault = units.check_window(WINDOW, tmp_path)
        assert fault is not None
        assert part in fault
        with pytest.raises(spec.Unsupported):
            loss.load_denoiser(tmp_path, torch.float32)

    @pytest.mark.parametrize("shards", ["1GB", "60KB"])
    def test_the_original_release_is_refused_by_name_before_anything_is_encoded(
        self, base: Path, tmp_path: Path, shards: str
    ) -> None:
        copied = shutil.copytree(base, tmp_path / "base")
        rename_layers(copied / "transformer", shards, keys.ORIGINAL)
        for problem in (str(units.check_window(WINDOW, copied)), refusal(copied)):
            assert "is of EasyAnimate's original release (transformer_blocks.0.attn2.to_" in problem
            assert "use the release whose name ends in -diffusers, such as EasyAnimateV5.1-12b-zh-InP-diffus" in problem

    @pytest.mark.parametrize("shards", ["1GB", "60KB"])
    def test_weights_of_another_configuration_are_never_filled_up_with_random_ones(
        self, base: Path, tmp_path: Path, shards: str
    ) -> None:
        copied = shutil.copytree(base, tmp_path / "base")
        rename_layers(copied / "transformer", shards, {"attn1.add_q_proj": "attn1.other"})
        named = "4 tensors are missing (the first is transformer_blocks.0.attn1.add_q_proj.bias) and 4 tensors are unk"
        assert named in refusal(copied)

    def test_a_file_that_holds_no_weights_is_named(self, base: Path, tmp_path: Path) -> None:
        copied = shutil.copytree(base, tmp_path / "base")
        path = copied / "transformer/diffusion_pytorch_model.safetensors"
        path.write_text("version https://git-lfs.github.com/spec/v1")
        assert f"{path} is not a safetensors file" in str(units.check_window(WINDOW, copied))

    def test_a_folder_of_another_family_is_named(self, tmp_path: Path) -> None:
        fault = units.check_window(WINDOW, tmp_path)
        assert fault is not None
        assert "is no EasyAnimate base" in fault
