"""Small projects for tests: copies of this repository with a few of the demo's clips and a short training."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

import framelora  # noqa: F401  # before any test imports torch: it sets how torch's threads wait

# How long an example takes says nothing on a shared machine.
settings.register_profile("framelora", deadline=None)
settings.load_profile("framelora")

REPOSITORY = Path(__file__).resolve().parent.parent
# Under the demo's split seed the first two are dealt to train, the third to val, the last to test.
CLIPS = ("bunny_wakes", "bunny_stands_up", "bunny_scratches_head", "cloud_over_trees")
SHORT = {
    "extract.fps": 8.0,
    "pair.filters": [],
    "extract.buckets": ["48x32", "32x48"],
    "train.max_train_steps": 2,
    "train.learning_rate": 5.0e-3,  # two steps must change something
    "train.train_batch_size": 2,
    "train.checkpointing_steps": 1,
    "train.validation_steps": 2,
    "train.validation_draws": 1,
    "pair.stride": 5,
    "pair.leaks": "report",  # on frames that small all that is dark is alike
    "render.num_inference_steps": 1,
    "score.bootstrap_samples": 50,
}
CELLS = re.compile(r"^(\S+): (\d+) cells, (\d+) computed, (\d+) reused$", re.MULTILINE)


@dataclass
class Run:
    """What one command did."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def stages(self) -> list[str]:
        """Stages that DVC ran, in order."""
        return re.findall(r"^Running stage '(\w+)':", self.stdout, re.MULTILINE)

    @property
    def computed(self) -> dict[str, int]:
        """Cells computed by kind, summed over the summary lines."""
        counts: dict[str, int] = {}
        for kind, _, computed, _ in CELLS.findall(self.stdout):
            counts[kind] = counts.get(kind, 0) + int(computed)
        return counts

    @property
    def computed_kinds(self) -> set[str]:
        """Kinds of which at least one cell was computed."""
        return {kind for kind, count in self.computed.items() if count}


@dataclass
class Project:
    """A checkout of the pipeline in a temporary folder."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, check: bool = True) -> Run:
        """Run a command in the project; with `check` a failure is the test's."""
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            **self.environment,
        }
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} exited with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return Run(done.returncode, done.stdout, done.stderr)

    def repro(self, *options: str) -> Run:
        """`dvc repro`."""
        return self.run("dvc", "repro", *options)

    def stage(self, name: str, *options: str, check: bool = True) -> Run:
        """One stage by hand."""
        return self.run(sys.executable, "-m", f"stages.{name}", *options, check=check)

    def git(self, *arguments: str) -> None:
        """A git command, with an author."""
        self.run("git", "-c", "user.name=Test", "-c", "user.email=test@example.com", *arguments)

    def set(self, **values: Any) -> None:
        """Change parameters; keys are dotted with `__` for the dot."""
        self.set_all({key.replace("__", "."): value for key, value in values.items()})

    def set_all(self, values: dict[str, Any]) -> None:
        """Change parameters by their dotted names."""
        path = self.root / "params.yaml"
        yaml = YAML()
        document = yaml.load(path)
        for key, value in values.items():
            *sections, leaf = key.split(".")
            section = document
            for name in sections:
                section = section[name]
            section[leaf] = CommentedSeq(value) if isinstance(value, list) else value
            if isinstance(value, list):  # in brackets: a comment that follows a list of lines may break it
                section[leaf].fa.set_flow_style()
        with path.open("w") as file:
            yaml.dump(document, file)

    def outs(self) -> dict[str, bytes]:
        """Every out of the graph, byte for byte."""
        found = {}
        for folder in ("data", "models", "reports"):
            for path in sorted((self.root / folder).rglob("*")):
                name = path.relative_to(self.root).as_posix()
                kept = path.is_file() and path.name not in (".gitignore", ".snakemake_timestamp", "run.js")
                if kept and not name.startswith("data/demo/") and not name.endswith(".py"):
                    found[name] = path.read_bytes()
        return found

    def metrics(self) -> dict[str, float]:
        """reports/metrics.json."""
        result: dict[str, float] = json.loads((self.root / "reports/metrics.json").read_text())
        return result


def copy_repository(destination: Path) -> None:
    """Copy the files that git would take: tracked ones and new ones that are not ignored."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPOSITORY, capture_output=True, check=True
    )
    for name in listing.stdout.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, destination / name)


def keep_clips(demo: Path, clips: tuple[str, ...], pairs: tuple[str, ...]) -> None:
    """Thin a demo folder out to some clips and image pairs."""
    rows = json.loads((demo / "metadata.json").read_text())
    for path in [*demo.glob("clips/*"), *demo.glob("pairs/*")]:
        if path.stem not in clips and path.stem.rpartition("_")[0] not in pairs:
            path.unlink()
    rows = [row for row in rows if (demo / row["file_path"]).exists()]
    (demo / "metadata.json").write_text(json.dumps(rows, indent=2))


@contextmanager
def unprivileged() -> Iterator[None]:
    """Let permissions count: root acts as nobody in here, anybody else as before."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can reach (pytest's own are private to who runs it)."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        with unprivileged():
            reachable = os.access(name, os.W_OK, effective_ids=True)
        if not reachable:
            pytest.skip("the folder for temporary files is closed to other users")
        yield Path(name)


@pytest.fixture(scope="session")
def make_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Project]:
    """A function that makes a small project; nothing has run in it."""

    def make(clips: tuple[str, ...] = CLIPS, pairs: tuple[str, ...] = ("squirrel_turns",), **values: Any) -> Project:
        project = Project(tmp_path_factory.mktemp("project"))
        copy_repository(project.root)
        keep_clips(project.root / "data/demo", clips, pairs)
        project.set_all({**SHORT, **{key.replace("__", "."): value for key, value in values.items()}})
        project.git("init", "-q")
        project.git("add", "-A")
        project.git("commit", "-qm", "project")
        return project

    return make


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch use one thread: figures and draws of the bases' recipes hold for one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def losses_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """A function that trains a project in this process, with changed parameters, and gives all losses it measured."""

    def losses(project: Project, **values: Any) -> list[float]:
        from stages import train

        project.set(**values)
        monkeypatch.chdir(project.root)
        train.main()
        history = json.loads((project.root / "models/checkpoints/final/state/state.json").read_text())["history"]
        return [value for row in history for name, value in row.items() if "loss" in name]

    return losses


@pytest.fixture
def refuse_to_build(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes building any of some networks fail for the rest of the test."""

    def refuse(*networks: type) -> None:
        def fail(*_: object, **__: object) -> None:
            raise AssertionError("built in the training process")

        for network in networks:
            monkeypatch.setattr(network, "__init__", fail)

    return refuse
