"""The gate on real files: what can't be read is named and stops it, and nothing is left out without a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, unprivileged
from PIL import Image

from framelora.cells.store import Store
from framelora.dataset import gate
from framelora.dataset.metadata import FILES
from framelora.dataset.rules import LEAVE_OUT, RULES
from framelora.dataset.tokens import WORDS
from framelora.params import load_params

PARAMS = load_params(REPOSITORY / "params.yaml")


def pair(root: Path, name: str, colour: str = "white") -> None:
    """An image pair whose halves differ from each other, and from those of another colour."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    for half, size in (("start", 4), ("end", 8)):
        picture = Image.new("RGB", (96, 64), colour)
        picture.paste("black", (0, 0, size, size))
        picture.save(root / f"{name}_{half}.png")


def inspect(root: Path, store: Path, **changes: dict[str, Any]) -> gate.Inputs:
    """The gate's verdict under the demo's parameters; `changes` are values of their sections."""
    parts = [
        getattr(PARAMS, section).model_copy(update=changes.get(section, {}))
        for section in ("data", "captions", "extract")
    ]
    return gate.inspect(root, Store(store), *parts, WORDS)


def found(inputs: gate.Inputs) -> dict[str, tuple[str, str]]:
    """Rule and message of the errors and warnings, by place."""
    return {issue.where: (issue.rule, issue.message) for issue in inputs.issues if issue.severity != "info"}


def test_files_without_permission_are_findings_that_say_what_to_do(open_folder: Path, tmp_path: Path) -> None:
    root = open_folder / "data"
    pair(root, "good")
    pair(root, "closed", "red")
    (root / "clip.mp4").write_bytes(b"never read")
    (root / "good.txt").write_text("a caption that nobody may read")
    closed = ["clip.mp4", "closed_end.png", "good.txt", *FILES]
    for name in FILES:
        (root / name).touch()
    for name in closed:
        (root / name).chmod(0)
    gate.facts_cell("a.png", "0")  # the code's own files are read as the one who runs the tests
    with unprivileged():
        inputs = inspect(root, open_folder / "cells")
    message = "can't be read (Permission denied): make it readable (chmod u+r), or remove it"
    media = {"clip.mp4", "closed_end.png"}
    rules = {name: "unreadable" if name in media else "metadata-unreadable" for name in closed}
    assert found(inputs) == {name: (rule, message) for name, rule in rules.items()}
    assert [source.name for source in inputs.sources] == ["good"]


def test_what_a_rule_that_is_off_leaves_out_is_counted_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    pair(root, "good")
    (root / "text.mp4").write_text("text")
    (root / "void.webm").touch()
    (root / "lone_start.png").write_bytes((root / "good_start.png").read_bytes())
    (root / ".DS_Store").touch()
    (root / "metadata.csv").write_text("file_name,text\ngone.mp4,x\n")

    def printed(**severities: str) -> list[str]:
        gate.show(inspect(root, tmp_path / "cells", captions={"severities": severities}))
        return capsys.readouterr().err.splitlines()

    names = "(`framelora validate --all` names them)"
    turned_off = "warning: not used, though captions.severities turns the rule off:"
    hidden = f"info: not used: 1 hidden-file {names}"
    assert hidden in printed() and not any("turns the rule off" in line for line in printed())
    off = dict.fromkeys(("unreadable", "half-pair", "path-missing"), "off")
    assert printed(**off) == [hidden, f"{turned_off} 1 half-pair, 1 path-missing, 2 unreadable"]
    off["hidden-file"] = "off"
    counts = "1 half-pair, 1 hidden-file, 1 path-missing, 2 unreadable"
    assert printed(**off) == [f"{turned_off} {counts}"]
    assert printed(**dict.fromkeys(off, "info")) == [f"info: not used: {counts} {names}"]


def test_rules_that_leave_something_out_are_rules() -> None:
    assert set(RULES) >= LEAVE_OUT
