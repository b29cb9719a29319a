"""Trackers that follow a run, through accelerate. What they write is no out: it lies under logs/."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from framelora.console import UserError

PROJECT = "framelora"


def check_installed(names: Sequence[str]) -> None:
    """Raises `UserError` for a tracker whose package is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"train.report_to: {name} is not installed: `pip install {name}`, or take it off the list")


def open_trackers(accelerator: Accelerator, names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> None:
    """Start the trackers (the first process does).

    Args:
        accelerator: made with `log_with=names`.
        names: trackers, all installed.
        folder: folder of this run's logs.
        config: parameters to show beside the curves.
    """
    if not names:
        return
    folder.mkdir(parents=True, exist_ok=True)
    run = folder.name
    own: dict[str, dict[str, Any]] = {
        "wandb": {"wandb": {"name": run, "id": run, "resume": "allow", "dir": str(folder)}},
        # DVCLive would else write a dvc.yaml and an experiment of its own, and empty its folder.
        "dvclive": {
            "dvclive": {"dir": str(folder / "dvclive"), "resume": True, "dvcyaml": None, "save_dvc_exp": False}
        },
        "trackio": {"trackio": {"name": run, "resume": "allow"}},
    }
    kwargs = {key: value for name in names for key, value in own.get(name, {}).items()}
    accelerator.init_trackers(PROJECT, config=flat(config), init_kwargs=kwargs)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Nested parameters as `section.name` -> what every tracker takes."""
    result: dict[str, int | float | str | bool] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value if isinstance(value, int | float | str) else str(value)
    return result
