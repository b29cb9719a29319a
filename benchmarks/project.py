"""A copy of this repository's pipeline in a temporary folder, for benchmarks on the demo's clips."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
# Two of them are dealt to train, one to val, one to test.
FEW_CLIPS = ("bunny_wakes", "bunny_stands_up", "bunny_scratches_head", "cloud_over_trees")


@contextmanager
def project(values: Mapping[str, Any], clips: Collection[str] = ()) -> Iterator[Path]:
    """Copy code, bases and demo clips, and change parameters.

    Args:
        values: parameters by their dotted names.
        clips: names of the clips to keep, without ending; none: all, and the image pairs.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("framelora", "stages", "bases", "data/demo", "models/start"):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
        set_params(folder, values)
        if clips:
            keep_clips(folder / "data/demo", clips)
        yield folder


def keep_clips(demo: Path, clips: Collection[str]) -> None:
    """Thin a demo folder out to some clips."""
    shutil.rmtree(demo / "pairs")
    for path in demo.glob("clips/*"):
        if path.stem not in clips:
            path.unlink()
    rows = json.loads((demo / "metadata.json").read_text())
    (demo / "metadata.json").write_text(json.dumps([row for row in rows if (demo / row["file_path"]).exists()]))


def set_params(folder: Path, values: Mapping[str, Any]) -> None:
    """Change parameters of a project."""
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    for key, value in values.items():
        *sections, leaf = key.split(".")
        section = params
        for part in sections:
            section = section[part]
        assert leaf in section, key
        section[leaf] = value
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(params, file)


def python(folder: Path, *arguments: str) -> str:
    """Run Python in a project, in a fresh interpreter; what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def run_stages(folder: Path, *stages: str) -> None:
    """Run stages one after the other."""
    for stage in stages:
        python(folder, "-m", f"stages.{stage}")
