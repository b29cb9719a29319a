"""Image pairs with middles that were made: trained on where it is asked for, marked everywhere, scored nowhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Project
from PIL import Image
from safetensors import safe_open

from framelora.cells.store import Store
from framelora.media.flow import flow_warp
from framelora.media.lossless import decode_frames


def draw_pairs(folder: Path, count: int) -> None:
    """Pairs of pictures in which a light square moves over a ground of blotches."""
    for number in range(count):
        random = np.random.default_rng(number)
        ground = np.kron(random.integers(0, 120, (4, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        for half, left in (("start", 6), ("end", 14)):
            picture = ground.copy()
            picture[10:20, left : left + 10] = 230
            Image.fromarray(picture).save(folder / f"pair{number}_{half}.png")


@pytest.fixture
def project(make_project: Callable[..., Project]) -> Project:
    project = make_project(clips=(), pairs=(), extract__buckets=["48x32"])
    shutil.rmtree(project.root / "data/demo")
    (project.root / "data/demo").mkdir()
    draw_pairs(project.root / "data/demo", 8)
    project.set(pair__pseudo_middles="flow", pair__val_fraction=0.2, pair__test_fraction=0.3, pair__leak_bits=-1)
    for stage in ("captions", "extract"):
        project.stage(stage)
    return project


def test_they_are_windows_of_training_and_validation_and_never_of_test(project: Project) -> None:
    run = project.stage("pair", check=False)
    if run.returncode:  # no pair was dealt to some split: the message names a seed that does it
        project.set(pair__split_seed=int(run.stderr.rpartition(" ")[2]))
        run = project.stage("pair")
    tables = {
        split: pd.read_parquet(project.root / f"data/pairs_{split}.parquet") for split in ("train", "val", "test")
    }
    for split in ("train", "val"):
        assert set(tables[split].kind) == {"window"}
        assert set(tables[split].pseudo) == {"flow"}
    assert set(tables["test"].kind) == {"image_pair"}
    assert set(tables["test"].pseudo) == {""}
    trained = set(tables["train"].content_id) | set(tables["val"].content_id)
    assert not trained & set(tables["test"].content_id)
    assert len(trained) + len(tables["test"]) == 8
    assert f"{len(trained)} of these windows are image pairs with pseudo middles (flow)" in run.stdout

    shots = pd.read_parquet(project.root / "data/pseudo.parquet").set_index("shot")
    frames = pd.read_parquet(project.root / "data/frames.parquet").set_index("shot")
    store = Store(project.root / ".cells")
    row = tables["train"].iloc[0]
    clip = decode_frames(store.read("pair/pseudo", shots.cell[row.start_shot])[1])
    first, last = (
        decode_frames(store.read("extract/frames", frames.cell[f"{row.content_id}-{half}"])[1])[0]
        for half in ("start", "end")
    )
    assert (clip == flow_warp(first, last, 5)).all()
    assert (row.start_frame, row.end_frame, row.num_frames) == (0, 4, 5)

    # A clip is a cell: computed once, and again when it is lost.
    assert project.stage("pair").computed["pair/pseudo"] == 0
    shutil.rmtree(project.root / ".cells/pair/pseudo")
    assert project.stage("pair", "--fill").computed["pair/pseudo"] == len(trained)

    project.set(pair__pseudo_middles="off")
    assert "pair.pseudo_middles makes some" in project.stage("pair", check=False).stderr
    project.set(pair__pseudo_middles="rife")
    assert project.stage("pair", check=False).stderr.startswith("error: pair.pseudo_middles: rife needs its package")


@pytest.mark.nightly
def test_what_is_made_from_them_says_so(project: Project) -> None:
    run = project.stage("pair", check=False)
    if run.returncode:
        project.set(pair__split_seed=int(run.stderr.rpartition(" ")[2]))
        project.stage("pair")
    for stage in ("encode", "train", "render", "score", "report"):
        project.stage(stage)
    trained = len(pd.read_parquet(project.root / "data/pairs_train.parquet"))
    with safe_open(project.root / "models/adapter/adapter_model.safetensors", "np") as weights:
        assert json.loads(weights.metadata()["framelora"])["pseudo_middles"] == {"flow": trained}
    renders = pd.read_parquet(project.root / "data/renders.parquet").set_index("method").pseudo
    assert set(renders["adapter_1"]) == {"flow"}
    assert set(renders["base"]) == {""}
    notes = json.loads((project.root / "reports/plots/notes.json").read_text())
    assert "middles made by flow" in notes["pseudo_middles"]
    assert not any(key.startswith("psnr_") for key in project.metrics())  # no true middles, so no score of them
    page = (project.root / "reports/index.html").read_text()
    assert f"Pseudo middles: {trained} of {trained} training window" in page
    assert f"Training ({trained} with pseudo middles)" in page
    run = project.run("framelora", "metrics")
    assert "pseudo_middles: the adapter learned from middles made by flow" in run.stdout
    project.run("framelora", "export", "models/adapter", "--format", "diffusers", "-o", "out.safetensors")
