"""`framelora fork`: a second project beside the first, which it leaves as it is and from which it takes cells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Project
from typer.testing import CliRunner

from framelora.cli import app
from framelora.params import load_params
from framelora.report.run import read_commit

PRESET = "extract:\n  fps: 4.0\n"


@pytest.fixture(scope="module")
def project(make_project: Callable[..., Project]) -> Project:
    project = make_project()
    (project.root / "slow.yaml").write_text(PRESET)
    return project


def test_it_computes_nothing_twice_and_changes_nothing_here(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    project.stage("captions")
    project.stage("extract")
    before = project.outs() | {"params.yaml": Path("params.yaml").read_bytes()}
    made = CliRunner().invoke(app, ["fork", "runs/same"])
    assert (made.exit_code, made.stderr) == (0, "")
    fork = Project(project.root / "runs/same")
    assert fork.repro("extract").computed == {"captions/facts": 0, "extract/shots": 0, "extract/frames": 0}
    assert (fork.root / "data/frames.parquet").read_bytes() == before["data/frames.parquet"]
    assert project.outs() | {"params.yaml": Path("params.yaml").read_bytes()} == before
    assert "runs" not in project.run("git", "status", "--porcelain").stdout


def test_presets_are_for_the_fork_alone_and_edits_here_reach_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.root)
    fps = load_params().extract.fps
    for number in range(2):  # the second brings the first up to date
        assert CliRunner().invoke(app, ["fork", "runs/slow", "--preset", "slow.yaml"]).exit_code == 0
        assert load_params(Path("runs/slow/params.yaml")).extract.fps == 4.0 != fps
        assert load_params().extract.fps == fps
        assert Path("runs/slow/stages/pair.py").read_bytes() == Path("stages/pair.py").read_bytes()
        commit = read_commit(Path("runs/slow"))
        assert commit is not None and commit["dirty"] == (number == 1)
        Path("stages/pair.py").write_text(Path("stages/pair.py").read_text() + "# edited\n")


def test_no_folder_of_somebody_else_is_taken(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(project.root)
    (tmp_path / "mine.txt").write_text("mine")
    taken = CliRunner().invoke(app, ["fork", str(tmp_path)])
    assert (taken.exit_code, taken.stderr.count("\n")) == (1, 1)
    assert "exists and is no fork: name another folder" in taken.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
