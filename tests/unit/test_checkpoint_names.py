"""`latest` among checkpoints of both forms side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from framelora.console import UserError
from framelora.training.preflight import checkpoint_to_resume


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    start = Path("models/start")
    for name in ("checkpoint-20", "checkpoint-100", "final"):
        (start / name / "state").mkdir(parents=True)
        (start / name / "state/state.json").write_text("{}")
    (start / "checkpoint-500/unet_lora").mkdir(parents=True)  # an adapter without its state
    (start / "checkpoint-1000.safetensors").write_bytes(b"weights alone")
    return start


def test_latest_is_the_highest_step_that_has_a_state(start: Path) -> None:
    assert checkpoint_to_resume("latest") == start / "checkpoint-100"


def test_a_name_is_that_folder(start: Path) -> None:
    assert checkpoint_to_resume("models/start/checkpoint-20") == start / "checkpoint-20"


def test_weights_alone_are_nothing_to_go_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models/start").mkdir(parents=True)
    Path("models/start/checkpoint-1000.safetensors").write_bytes(b"weights alone")
    with pytest.raises(UserError, match=r"no folder checkpoint-N with state/state.json \(a .safetensors file has"):
        checkpoint_to_resume("latest")
