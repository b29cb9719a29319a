"""`framelora fork`: a copy of the project in a folder of its own, to run other parameters beside the first."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from framelora import files
from framelora.cells.store import open_store
from framelora.commands.preset import merged
from framelora.console import UserError, relative, say
from framelora.params import load_params

MARK = Path(".dvc/config.local")  # of a fork: tells it from any other folder
PARAMS, CELLS = Path("params.yaml"), Path(".cells")
LEFT_OUT = ("tests", "docs", "benchmarks", ".ci")  # what no stage reads


def fork(
    folder: Annotated[Path, typer.Argument(help="Where to, for example runs/other. A fork there is renewed.")],
    preset: Annotated[list[Path] | None, typer.Option(help="A file of presets/ for its params.yaml.")] = None,
) -> None:
    """Copy this project, as it is now, into a folder with its own params.yaml, outs and report.

    Clips, base model, cells and DVC's cache are shared: what both need is computed once. The params.yaml and reports of
    this project stay as they are.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise UserError(f"{relative(folder)} exists and is no fork: name another folder")
    folder = Path(relative(folder))
    params = folder / PARAMS
    params.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(PARAMS, params)
    for path in preset or []:
        files.write_bytes(params, merged(params, path))
    chosen = load_params(params)
    shared = [Path(chosen.data.root), Path(chosen.model.base)]
    for name in project_files():
        if name.parts[0] not in LEFT_OUT and not any(map(name.is_relative_to, (folder, PARAMS, *shared))):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, folder / name)
    for name, target in [(path, path) for path in shared if not path.is_absolute()] + [(CELLS, open_store().root)]:
        if not (folder / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(target.resolve(), target_is_directory=True)
    cache = os.path.relpath(".dvc/cache", folder / ".dvc")
    files.write_text(folder / MARK, f"[core]\n    no_scm = true\n[cache]\n    dir = {cache}\n")
    say(f"{relative(folder)}: a copy of this project; `cd {relative(folder)} && dvc repro` runs it")


def project_files() -> list[Path]:
    """Files that git would take: tracked ones and new ones that are not ignored. Raises `UserError` without git."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise UserError("fork: this folder is no git checkout, so what belongs to the project is unknown") from None
    return [Path(name) for name in done.stdout.split("\0") if name and Path(name).is_file()]
