"""Reading cached tensors: by unit, by rows, and with a bound on what stays in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from framelora import files
from framelora.cells.store import Cell, Store
from framelora.compute import pack
from framelora.dataset.tables import LATENTS_SCHEMA, LatentsReader

CELL_BYTES = 8 * 4 * 4


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of three shots of eight frames, four fp32 values each."""
    store = Store(tmp_path / "cells")
    rows = []
    for number in range(3):
        tensors = {"mean": torch.arange(8.0)[:, None].expand(8, 4) + 100 * number}
        stored = store.put(Cell("encode/latents", f"s{number}", {"n": number}), pack(tensors))
        rows.append({"kind": "latents", "unit": f"s{number}", "cell": stored.key, "digest": stored.digest})
        rows[-1]["tensors"] = ""
    files.write_table(tmp_path / "latents.parquet", rows, LATENTS_SCHEMA)
    return tmp_path / "latents.parquet"


class Counting(Store):
    """A store that notes what is read of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.keys: list[str] = []

    def read(self, kind: str, key: str):  # type: ignore[no-untyped-def]
        self.keys.append(key)
        return super().read(kind, key)


@pytest.mark.parametrize(("cells", "reads"), [(0, 6), (1, 5), (2, 4), (3, 3)])
def test_the_last_cells_read_stay_within_the_bound(index: Path, cells: int, reads: int) -> None:
    store = Counting(index.parent / "cells")
    reader = LatentsReader(store, [index], keep=cells * CELL_BYTES)
    for unit in ("s0", "s0", "s1", "s0", "s2", "s1"):
        number = int(unit[1])
        assert reader.read("latents", unit, slice(2, 4))["mean"][:, 0].tolist() == [100 * number + 2, 100 * number + 3]
        assert sum(tensor.nbytes for kept in reader.kept.values() for tensor in kept.values()) <= cells * CELL_BYTES
    assert len(store.keys) == reads
    assert len(reader.read("latents", "s1")["mean"]) == 8
