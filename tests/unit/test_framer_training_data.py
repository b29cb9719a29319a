"""What Framer's training sees beyond clean latents: a bank of condition noise, tracks, heatmaps of some of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY

from framelora.console import UserError
from framelora.digest import draw_seed, sha256
from framelora.families.base import ALL_ROWS, EncodeUnit, ReadUnit, Window
from framelora.families.framer import encode, loss, units
from framelora.families.framer.networks.heatmap import heatmaps
from framelora.families.framer.networks.unet import FramerUNet, load_unet
from framelora.params import load_params
from framelora.schema.framer import Framer

BASE = REPOSITORY / "bases/tiny-framer"
WINDOW = Window("w", "c", "window", "s", 2, "s", 6, 5, 96, 64)


def framer(**values: Any) -> Framer:
    """The demo's parameters, some changed: `section__leaf=value`."""
    params = load_params(REPOSITORY / "params.yaml").framer
    assert params is not None
    for name, value in values.items():
        section, leaf = name.split("__")
        changed = getattr(params, section).model_copy(update={leaf: value})
        params = params.model_copy(update={section: changed})
    return params


def plan(params: Framer, purpose: str = "train") -> list[EncodeUnit]:
    shots = pd.DataFrame({"shot": ["s"], "kind": ["video"]})
    return units.plan_units(shots, {purpose: [WINDOW]}, {}, BASE, params)  # type: ignore[dict-item]


class TestPlan:
    def test_by_default_nothing_is_added(self) -> None:
        assert {unit.kind for unit in plan(framer())} == {"latents", "ends"}

    def test_the_bank_and_the_tracks_are_cells_of_their_own_and_the_bank_is_for_training_only(self) -> None:
        params = framer(conditioning__condition_noise="bank", encode__tracks="lucas_kanade")
        planned = {(unit.kind, unit.unit): unit for unit in plan(params)}
        assert {kind for kind, _ in planned} == {"latents", "ends", "noisy_ends", "tracks"}
        assert planned["tracks", "w"].frames == (2, 3, 4, 5, 6)
        assert set(units.units_of(WINDOW, "train", BASE, params)) == set(planned)
        assert {unit.kind for unit in plan(params, "render")} == {"latents", "ends", "tracks"}

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_bytes_are_told_before_anything_is_encoded(self, dtype: str) -> None:
        params = framer(conditioning__condition_noise="bank", encode__tracks="lucas_kanade", encode__dtype=dtype)
        frames = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)
        encoder = encode.Encoder(BASE, params, torch.device("cpu"))
        for unit in plan(params):
            own = unit.frames_of(frames)
            tensors = encoder.encode(unit, own)
            told = units.unit_bytes(unit, (len(own), 96, 64), BASE, params)
            assert told == sum(tensor.nbytes for tensor in tensors.values()), unit

    def test_number_and_law_are_in_the_banks_key_and_in_no_other(self) -> None:
        kinds = [EncodeUnit(kind, "u", "s") for kind in ("latents", "ends", "noisy_ends", "tracks")]
        first = {unit.kind: units.unit_inputs(unit, framer()) for unit in kinds}
        for leaf in ("draws", "log_mean", "log_std", "seed"):
            params = framer(**{f"conditioning__condition_noise_{leaf}": 7})
            changed = {unit.kind for unit in kinds if units.unit_inputs(unit, params) != first[unit.kind]}
            assert changed == {"noisy_ends"}, leaf
            assert units.render_inputs(params) == units.render_inputs(framer()), leaf
        # Steered renders are methods of their own: whether there are some changes no other.
        assert units.render_inputs(framer(render__tracks="own")) == units.render_inputs(framer())
        assert units.steering_inputs(framer()) == {}
        assert units.steering_inputs(framer(render__tracks="own")) == {"control_points_max": 10, "heatmap_side": 6}
        assert units.render_inputs(framer(), "lcm") == units.render_inputs(framer(render__scheduler="lcm"))
        points = {
            unit.kind for unit in kinds if units.unit_inputs(unit, framer(encode__track_points=9)) != first[unit.kind]
        }
        assert points == {"tracks"}


class TestTrainingKey:
    @pytest.mark.parametrize(
        ("mode", "counted"),
        [
            ("off", {"noise_aug_strength"}),
            ("latent", {"condition_noise_log_mean", "condition_noise_log_std"}),
            ("bank", {"condition_noise_draws"}),
        ],
    )
    def test_condition_noise_counts_its_modes_own_parameters(self, mode: str, counted: set[str]) -> None:
        """The bank's law and seed are in the digests of its cells."""
        leaves = {
            "noise_aug_strength",
            *(f"condition_noise_{leaf}" for leaf in ("draws", "log_mean", "log_std", "seed")),
        }
        first = units.train_inputs(BASE, framer(conditioning__condition_noise=mode), False)
        changed = set()
        for leaf in leaves:
            params = framer(conditioning__condition_noise=mode, **{f"conditioning__{leaf}": 7})
            changed |= {leaf} if units.train_inputs(BASE, params, False) != first else set()
        assert changed == counted

    def test_points_count_where_a_controlnet_is_shown_them(self) -> None:
        other = framer(objective__control_points_max=3)
        assert units.train_inputs(BASE, other, False) == units.train_inputs(BASE, framer(), False)
        assert units.train_inputs(BASE, other, True) != units.train_inputs(BASE, framer(), True)

    @pytest.mark.parametrize(
        "leaf", ["conditioning__fps", "conditioning__motion_bucket_id", "objective__sigma_log_mean"]
    )
    def test_what_the_unet_is_told_and_the_law_of_noise_always_count(self, leaf: str) -> None:
        assert units.train_inputs(BASE, framer(**{leaf: 3}), False) != units.train_inputs(BASE, framer(), False)


class TestBank:
    def test_strengths_are_the_medians_of_equal_shares_of_the_law(self) -> None:
        sigmas = encode.stratified_sigmas(4, -3.0, 0.5)
        share = [0.5 * (1 + math.erf((math.log(sigma) + 3) / 0.5 / math.sqrt(2))) for sigma in sigmas]
        assert share == pytest.approx([0.125, 0.375, 0.625, 0.875])
        assert encode.stratified_sigmas(1, -3.0, 0.5) == [pytest.approx(math.exp(-3))]

    def test_each_entry_is_the_mode_of_the_frame_with_its_own_noise(self) -> None:
        params = framer(conditioning__condition_noise="bank", conditioning__condition_noise_draws=3)
        encoder = encode.Encoder(BASE, params, torch.device("cpu"))
        frame = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), dtype=np.uint8)
        got = encoder.encode(EncodeUnit("noisy_ends", "s@0", "s", (0,)), frame)
        pixels = torch.from_numpy(frame).permute(0, 3, 1, 2) / 127.5 - 1
        for number, sigma in enumerate(got["sigmas"]):
            generator = torch.Generator().manual_seed(draw_seed("condition-noise", 0, sha256(frame.tobytes()), number))
            noisy = pixels + sigma * torch.randn(pixels.shape, generator=generator)
            with torch.no_grad():
                expected = encoder.vae.encode(noisy).latent_dist.mode()[0]
            torch.testing.assert_close(got["condition_latents"][number], expected, rtol=1e-4, atol=1e-4)
        part = encoder.encode(EncodeUnit("noisy_ends", "s@0", "s", (0,)), frame, slice(1, 2))
        assert all(torch.equal(part[name], got[name][1:2]) for name in got)
        other = encode.Encoder(
            BASE,
            framer(conditioning__condition_noise_draws=3, conditioning__condition_noise_seed=1),
            torch.device("cpu"),
        ).encode(EncodeUnit("noisy_ends", "s@0", "s", (0,)), frame)
        assert not torch.equal(other["condition_latents"], got["condition_latents"])


def batch_of(size: int, bank: bool = False, points: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    batch = {
        "mean": normal(size, 4, 8, 8, 12),
        "std": 0.1 * normal(size, 4, 8, 8, 12).abs(),
        "first": normal(size, 8, 8, 12),
        "last": normal(size, 8, 8, 12),
        "image_embeds": normal(size, 2, 32),
    }
    if bank:
        batch["condition_sigma"] = torch.arange(1.0, size + 1) / 100
    if points:
        batch["tracks"] = 20 * torch.rand(size, 4, points, 2, generator=generator)
        batch["visible"] = torch.ones(size, 4, points)
    return batch


# Of a shot of eight frames, and its two ends. Rows of the bank: strengths 0 to 3, latents 10 or 20 above them.
CELLS: dict[tuple[str, str], dict[str, torch.Tensor]] = {
    ("latents", "s"): {"mean": torch.arange(8.0).view(8, 1, 1, 1), "std": torch.zeros(8, 1, 1, 1)},
    ("tracks", "w"): {"tracks": torch.zeros(5, 2, 2), "visible": torch.ones(5, 2, dtype=torch.uint8)},
}
for place, (_, frame) in enumerate(WINDOW.ends, 1):
    sigmas = torch.arange(4.0)
    end = units.end_unit("s", frame)
    CELLS["ends", end] = {
        "condition_latents": torch.full((1, 1, 1), 40.0 + 10 * place), "image_embeds": torch.zeros(3),
    }  # fmt: skip
    CELLS["noisy_ends", end] = {"condition_latents": (sigmas + 10 * place).view(4, 1, 1, 1), "sigmas": sigmas}


def reader(cells: dict[tuple[str, str], dict[str, torch.Tensor]]) -> ReadUnit:
    return lambda kind, unit, rows=ALL_ROWS: {name: tensor[rows] for name, tensor in cells[kind, unit].items()}


class TestConditionNoise:
    def test_off_uses_the_encoding_of_renders_and_tells_its_strength(self) -> None:
        batch = batch_of(2)
        first, last, strengths = loss.noisy_ends(batch, [1, 2], framer(conditioning__noise_aug_strength=0.3))
        assert torch.equal(first, batch["first"]) and torch.equal(last, batch["last"])
        assert strengths.tolist() == [pytest.approx(0.3)] * 2

    def test_the_bank_gives_both_ends_one_draw_by_the_items_seed(self) -> None:
        """Latents and strength are of one row of the bank, the same for both ends."""
        params = framer(conditioning__condition_noise="bank")
        numbers = []
        for seed in range(40):
            item = loss.read_window(WINDOW, reader(CELLS), BASE, params, seed)
            number = item["condition_sigma"].item()
            assert (item["first"].item(), item["last"].item()) == (number + 10, number + 20)
            numbers.append(number)
        assert set(numbers) == {0, 1, 2, 3}
        batch = batch_of(3, bank=True)
        first, last, strengths = loss.noisy_ends(batch, [1, 2, 3], params)
        assert torch.equal(first, batch["first"]) and torch.equal(last, batch["last"])
        assert torch.equal(strengths, batch["condition_sigma"])

    def test_latent_noise_has_the_laws_strength_times_the_latents_spread(self) -> None:
        params, batch = framer(conditioning__condition_noise="latent"), batch_of(400)
        first, _, strengths = loss.noisy_ends(batch, list(range(400)), params)
        assert strengths.log().mean().item() == pytest.approx(-3, abs=0.1)
        assert strengths.log().std().item() == pytest.approx(0.5, abs=0.08)
        share = (first - batch["first"]).std(dim=(1, 2, 3)) / batch["first"].std(dim=(1, 2, 3)) / strengths
        assert share.mean().item() == pytest.approx(1, abs=0.05)

    def test_the_unet_is_told_each_items_strength(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[torch.Tensor] = []
        real = FramerUNet.forward

        def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            seen.append(kwargs["added_time_ids"])
            return real(self, *args, **kwargs)

        monkeypatch.setattr(FramerUNet, "forward", forward)
        params, batch = framer(conditioning__condition_noise="bank"), batch_of(3, bank=True)
        with torch.no_grad():
            loss.loss(load_unet(BASE).eval(), batch, [5, 6, 7], BASE, params)
        expected = loss.noisy_ends(batch, [5, 6, 7], params)[2]
        assert seen[0][:, :2].tolist() == [[6, 127]] * 3
        torch.testing.assert_close(seen[0][:, 2], expected)

    def test_an_item_is_read_as_its_mode_says(self) -> None:
        for mode, ends in (("off", (50.0, 60.0)), ("latent", (2.0, 6.0))):
            item = loss.read_window(WINDOW, reader(CELLS), BASE, framer(conditioning__condition_noise=mode), 0)
            assert item.keys() == {"mean", "std", "first", "last", "image_embeds"}
            assert item["mean"].flatten().tolist() == [2, 3, 4, 5, 6]
            assert (item["first"].item(), item["last"].item()) == ends
        item = loss.read_window(WINDOW, reader(CELLS), BASE, framer(encode__tracks="lucas_kanade"), 0)
        assert item["tracks"].shape == (5, 2, 2) and item["visible"].dtype == torch.float32


def moving_square(frames: int = 6, step: int = 3) -> np.ndarray:
    """A textured square that moves right by `step` pixels a frame, over a flat ground, and leaves a 96x64 picture."""
    texture = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    square = cv2.resize(texture, (20, 20), interpolation=cv2.INTER_LINEAR)
    clip = np.full((frames, 64, 140, 3), 90, np.uint8)
    for number in range(frames):
        clip[number, 20:40, 60 + step * number : 80 + step * number] = square
    return clip[:, :, :96]


class TestTracking:
    def test_points_follow_what_moves(self) -> None:
        got = encode.track_points(moving_square(), 16)
        tracks, visible = got["tracks"].numpy(), got["visible"].numpy().astype(bool)
        assert tracks.shape == (6, 16, 2) and visible.shape == (6, 16)
        kept = visible.all(axis=0)
        assert kept.sum() >= 3
        steps = np.diff(tracks[:, kept], axis=0)
        np.testing.assert_allclose(steps[..., 0], 3, atol=0.4)
        np.testing.assert_allclose(steps[..., 1], 0, atol=0.4)

    def test_a_point_that_leaves_the_picture_is_hidden_from_then_on(self) -> None:
        got = encode.track_points(moving_square(frames=16), 16)
        visible = got["visible"].numpy().astype(bool)
        assert visible[0].any() and not visible[-1].any()
        assert (np.diff(visible.astype(int), axis=0) <= 0).all()

    def test_a_cut_loses_the_points(self) -> None:
        clip = moving_square()
        clip[3:] = np.random.default_rng(1).integers(0, 256, clip[3:].shape, dtype=np.uint8)
        assert encode.track_points(clip, 16)["visible"][3:].float().mean() < 0.1

    def test_a_flat_picture_has_no_points_and_the_shape_stays(self) -> None:
        got = encode.track_points(np.full((4, 32, 48, 3), 77, np.uint8), 8)
        assert got["tracks"].shape == (4, 8, 2)
        assert not got["visible"].any()

    def test_the_same_clip_gives_the_same_bytes(self) -> None:
        first, second = (encode.track_points(moving_square(), 16) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)


class TestHeatmapsInTraining:
    def test_training_a_controlnet_without_tracking_is_refused_at_once(self, tmp_path: Path) -> None:
        text = (REPOSITORY / "params.yaml").read_text().replace("  controlnet: none", "  controlnet: lora")
        (tmp_path / "params.yaml").write_text(text)
        with pytest.raises(UserError, match=r"framer\.encode\.tracks"):
            load_params(tmp_path / "params.yaml")
        (tmp_path / "params.yaml").write_text(text.replace("tracks: none", "tracks: lucas_kanade", 1))
        assert load_params(tmp_path / "params.yaml").train.controlnet == "lora"

    def test_numbers_of_points_vary_and_some_are_dropped(self) -> None:
        params = framer(objective__control_points_max=5, objective__control_point_dropout=0.25)
        visible = torch.ones(4, 20, dtype=torch.bool)
        visible[0, 10:] = False
        chosen = torch.stack([loss.chosen_points(visible, seed, params) for seed in range(2000)])
        counts = chosen.sum(1)
        assert set(counts.tolist()) == {0, 1, 2, 3, 4, 5}
        assert counts.float().mean().item() == pytest.approx(3 * 0.75, rel=0.05)
        assert not chosen[:, 10:].any() and chosen[:, :10].any(0).all()
        assert torch.equal(loss.chosen_points(visible, 3, params), chosen[3])

    def test_the_controlnet_is_shown_the_chosen_points(self) -> None:
        params, batch = framer(), batch_of(2, points=6)
        batch["visible"][1, 2:] = 0  # lost half way
        got = loss.hints(batch, [3, 4], BASE, params)
        assert got.shape == (2, 4, 3, 32, 48)
        for item, seed in enumerate((3, 4)):
            shown = batch["visible"][item].bool() & loss.chosen_points(batch["visible"][item].bool(), seed, params)
            expected = heatmaps(batch["tracks"][item], shown, width=48, height=32, side=6)
            assert torch.equal(got[item], expected)

    def test_without_tracks_a_controlnet_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"framer\.encode\.tracks"):
            loss.hints(batch_of(1), [1], BASE, framer())

    def test_the_loss_trains_a_controlnet_on_a_frozen_unet(self) -> None:
        """A new ControlNet leaves the loss as it is, and has a gradient from the first step on."""
        params, batch, seeds = framer(objective__conditioning_dropout_prob=0.0), batch_of(2, points=6), [3, 4]
        unet = load_unet(BASE).eval().requires_grad_(False)
        controlnet = loss.load_controlnet(unet, BASE, torch.float32, seed=0)
        plain = loss.loss(unet, batch, seeds, BASE, params)
        optimizer = torch.optim.AdamW(controlnet.parameters(), lr=1e-3)
        values = []
        for _ in range(8):
            value = loss.loss(unet, batch, seeds, BASE, params, controlnet=controlnet)
            values.append(value.mean().item())
            optimizer.zero_grad()
            value.mean().backward()
            optimizer.step()
        assert values[0] == pytest.approx(plain.mean().item(), rel=1e-6)
        assert values[-1] < values[0] - 0.01
