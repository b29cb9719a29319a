"""The pipeline on a small EasyAnimate base: what switching the family redoes, and what training builds."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from conftest import Project, Run
from easyanimate_base import make_base
from PIL import Image
from safetensors.torch import load_file, save_file

from framelora.cells.store import Store
from framelora.console import UserError
from framelora.families.easyanimate import encode
from framelora.files import read_table
from framelora.media.lossless import decode_frames

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


@pytest.fixture
def stage(switched: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """A function that runs a stage in this process, which has loaded the libraries already."""
    monkeypatch.chdir(switched.root)

    def run(name: str, *, fails: bool = False) -> Run:
        main = importlib.import_module(f"stages.{name}").main
        options = {"shard": "", "fill": False} if name in ("extract", "render") else {}
        capsys.readouterr()
        if fails:
            with pytest.raises(UserError) as caught:
                main(**options)
            return Run(1, capsys.readouterr().out, f"error: {caught.value}\n")
        main(**options)
        return Run(0, *capsys.readouterr())

    return run


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


def test_sizes_are_planned_encoded_and_trained_each_with_cells_of_its_own(
    switched: Project, stage: Callable[..., Run]
) -> None:
    """The sizes that were there before keep their cells; what a further one costs is told before it is made."""
    before = read_table(switched.root / "data/latents_train.parquet").query("kind == 'latents'")
    sizes = [{"scale": 1.0, "num_frames": None}, {"scale": 0.5, "num_frames": None}]
    switched.set(easyanimate__conditioning__train_sizes=sizes)
    planned = switched.stage("encode", "--plan")
    (missing,) = re.findall(r"encode: (\d+) cells missing, \S+ MiB: latents (\d+) \(", planned.stdout)
    assert int(missing[1]) == len(before)
    assert read_table(switched.root / "data/latents_train.parquet").query("kind == 'latents'").equals(before)
    run = stage("encode")
    assert f"encode: {missing[0]} cells to compute" in run.stdout
    assert sum(run.computed.values()) == int(missing[0])
    after = read_table(switched.root / "data/latents_train.parquet").query("kind == 'latents'")
    assert set(after.cell) > set(before.cell)
    assert len(after) == 2 * len(before)
    assert "encode: 0 cells missing" in switched.stage("encode", "--plan").stdout
    assert stage("train").computed["train/adapter"] == 1
    switched.set(easyanimate__conditioning__train_sizes=sizes[:1])
    assert sum(stage("encode").computed.values()) == 0


def test_fresh_masks_need_live_latents(switched: Project, stage: Callable[..., Run]) -> None:
    switched.set(easyanimate__conditioning__fresh_masks=True)
    told = "error: params.yaml: easyanimate.conditioning.fresh_masks: true needs train.latents: live"
    assert stage("train", fails=True).stderr.startswith(told)
    switched.set(train__latents="live", easyanimate__conditioning__mask_modes__pixels=1.0)
    stage("encode")
    assert stage("train").computed["train/adapter"] == 1
    switched.set(
        train__latents="cached",
        easyanimate__conditioning__fresh_masks=False, easyanimate__conditioning__mask_modes__pixels=0.0,
    )  # fmt: skip
    stage("encode")


def test_a_new_weight_renders_only_that_weight_and_zero_is_the_base(switched: Project) -> None:
    switched.stage("train")
    first = switched.stage("render")
    windows = first.computed["render/base"]
    assert first.computed["render/adapter"] == windows > 0
    switched.set(render__lora_weights=[0, 0.05, 0.15])
    again = switched.stage("render")
    assert again.computed == {kind: windows if kind == "render/adapter" else 0 for kind in first.computed}


def test_adapters_that_act_together_are_rendered_beside_the_trained_one(
    switched: Project, stage: Callable[..., Run]
) -> None:
    """Two halves of an adapter are the whole; a name costs nothing; the folders are what counts."""
    stage("train")
    shutil.copytree(switched.root / "models/adapter", switched.root / "models/start/other", dirs_exist_ok=True)
    halves = {"models/adapter": 2.0, "models/start/other": 2.0}
    switched.set(render__lora_weights=[4.0], render__adapters={"halves": halves, "one": {"models/adapter": 2.0}})
    first = stage("render").computed
    windows = len(read_table(switched.root / "data/pairs_test.parquet").query("kind == 'window'"))
    assert first["render/with"] == 2 * windows > 0
    store = Store(switched.root / ".cells")
    clips = {
        row.method: decode_frames(store.read(row.cell_kind, row.cell)[1]).astype(float)
        for row in read_table(switched.root / "data/renders.parquet").itertuples()
    }
    apart = {name: np.abs(clips[f"with_{name}"] - clips["adapter_4"]).mean() for name in ("halves", "one")}
    assert apart["halves"] < 0.01 < apart["one"]
    switched.set(render__adapters={"renamed": halves})
    assert stage("render").computed["render/with"] == 0
    weights = switched.root / "models/start/other/adapter_model.safetensors"
    name = "base_model.model.proj_out.lora_A.weight"
    tensors = load_file(weights)
    save_file(tensors | {name: torch.zeros(len(tensors[name]), 99)}, weights)
    switched.set(render__adapters={"wide": {"models/start/other": 1.0}})
    unfit = stage("render", fails=True)
    assert unfit.returncode == 1
    assert (
        "render.adapters: models/start/other does not fit this base: proj_out is 16x99, the base's 16x32"
        in unfit.stderr
    )
    switched.set(render__adapters={"gone": {"models/start/gone": 1.0}})
    missing = stage("render", fails=True)
    assert missing.returncode == 1
    assert missing.stderr.endswith(
        "render.adapters: models/start/gone holds no adapter: copy a PEFT folder there (`framelora import`)\n"
    )
    shutil.rmtree(switched.root / "models/start/other")
    switched.set(render__adapters={})


def test_checkpoints_are_files_and_folders_side_by_side_are_rendered_and_gone_on_from(
    switched: Project, stage: Callable[..., Run]
) -> None:
    switched.set(
        train__single_files=True, train__max_train_steps=3, train__checkpoints_total_limit=2, render__checkpoints=True
    )
    stage("train")
    folder = switched.root / "models/checkpoints"
    names = ["best", "checkpoint-1", "checkpoint-2", "final"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*names, *(f"{name}.safetensors" for name in names)]
    )
    for name in names:
        tensors = load_file(folder / f"{name}.safetensors")
        lora = load_file(folder / name / "unet_lora/adapter_model.safetensors")
        layer = "transformer_blocks.0.attn1.add_q_proj"  # attn2.to_q in EasyAnimate's own class
        up = tensors["lora_unet__transformer_blocks_0_attn2_to_q.lora_up.weight"]
        assert torch.equal(up, lora[f"base_model.model.{layer}.lora_B.weight"])
    rendered = stage("render")
    table = read_table(switched.root / "data/renders.parquet")
    assert {"with_step_1", "with_step_2"} <= set(table.method)
    assert rendered.computed["render/with"] == 2 * table.pair.nunique()
    for path in folder.iterdir():  # all of it, files and folders
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, switched.root / "models/start" / path.name)
    switched.set(train__resume_from_checkpoint="latest", train__max_train_steps=4)
    stage("train")
    steps = [line.split()[0] for line in (switched.root / "reports/train/loss.tsv").read_text().splitlines()[1:]]
    state = json.loads((switched.root / "models/start/checkpoint-2/state/state.json").read_text())
    assert steps == ["1", "2", "3", "4"]
    assert sorted(path.name for path in folder.glob("*/")) == ["best", "checkpoint-3", "final"]  # what this run made
    assert json.loads((folder / "best/best.json").read_text())["step"] > 2
    kept = (switched.root / "reports/train/loss.tsv").read_text().splitlines()[2].split()[1]
    assert float(kept) == pytest.approx(state["history"][2]["loss"], rel=1e-4)
    for path in (switched.root / "models/start").glob("*.safetensors"):
        path.unlink()
    for path in (switched.root / "models/start").glob("*/"):
        shutil.rmtree(path)
    switched.set(
        train__resume_from_checkpoint=None, train__single_files=False, train__max_train_steps=2,
        render__checkpoints=False,
    )  # fmt: skip


def test_images_are_learned_from_at_a_size_and_share_of_their_own(switched: Project, stage: Callable[..., Run]) -> None:
    data = switched.root / "data/demo"
    before = (switched.root / "params.yaml").read_bytes()
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 255, (80, 80, 3), np.uint8)
        Image.fromarray(noise).save(data / f"picture{number}.png")
    switched.set(data__images=True, extract__image_buckets=["64x64"], train__image_share=0.5, train__max_train_steps=3)
    for name in ("captions", "extract", "pair"):
        stage(name)
    shots = read_table(switched.root / "data/frames.parquet")
    assert set(shots[shots.kind == "image"].width) == {64}
    assert 64 not in set(shots[shots.kind == "video"].width)
    said = stage("encode").stdout
    splits = {split: read_table(switched.root / f"data/pairs_{split}.parquet") for split in ("train", "val", "test")}
    images = {split: int((table.kind == "image").sum()) for split, table in splits.items()}
    assert sum(images.values()) == 6 and images["train"] > 0
    left_out = f"encode: {images['test']} single images of test are left out: easyanimate renders clips only"
    assert (left_out in said) == (images["test"] > 0)
    train = read_table(switched.root / "data/latents_train.parquet")
    assert (train.kind == "latents").sum() == splits["train"].drop_duplicates(["start_shot", "start_frame"]).shape[0]
    assert "train: 3 steps" in stage("train").stdout
    for path in data.glob("picture*"):
        path.unlink()
    (switched.root / "params.yaml").write_bytes(before)


def test_a_caption_that_is_too_long_stops_before_the_clips_are_encoded(
    switched: Project, stage: Callable[..., Run]
) -> None:
    switched.set(easyanimate__encode__long_captions="stop", easyanimate__encode__max_sequence_length=4)
    run = stage("encode", fails=True)
    assert run.returncode == 1
    error = r"error: text of \w+ \('(.+)\.\.\.'\): the text has \d+ tokens, and the encoder takes 4: shorten it\n$"
    found = re.search(error, run.stderr)
    assert found, run.stderr
    texts = read_table(switched.root / "data/captions.parquet").text
    assert any(text.startswith(found[1]) for text in texts) and len(found[1]) <= 57
    switched.set(easyanimate__encode__long_captions="truncate", easyanimate__encode__max_sequence_length=256)


def test_clips_that_do_not_fit_the_base_stop_before_anything_is_encoded(switched: Project) -> None:
    switched.set(pair__num_frames=7)
    switched.stage("pair")
    run = switched.stage("encode", check=False)
    assert run.returncode == 1
    assert "pair.num_frames 7 is not a multiple of 4 plus 1: set it to 5 or 9" in run.stderr
