"""The table of the guide's options: what it names exists."""

from __future__ import annotations

import re
from typing import Any

import pytest
from conftest import REPOSITORY
from ruamel.yaml import YAML

SHIPPED: dict[str, Any] = YAML(typ="safe", pure=True).load(REPOSITORY / "params.yaml")
ROWS = [
    line.strip("|").split(" | ")
    for line in (REPOSITORY / "docs/easyanimate.md").read_text().partition("## The guide's options")[2].splitlines()
    if line.startswith("| ") and "---" not in line
][1:]


def test_the_table_is_found() -> None:
    assert len(ROWS) > 30
    assert all(len(row) == 3 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_parameters_and_tests_that_a_row_names_exist(row: list[str]) -> None:
    _, here, tested = row
    for name in re.findall(r"`((?:data|extract|pair|easyanimate|adapter|train|render|model)\.[\w.]+?)[:`]", here):
        section = SHIPPED
        for part in name.split("."):
            assert part in section, name
            section = section[part]
    for text in re.findall(r"`(\S+)`", tested):
        whole = text if text.startswith("tests/") else f"tests/unit/test_easyanimate.py::{text}"
        path, _, test = whole.partition("::")
        assert (REPOSITORY / path).is_file(), path
        assert not test or re.search(rf"^(class|def) {test}\b", (REPOSITORY / path).read_text(), re.MULTILINE), test
    none = here.strip().startswith("none")
    assert none or tested.strip(), row
