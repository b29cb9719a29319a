"""What runs again after which change: the promises of the README's table, on a real pipeline under DVC.

One project for all tests of this file. Each test starts from its committed state, brought up to date, and leaves it so.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, Project, Run
from ruamel.yaml import YAML

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("reruns")]

ALL = ["captions", "extract", "pair", "encode", "train", "render", "score", "report"]
TRAIN_CLIP, TEST_CLIP = "squirrel_spiky_ball", "camera_down_trees"  # dealt to these splits by their content
CLIPS = Path("data/demo/clips")


class StillFlow(torch.nn.Module):
    """A flow network that sees no motion."""

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(one[:, :2])


@dataclass
class UpToDate:
    """A project after its first `dvc repro`."""

    project: Project
    first: Run
    outs: dict[str, bytes]
    tables: dict[str, pd.DataFrame]


def read_tables(project: Project) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_parquet(path) for path in sorted((project.root / "data").glob("*.parquet"))}


@pytest.fixture(scope="module")
def before(make_project: Callable[..., Project]) -> UpToDate:
    project = make_project()
    first = project.repro()
    project.git("add", "-A")
    project.git("commit", "-qm", "up to date")
    return UpToDate(project, first, project.outs(), read_tables(project))


@pytest.fixture
def project(before: UpToDate) -> Iterator[Project]:
    project = before.project
    yield project
    project.git("checkout", "-q", ".")
    project.git("clean", "-qfd", "data/demo")
    project.run("dvc", "checkout", "--force")
    assert project.outs() == before.outs


def add_clip(project: Project, name: str, to: str = "") -> None:
    shutil.copyfile(REPOSITORY / CLIPS / f"{name}.mp4", project.root / CLIPS / f"{to or name}.mp4")


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_first_run_computes_everything(before: UpToDate) -> None:
    assert before.first.stages == ALL
    assert {"extract/frames", "encode/latents", "encode/ends", "train/adapter"} <= before.first.computed_kinds
    assert before.project.metrics()["windows"] > 0
    assert "reports/index.html" in before.outs


def test_a_second_run_does_nothing(project: Project) -> None:
    assert project.repro().stages == []


def test_an_added_training_clip_costs_its_own_cells(project: Project, before: UpToDate) -> None:
    add_clip(project, TRAIN_CLIP)
    run = project.repro()
    after = read_tables(project)
    (content_id,) = set(after["frames"].content_id) - set(before.tables["frames"].content_id)
    shots = int((after["frames"].content_id == content_id).sum())
    ends = int(after["latents_train"].unit.str.match(f"{content_id}.*@").sum())
    assert shots and ends
    assert run.computed["captions/facts"] == 1
    assert run.computed["extract/frames"] == run.computed["encode/latents"] == shots
    assert run.computed["encode/ends"] == ends
    assert run.computed["train/adapter"] == 1
    assert run.computed["render/base"] == 0  # the test pairs are what they were
    assert run.computed["render/adapter"] == len(after["pairs_test"])  # by a new adapter


def test_an_added_test_clip_retrains_nothing(project: Project, before: UpToDate) -> None:
    add_clip(project, TEST_CLIP)
    run = project.repro()
    after = read_tables(project)
    added = len(after["pairs_test"]) - len(before.tables["pairs_test"])
    assert "train" not in run.stages
    assert added > 0
    assert run.computed["render/base"] == run.computed["render/adapter"] == added


def test_a_renamed_and_a_touched_clip_cost_nothing(project: Project) -> None:
    folder = project.root / CLIPS
    (folder / "cloud_over_trees.mp4").rename(folder / "another_name.mp4")
    replace_in(project.root / "data/demo/metadata.json", "cloud_over_trees.mp4", "another_name.mp4")
    os.utime(folder / "bunny_wakes.mp4")
    run = project.repro()
    assert run.computed_kinds == set()
    assert "encode" not in run.stages
    assert "train" not in run.stages
    assert "clips/another_name.mp4" in set(read_tables(project)["sources"].name)


def test_an_edited_caption_extracts_and_encodes_nothing(project: Project) -> None:
    path = project.root / "data/demo/metadata.json"
    rows = json.loads(path.read_text())
    rows[0]["text"] = "Another caption."
    path.write_text(json.dumps(rows))
    run = project.repro()
    assert run.stages == ["captions", "encode", "report"]  # Framer takes no text: encode finds nothing to do
    assert run.computed_kinds == set()
    assert "Another caption." in set(read_tables(project)["captions"].text)


@pytest.mark.parametrize("values", [{"pair.stride": 4}, {"pair.num_frames": 7}])
def test_other_windows_encode_new_ends_only(project: Project, before: UpToDate, values: dict[str, int]) -> None:
    project.set_all(values)
    run = project.repro()

    def ends(tables: dict[str, pd.DataFrame]) -> set[str]:
        units = pd.concat([tables[f"latents_{split}"] for split in ("train", "val", "test")])
        return set(units.unit[units.kind == "ends"])

    assert "extract" not in run.stages
    assert run.computed["encode/latents"] == 0
    assert run.computed["encode/ends"] == len(ends(read_tables(project)) - ends(before.tables))


@pytest.mark.parametrize(
    ("values", "stages"),
    [
        ({"adapter.rank": 2}, ["train", "report"]),
        ({"train.learning_rate": 1e-4}, ["train", "report"]),
        ({"framer.objective.sigma_log_mean": 0.5}, ["train", "report"]),
        ({"framer.render.max_guidance_scale": 2.0}, ["render", "report"]),
        ({"render.seed": 1}, ["render", "report"]),
        ({"score.seed": 1}, ["score", "report"]),
        ({"score.metrics": ["psnr"]}, ["score", "report"]),
        ({"report.title": "Another title"}, ["report"]),
    ],
)
def test_a_parameter_touches_the_stages_that_use_it(
    before: UpToDate, values: dict[str, object], stages: list[str]
) -> None:
    """Stages whose own inputs changed; what follows them runs if their outs come out different."""
    before.project.set_all(values)
    touched = before.project.repro("--dry").stages
    before.project.git("checkout", "-q", "params.yaml")
    assert touched == stages


def test_an_added_metric_scores_and_reports_and_its_network_computes_that_metric_only(
    project: Project, tmp_path: Path
) -> None:
    names = [*YAML().load(project.root / "params.yaml")["score"]["metrics"], "dynamic_degree"]
    project.set(score__metrics=names)
    run = project.repro()
    assert run.stages == ["score", "report"]
    assert run.computed_kinds == set()
    needs = "needs weights: score.dynamic_degree_weights"
    assert f"dynamic_degree: {needs}" in run.stdout
    assert needs in (project.root / "reports/index.html").read_text()
    assert not [key for key in project.metrics() if key.startswith("dynamic_degree")]
    torch.jit.script(StillFlow()).save(str(tmp_path / "raft.pt"))
    project.set(score__dynamic_degree_weights=str(tmp_path / "raft.pt"))
    run = project.repro()
    assert run.stages == ["score", "report"]
    assert run.computed_kinds == {"score/network"}
    assert project.metrics()["dynamic_degree_base"] == 0
    assert project.metrics()["dynamic_degree_gain_adapter_1"] == 0


def test_another_weight_renders_only_that_weight(project: Project, before: UpToDate) -> None:
    project.set(render__lora_weights=[1.0, 0.5])
    run = project.repro()
    assert "train" not in run.stages
    assert run.computed["render/adapter"] == len(before.tables["pairs_test"])
    assert run.computed["render/base"] == 0


def test_a_removed_clip_leaves_every_index(project: Project, before: UpToDate) -> None:
    sources = before.tables["sources"].set_index("name")
    content_id = sources.content_id["clips/bunny_stands_up.mp4"]
    (project.root / CLIPS / "bunny_stands_up.mp4").unlink()
    run = project.repro()
    assert run.computed["train/adapter"] == 1
    for name, table in read_tables(project).items():
        assert not table.astype(str).apply(lambda column: column.str.contains(content_id)).to_numpy().any(), name


def test_the_same_clip_under_two_names_is_one_content(project: Project, before: UpToDate) -> None:
    add_clip(project, "bunny_wakes", to="copy_of_bunny_wakes")
    run = project.repro()
    sources = read_tables(project)["sources"]
    names = sources[sources.content_id == sources.set_index("name").content_id["clips/bunny_wakes.mp4"]].name
    assert set(names) == {"clips/bunny_wakes.mp4", "clips/copy_of_bunny_wakes.mp4"}
    assert run.computed_kinds == set()
    pd.testing.assert_frame_equal(read_tables(project)["frames"], before.tables["frames"])


def test_going_back_to_earlier_parameters_computes_nothing(project: Project, before: UpToDate) -> None:
    project.set(adapter__rank=4)
    project.repro()
    project.git("checkout", "-q", "params.yaml")
    run = project.repro("--no-run-cache", "--force")  # DVC's own cache must not answer for ours
    assert run.stages == ALL
    assert run.computed_kinds == set()
    assert project.outs() == before.outs


def test_an_edited_comment_computes_nothing(project: Project) -> None:
    for path in (
        "media/decode",
        "media/lossless",
        "families/framer/networks/unet",
        "training/loop",
        "evaluation/baselines",
    ):
        file = project.root / f"framelora/{path}.py"
        file.write_text(file.read_text() + "\n# A comment changes nothing.\n")
    run = project.repro()
    assert {"extract", "encode", "train", "render"} <= set(run.stages)
    assert run.computed_kinds == set()


def test_edited_code_computes_its_own_cells_anew(project: Project) -> None:
    """Equal bytes come out of it, so nothing that follows is computed anew."""
    file = project.root / "framelora/families/framer/encode.py"
    file.write_text(file.read_text() + "\nANOTHER_CONSTANT = 1\n")
    run = project.repro()
    assert run.computed_kinds == {"encode/latents", "encode/ends"}
    assert "0 reused" in run.stdout


def test_a_deleted_store_heals_in_the_stage_that_needs_it(project: Project, before: UpToDate) -> None:
    shutil.rmtree(project.root / ".cells")
    project.set(adapter__rank=2)
    run = project.repro()
    assert run.stages[0] == "train"
    assert {"extract/frames", "encode/latents", "train/adapter"} <= run.computed_kinds
    assert "cells are missing" in run.stderr
    project.git("checkout", "-q", "params.yaml")
    shutil.rmtree(project.root / ".cells")
    assert project.repro("--no-run-cache", "--force").computed["train/adapter"] == 1
    assert project.outs() == before.outs


def test_a_flipped_bit_in_a_latent_cell_is_noticed_and_healed(project: Project, before: UpToDate) -> None:
    key = before.tables["latents_train"].query("kind == 'latents'").cell.iloc[0]
    path = project.root / f".cells/encode/latents/{key[:2]}/{key}.cell"
    good, stat = path.read_bytes(), path.stat()
    path.write_bytes(good[:-100] + bytes([good[-100] ^ 1]) + good[-99:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    project.set(adapter__rank=3)
    run = project.repro()
    assert f"encode/latents {key[:12]} is damaged" in run.stderr
    assert run.computed["encode/latents"] == 1
    assert path.read_bytes() == good


def test_a_stage_run_by_hand_leaves_the_cache_of_dvc_alone(project: Project, before: UpToDate) -> None:
    project.run("dvc", "config", "cache.type", "hardlink")
    project.run("dvc", "checkout", "--relink")
    cache = project.root / ".dvc/cache/files/md5"
    objects = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    assert (project.root / "data/frames.parquet").stat().st_nlink > 1
    project.set(pair__stride=6, render__seed=2)
    for stage in ALL:
        project.stage(stage)
    assert project.outs() != before.outs
    assert {path: path.read_bytes() for path in objects} == objects
    project.git("checkout", "-q", ".")
    project.run("dvc", "checkout", "--force")
    assert project.outs() == before.outs


def test_an_experiment_in_a_copy_of_the_checkout_shares_its_cells(project: Project) -> None:
    """`dvc exp run --temp` (and `--queue`) runs in .dvc/tmp/exps: the cells it makes are this checkout's."""
    project.run("dvc", "exp", "run", "--temp", "--name", "rank-five", "-S", "adapter.rank=5")
    assert not list((project.root / ".dvc/tmp").rglob("*.cell"))
    assert "rank-five" in project.run("dvc", "exp", "list").stdout
    project.set(adapter__rank=5)
    run = project.repro("--no-run-cache")
    assert "train" in run.stages
    assert run.computed_kinds == set()


def test_two_clean_runs_give_the_same_bytes(before: UpToDate, make_project: Callable[..., Project]) -> None:
    other = make_project()
    other.repro()
    assert other.outs() == before.outs
