"""Cells that only Framer's training reads: computed when asked for, and anew only when their own parameters change."""

from __future__ import annotations

import json
from collections.abc import Callable

import pandas as pd
import pytest
from conftest import Project

from framelora.cells.store import Store
from framelora.compute import unpack

pytestmark = pytest.mark.nightly


def test_the_bank_and_the_tracks_cost_their_own_cells_only(make_project: Callable[..., Project]) -> None:
    project = make_project(clips=("bunny_wakes", "bunny_scratches_head", "cloud_over_trees"), pairs=())
    for stage in ("captions", "extract", "pair", "encode"):
        project.stage(stage)
    project.set(framer__conditioning__condition_noise="bank", framer__encode__tracks="lucas_kanade")
    run = project.stage("encode")
    assert run.computed_kinds == {"encode/noisy_ends", "encode/tracks"}

    tables = {split: pd.read_parquet(project.root / f"data/latents_{split}.parquet") for split in ("train", "test")}
    windows = pd.read_parquet(project.root / "data/pairs_train.parquet")
    units = tables["train"].groupby("kind").unit.apply(set)
    assert units["tracks"] == set(windows.pair)
    assert units["noisy_ends"] == units["ends"]
    assert set(tables["test"].kind) == {"ends", "latents", "tracks"}  # renders have their own, fixed noise

    project.set(framer__conditioning__condition_noise_draws=2)
    assert project.stage("encode").computed_kinds == {"encode/noisy_ends"}
    project.set(framer__encode__track_points=8)
    assert project.stage("encode").computed_kinds == {"encode/tracks"}

    # Tracks that come with a video take their place in its windows, and in no others.
    given = {"tracks": [[{"time": 0, "x": 40, "y": 20}, {"time": 9, "x": 60, "y": 20}]]}
    (project.root / "data/demo/clips/bunny_wakes.tracks.json").write_text(json.dumps(given))
    project.stage("captions")
    run = project.stage("encode")
    sources = pd.read_parquet(project.root / "data/sources.parquet").set_index("name").content_id
    own = windows[windows.content_id == sources["clips/bunny_wakes.mp4"]]
    assert {kind: count for kind, count in run.computed.items() if count} == {"encode/tracks": len(own)}
    table = pd.read_parquet(project.root / "data/latents_train.parquet").set_index(["kind", "unit"]).cell
    store = Store(project.root / ".cells")
    visible = unpack(store.read("encode/tracks", table["tracks", own.pair.iloc[0]])[1])["visible"]
    assert (int(visible[:, 0].sum()), int(visible[:, 1:].sum())) == (5, 0)
    assert project.stage("encode").computed_kinds == set()
    project.set(train__max_train_steps=1)
    assert "1 computed" in project.stage("train").stdout
