"""Reading the indexes: windows as objects, cached tensors by unit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from torch import Tensor

from framelora.cells.store import MissingCell, Store
from framelora.compute import unpack
from framelora.console import UserError
from framelora.families.base import ALL_ROWS, Window
from framelora.files import column, read_table

LATENTS_SCHEMA = pa.schema(
    [
        column("kind", pa.string(), "what was encoded, in the family's words"),
        column("unit", pa.string(), "id of the shot or frame it was made of"),
        column("cell", pa.string(), "key of its cell (kind encode/ and this kind)"),
        column("digest", pa.string(), "SHA-256 of the cell's payload"),
        column("tensors", pa.string(), "name, dtype and shape of each tensor, as JSON"),
    ]
)

RENDER_SCHEMA = pa.schema(
    [
        column("pair", pa.string(), "id of the window or image pair"),
        column("kind", pa.string(), "window or image_pair"),
        column("method", pa.string(), "truth, truth_vae, blend_vae, base, adapter_WEIGHT or a baseline"),
        column("cell_kind", pa.string(), "kind of the cell that holds the frames"),
        column("cell", pa.string(), "its key"),
        column("digest", pa.string(), "SHA-256 of its payload"),
        column("video", pa.string(), "preview under reports/render/"),
    ]
)


def read_windows(path: Path, kinds: Iterable[str] = ("window", "image_pair")) -> list[Window]:
    """Windows and image pairs of a table of `dataset.pairs.PAIRS_SCHEMA`; those of some kinds only."""
    table = read_table(path)
    table = table[table.kind.isin(list(kinds))][list(Window.__dataclass_fields__)]
    return [Window(**row) for row in table.to_dict("records")]


def read_captions() -> dict[str, str]:
    """The caption of each content."""
    table = read_table(Path("data/captions.parquet"))
    return dict(zip(table.content_id, table.text, strict=True))


class LatentsReader:
    """Gives the cached tensors of units that an index of `LATENTS_SCHEMA` names."""

    def __init__(self, store: Store, paths: Iterable[Path]) -> None:
        self.store = store
        self.cells: dict[tuple[str, str], str] = {}
        self.digests: dict[tuple[str, str], str] = {}
        for path in paths:
            for row in read_table(path).itertuples():
                self.cells[row.kind, row.unit] = row.cell
                self.digests[row.kind, row.unit] = row.digest

    def by_kind(self) -> dict[str, list[str]]:
        """Keys of all cells of the indexes, by the cells' kind."""
        kinds: dict[str, list[str]] = {}
        for (kind, _), key in self.cells.items():
            kinds.setdefault(f"encode/{kind}", []).append(key)
        return kinds

    def read(self, kind: str, unit: str, rows: slice = ALL_ROWS) -> dict[str, Tensor]:
        """Some rows, or all, of each tensor of a unit: `families.base.ReadUnit`."""
        try:
            tensors = unpack(self.store.read(f"encode/{kind}", self.cells[kind, unit])[1])
        except MissingCell:
            raise UserError(f"the {kind} of {unit} were lost while they were in use: run `dvc repro` again") from None
        return tensors if rows == ALL_ROWS else {name: tensor[rows] for name, tensor in tensors.items()}
