"""The documents' tables say which test holds what: each test that they name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

from framelora.dataset.rules import RULES, Rule

NAMED = re.compile(r"`(test_\w+\.py)((?:::\w+)*)`")
DOCUMENTS = sorted([*REPOSITORY.glob("docs/*.md"), REPOSITORY / "README.md"])
FILES = {path.name: path for path in (REPOSITORY / "tests").rglob("test_*.py")}


def names_in(path: Path) -> set[str]:
    """Names of a file's tests and of its classes of tests, as pytest writes them behind the file's."""
    found = set()
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.ClassDef):
            inner = {f"::{node.name}::{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
            found |= {f"::{node.name}", *inner}
        elif isinstance(node, ast.FunctionDef):
            found.add(f"::{node.name}")
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_a_document_names_is_there(document: Path) -> None:
    for file, name in NAMED.findall(document.read_text()):
        assert file in FILES, f"{document.name} names {file}"
        assert not name or name in names_in(FILES[file]), f"{document.name} names {file}{name}"


def test_the_tables_of_promises_and_defects_name_some() -> None:
    named = {path.name: len(NAMED.findall(path.read_text())) for path in DOCUMENTS}
    assert named["framer.md"] > 25 and named["training.md"] > 8


def test_the_table_of_rules_is_that_of_the_code() -> None:
    rows: list[list[str]] = []
    for line in (REPOSITORY / "docs/data.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("\N{BOX DRAWINGS LIGHT VERTICAL}")[1:-1]]
        if cells and cells[0]:
            rows.append(cells)
        elif cells:  # the rest of a cell that takes several lines
            rows[-1] = [" ".join([start, rest]).strip() for start, rest in zip(rows[-1], cells, strict=True)]
    assert [Rule(*row) for row in rows] == list(RULES.values())  # type: ignore[arg-type]
