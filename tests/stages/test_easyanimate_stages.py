"""The pipeline on a small EasyAnimate base: what switching the family redoes, and what training builds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import transformers
from conftest import Project
from easyanimate_base import make_base

from framelora.families.easyanimate import encode
from framelora.files import read_table

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("easyanimate")]


@pytest.fixture(scope="module")
def switched(make_project: Callable[..., Project]) -> Project:
    """A project whose frames were extracted for Framer, then switched to EasyAnimate and encoded."""
    project = make_project(render__lora_weights=[0, 0.15])
    for stage in ("captions", "extract", "pair"):
        project.stage(stage)
    make_base(project.root / "bases/small", in_channels=9)
    project.set(
        model__family="easyanimate", model__base="bases/small", easyanimate__conditioning__static_clips="middle_frame",
        easyanimate__render__condition="first_frame", easyanimate__encode__long_captions="truncate",
    )  # fmt: skip
    assert project.stage("extract").computed == {"extract/shots": 0, "extract/frames": 0}
    project.stage("encode")
    return project


def test_static_clips_are_cells_of_one_frame_and_test_clips_move(switched: Project) -> None:
    train, test = (read_table(switched.root / f"data/latents_{split}.parquet") for split in ("train", "test"))
    assert set(train.unit[train.kind == "latents"].str.partition("+")[2]) == {"1"}
    assert set(test.unit[test.kind == "latents"].str.partition("+")[2]) == {"5"}
    assert "" in set(train.unit[train.kind == "text"])


def test_training_builds_no_encoder(
    switched: Project, monkeypatch: pytest.MonkeyPatch, refuse_to_build: Callable[..., None]
) -> None:
    from stages import train

    refuse_to_build(diffusers.AutoencoderKLMagvit, transformers.BertModel)
    monkeypatch.chdir(switched.root)
    train.main()
    assert Path("models/adapter/adapter_model.safetensors").is_file()


def test_cached_training_has_the_losses_of_live_training(
    switched: Project, losses_of: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips, captions and masked videos, drawn ones among them, come out of the encoders as out of the cells."""
    switched.set(train__max_train_steps=20, easyanimate__conditioning__mask_modes__pixels=0.5)
    switched.stage("encode")
    cached = losses_of(switched, train__latents="cached")
    live = losses_of(switched, train__latents="live")
    assert len(live) >= 20 + 2
    assert live == pytest.approx(cached, rel=1e-5)

    real = encode.add_noise  # another draw of the noise on what is kept of a masked video
    monkeypatch.setattr(encode, "add_noise", lambda clip, seed, sigma: real(clip, seed + 1, sigma))
    wrong = losses_of(switched, train__max_train_steps=1)
    assert wrong[:5] != pytest.approx(cached[:5], rel=1e-5)
    switched.set(train__latents="cached", train__max_train_steps=2, easyanimate__conditioning__mask_modes__pixels=0.0)
    switched.stage("encode")


def test_a_new_weight_renders_only_that_weight_and_zero_is_the_base(switched: Project) -> None:
    switched.stage("train")
    first = switched.stage("render")
    windows = first.computed["render/base"]
    assert first.computed["render/adapter"] == windows > 0
    switched.set(render__lora_weights=[0, 0.05, 0.15])
    again = switched.stage("render")
    assert again.computed == {kind: windows if kind == "render/adapter" else 0 for kind in first.computed}


def test_clips_that_do_not_fit_the_base_stop_before_anything_is_encoded(switched: Project) -> None:
    switched.set(pair__num_frames=7)
    switched.stage("pair")
    run = switched.stage("encode", check=False)
    assert run.returncode == 1
    assert "pair.num_frames 7 is not a multiple of 4 plus 1: set it to 5 or 9" in run.stderr
