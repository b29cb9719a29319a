"""The documents' tables say which test holds what: each test that they name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

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
