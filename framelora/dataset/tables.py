"""Reading the indexes: windows as objects, cached tensors by unit."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
from torch import Tensor

from framelora.cells.fill import ensure
from framelora.cells.store import MissingCell, Store
from framelora.compute import unpack
from framelora.console import UserError
from framelora.dataset.window_tracks import in_window
from framelora.digest import canonical_json
from framelora.families.base import ALL_ROWS, EncodeUnit, Window
from framelora.files import column, read_table
from framelora.source import load_part

if TYPE_CHECKING:
    from framelora.params import Params

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
        column(
            "method",
            pa.string(),
            "truth, truth_vae, base, adapter_WEIGHT, with_NAME, steered_WEIGHT, steps_SAMPLER_N or a baseline",
        ),
        column("cell_kind", pa.string(), "kind of the cell that holds the frames"),
        column("cell", pa.string(), "its key"),
        column("digest", pa.string(), "SHA-256 of its payload"),
        column("pseudo", pa.string(), "made middles that the weights behind it learned from, by method; empty: none"),
        column("video", pa.string(), "preview under reports/render/"),
    ]
)


def read_windows(path: Path, kinds: Iterable[str] = ("window", "image_pair")) -> list[Window]:
    """Windows and image pairs of a table of `dataset.pairs.PAIRS_SCHEMA`; those of some kinds only."""
    table = read_table(path)
    table = table[table.kind.isin(list(kinds))]
    table = table[[name for name in Window.__dataclass_fields__ if name in table]]
    return [Window(**row) for row in table.to_dict("records")]


def check_windows(windows: Iterable[Window], params: Params) -> None:
    """Stop where the base can't take a window, or is none. Raises `UserError`."""
    units, base = load_part(params.model.family, "units"), Path(params.model.base)
    for window in {(window.width, window.height, window.num_frames): window for window in windows}.values():
        if (problem := units.check_window(window, base)) is not None:
            raise UserError(f"model.family {params.model.family}: {problem}")


def at_train_sizes(windows: Iterable[Window], params: Params) -> list[Window]:
    """Training windows at every size at which the family is to learn them. Raises `UserError` where one has none."""
    units, base = load_part(params.model.family, "units"), Path(params.model.base)
    try:
        return [sized for window in windows for sized in units.at_sizes(window, base, params.family)]
    except ValueError as error:
        raise UserError(f"{params.model.family}.{error}") from None


def read_captions() -> dict[str, list[str]]:
    """The caption of each content: as written, then with its tags in other orders."""
    table = read_table(Path("data/captions.parquet"))
    return {row.content_id: list(row.variants) for row in table.itertuples()}


def read_shots() -> pd.DataFrame:
    """All shots by id, those that `pair` made of image pairs too; `cell_kind` and `producer` say where frames lie."""
    tables = [read_table(Path("data") / name) for name in ("frames.parquet", "pseudo.parquet")]
    shots = pd.concat([table for table in tables if len(table)] or tables[:1]).set_index("shot")
    made = shots.kind == "pseudo"
    return shots.assign(
        cell_kind=made.map({True: "pair/pseudo", False: "extract/frames"}),
        producer=made.map({True: "stages.pair", False: "stages.extract"}),
    )


def ensure_frames(store: Store, shots: pd.DataFrame) -> None:
    """See that the frames of these rows of `read_shots` are there."""
    for (kind, producer), rows in shots.groupby(["cell_kind", "producer"]):
        ensure(store, kind, rows.cell, producer)


def read_given_tracks() -> pd.DataFrame:
    """Tracks that came with a video, by the video's content id."""
    return read_table(Path("data/tracks.parquet")).set_index("content_id")


def with_given_tracks(unit: EncodeUnit, shots: pd.DataFrame, given: pd.DataFrame) -> EncodeUnit:
    """A unit of tracks with those that came with its video, in pixels of its window; any other unit as it is."""
    if unit.kind != "tracks" or unit.frames is None or shots.loc[unit.shot].content_id not in given.index:
        return unit
    shot = shots.loc[unit.shot]
    source = given.loc[shot.content_id]
    times = [shot.times[number] for number in unit.frames]
    places = in_window(
        json.loads(source.tracks), (source.width, source.height), times, (int(shot.width), int(shot.height))
    )
    return dataclasses.replace(unit, detail=canonical_json(places))


KEPT = 64 * 2**20  # bytes: windows of one shot are cut from one cell, and checking its digest anew takes time


class LatentsReader:
    """Gives the cached tensors of units that an index of `LATENTS_SCHEMA` names.

    Args:
        store: the store.
        paths: the indexes.
        keep: bytes of the last cells read that stay in memory.
    """

    def __init__(self, store: Store, paths: Iterable[Path], keep: int = KEPT) -> None:
        self.store = store
        self.keep = keep
        self.kept: OrderedDict[tuple[str, str], dict[str, Tensor]] = OrderedDict()
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
        tensors = self.kept.pop((kind, unit), None) or self._read(kind, unit)
        self.kept[kind, unit] = tensors
        while sum(map(num_bytes, self.kept.values())) > self.keep:
            self.kept.popitem(last=False)
        return tensors if rows == ALL_ROWS else {name: tensor[rows] for name, tensor in tensors.items()}

    def _read(self, kind: str, unit: str) -> dict[str, Tensor]:
        try:
            return unpack(self.store.read(f"encode/{kind}", self.cells[kind, unit])[1])
        except MissingCell:
            raise UserError(f"the {kind} of {unit} were lost while they were in use: run `dvc repro` again") from None


def num_bytes(tensors: dict[str, Tensor]) -> int:
    """Memory that tensors take."""
    return sum(tensor.nbytes for tensor in tensors.values())
