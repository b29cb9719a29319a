"""Data that lives in a DVC remote: tracked, pushed, lost and fetched again, the pipeline finds the same content."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Project

pytestmark = pytest.mark.slow


def test_a_data_folder_comes_back_from_a_local_remote(make_project: Callable[..., Project], tmp_path: Path) -> None:
    project = make_project(clips=("bunny_wakes",), pairs=(), data__root="data/mine")
    shutil.copytree(project.root / "data/demo", project.root / "data/mine")
    project.run("dvc", "remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    project.run("dvc", "add", "data/mine")
    project.run("dvc", "push", "data/mine.dvc")
    project.stage("captions")
    sources = (project.root / "data/sources.parquet").read_bytes()
    shutil.rmtree(project.root / "data/mine")
    shutil.rmtree(project.root / ".dvc/cache")
    run = project.stage("captions", check=False)
    assert run.returncode == 1
    assert "data.root: data/mine does not exist" in run.stderr
    project.run("dvc", "pull", "data/mine.dvc")
    assert "1 computed" not in project.stage("captions").stdout
    assert (project.root / "data/sources.parquet").read_bytes() == sources


def test_a_folder_is_imported_from_an_address(make_project: Callable[..., Project], tmp_path: Path) -> None:
    project = make_project(clips=("bunny_wakes",), pairs=(), data__root="data/mine")
    shutil.copytree(project.root / "data/demo", tmp_path / "elsewhere")
    project.run("dvc", "import-url", str(tmp_path / "elsewhere"), "data/mine")
    assert "captions: 1 clips" in project.stage("captions").stdout
