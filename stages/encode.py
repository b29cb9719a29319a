"""Encode frames and captions once: VAE posteriors and embeddings, cached on disk for training and rendering.

Reads data/frames.parquet, data/pseudo.parquet, data/pairs_*.parquet, data/captions.parquet, data/tracks.parquet and the
base model. Writes data/latents_{train,val,test}.parquet (indexes: the latents are cells).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray

from framelora import files
from framelora.base_model import fingerprint
from framelora.cells.fill import Computed, Filling, Shard
from framelora.cells.overlap import ReadAhead
from framelora.cells.store import Cell, Store, open_store
from framelora.compute import check_finite, configure_torch, pack
from framelora.console import UserError, command, say, warn
from framelora.dataset.pairs import SPLITS
from framelora.dataset.tables import (
    LATENTS_SCHEMA,
    at_train_sizes,
    check_windows,
    ensure_frames,
    read_captions,
    read_given_tracks,
    read_shots,
    read_windows,
    with_given_tracks,
)
from framelora.digest import canonical_json
from framelora.families.base import EncodeUnit, Purpose, Window
from framelora.media.lossless import decode_frames
from framelora.params import Params, load_params
from framelora.source import load_part, source_digest
from framelora.versions import versions

PURPOSES: dict[str, Purpose] = {"train": "train", "val": "train", "test": "render"}


def plan(
    params: Params,
    shots: pd.DataFrame,
    windows: dict[str, list[Window]],
    captions: dict[str, list[str]],
    given: pd.DataFrame,
    device: str,
) -> dict[EncodeUnit, Cell]:
    """The cell of every unit that the shots, windows (by split), captions and given tracks need."""
    units = load_part(params.model.family, "units")
    base = Path(params.model.base)
    shared = {
        "base": fingerprint(base),
        "device": device,
        "code": source_digest(f"framelora.families.{params.model.family}.encode"),
        "versions": versions(*units.PACKAGES),
    }
    by_purpose: dict[Purpose, list[Window]] = {
        purpose: [window for split in SPLITS if PURPOSES[split] == purpose for window in windows[split]]
        for purpose in ("train", "render")
    }
    cells = {}
    try:
        needed = units.plan_units(shots.reset_index(), by_purpose, captions, base, params.family)
    except ValueError as error:
        raise UserError(f"{params.model.family}.{error}") from None
    for planned in needed:
        unit = with_given_tracks(planned, shots, given)
        made_of: dict[str, Any] = {"text": [unit.text, *unit.orders], "detail": unit.detail}
        if unit.shot:
            made_of |= {"frames": shots.loc[unit.shot].digest, "numbers": unit.frames}
        inputs = {**made_of, **units.unit_inputs(unit, params.family), **shared}
        cells[unit] = Cell(f"encode/{unit.kind}", shots.loc[unit.shot].content_id if unit.shot else unit.unit, inputs)
    return cells


class Encoding:
    """Computes cells. The encoders are built when the first missing cell asks for them."""

    def __init__(self, params: Params, store: Store, shots: pd.DataFrame, cells: dict[EncodeUnit, Cell]) -> None:
        self.params = params
        self.store = store
        self.shots = shots
        self.units = {cell.key: unit for unit, cell in cells.items()}

    def prepare(self, missing: list[Cell]) -> None:
        """Say what they will take; make sure that the frames of the missing cells are there; build the encoders."""
        self.say_plan(missing, "to compute")
        # Units come ordered by shot, so that each shot is unpacked once, while the one before it is encoded.
        shots = [shot for cell in missing if (shot := self.units[cell.key].shot)]
        ensure_frames(self.store, self.shots.loc[sorted(set(shots))])
        self.frames = ReadAhead(self.read_frames, shots)
        family = load_part(self.params.model.family, "encode")
        self.encoder: Any = family.Encoder(Path(self.params.model.base), self.params.family, configure_torch())

    def say_plan(self, cells: list[Cell], what: str) -> None:
        """Print a count of cells, and the bytes of their tensors, by kind."""
        part, base = load_part(self.params.model.family, "units"), Path(self.params.model.base)
        count: Counter[str] = Counter()
        size: Counter[str] = Counter()
        for cell in cells:
            unit = self.units[cell.key]
            frames = (0, 0, 0)
            if unit.shot:
                shot = self.shots.loc[unit.shot]
                number = int(shot.num_frames) if unit.frames is None else len(unit.frames)
                frames = (number, int(shot.width), int(shot.height))
            count[unit.kind] += 1
            size[unit.kind] += part.unit_bytes(unit, frames, base, self.params.family)
        kinds = ", ".join(f"{kind} {count[kind]} ({mebibytes(size[kind])})" for kind in sorted(count))
        say(f"encode: {count.total()} cells {what}, {mebibytes(size.total())}{': ' if kinds else ''}{kinds}")

    def read_frames(self, shot: str) -> NDArray[np.uint8]:
        """Frames of a shot, `[F, H, W, 3]`."""
        row = self.shots.loc[shot]
        return decode_frames(self.store.read(row.cell_kind, row.cell)[1])

    def compute(self, cell: Cell) -> Computed:
        """Encode one unit. A NaN is an error, never a cell."""
        unit = self.units[cell.key]
        frames = unit.frames_of(self.frames.get(unit.shot)) if unit.shot else None
        try:
            tensors = self.encoder.encode(unit, frames)
        except ValueError as error:
            raise UserError(f"{label(unit)}: {error}") from None
        try:
            check_finite(tensors, label(unit))
        except FloatingPointError as error:
            raise UserError(f"{error}: the base's encoder fails on these frames (encode.dtype too narrow?)") from None
        for note in self.encoder.notes:
            warn(f"warning: {label(unit)}: {note}")
        self.encoder.notes.clear()
        shapes = {name: [str(tensor.dtype).removeprefix("torch."), *tensor.shape] for name, tensor in tensors.items()}
        yield cell, pack(tensors), {"tensors": canonical_json(shapes)}


def main(
    shard: Annotated[str, typer.Option(help="Fill the cells of share i of n only, as i/n; write no index.")] = "",
    fill: Annotated[bool, typer.Option(help="Fill missing cells; write no index.")] = False,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Print how many cells and bytes it takes; fill none.")
    ] = False,
) -> None:
    """Encode what the pairs need."""
    params = load_params()
    store = open_store()
    shots = read_shots()
    units = load_part(params.model.family, "units")
    if (problem := units.check_encode(params.family)) is not None:
        raise UserError(problem)
    kinds = {"train": units.TRAIN_KINDS, "render": units.KINDS}
    windows = {split: read_windows(Path(f"data/pairs_{split}.parquet"), kinds[PURPOSES[split]]) for split in SPLITS}
    check_windows(itertools.chain(*windows.values()), params)
    windows["train"] = at_train_sizes(windows["train"], params)
    check_windows(windows["train"], params)
    say_what_is_left_out(params.model.family, kinds)
    cells = plan(params, shots, windows, read_captions(), read_given_tracks(), configure_torch().type)

    encoding = Encoding(params, store, shots, cells)
    if only_plan:
        encoding.say_plan(list(cells.values()), "planned")
        encoding.say_plan([cell for cell in cells.values() if store.peek(cell.kind, cell.key) is None], "missing")
        return
    filling = Filling(store, "encode", Shard.parse(shard) if shard else None)
    filling.fill(list(cells.values()), encoding.compute, encoding.prepare, write_behind=True)
    filling.close()
    if shard or fill:
        return
    stored = dict(zip(((unit.kind, unit.unit) for unit in cells), filling.gather(cells.values()), strict=True))
    base = Path(params.model.base)
    for split in SPLITS:
        wanted = (units.units_of(window, PURPOSES[split], base, params.family) for window in windows[split])
        needed = sorted(set(itertools.chain(*wanted)))
        rows = [
            {
                "kind": kind,
                "unit": unit,
                "cell": stored[kind, unit].key,
                "digest": stored[kind, unit].digest,
                **stored[kind, unit].meta,
            }
            for kind, unit in needed
        ]
        files.write_table(Path(f"data/latents_{split}.parquet"), rows, LATENTS_SCHEMA)


def label(unit: EncodeUnit) -> str:
    """What a unit is called in messages: a text by how it begins, since its id says nothing to a person."""
    name = f"{unit.kind} of {unit.unit or 'the empty caption'}"
    text = " ".join(unit.text.split())
    return f"{name} ({text if len(text) <= 60 else text[:57] + '...'!r})" if text else name


def mebibytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**20:.3g} MiB"


def say_what_is_left_out(family: str, kinds: Mapping[str, Sequence[str]]) -> None:
    """Count the single images that are not used, since nothing is dropped silently."""
    for purpose, what in (("train", "does not learn from them"), ("render", "renders clips only")):
        splits = [split for split in SPLITS if PURPOSES[split] == purpose and "image" not in kinds[purpose]]
        images = sum(len(read_windows(Path(f"data/pairs_{split}.parquet"), ("image",))) for split in splits)
        if images:
            say(f"encode: {images} single images of {' and '.join(splits)} are left out: {family} {what}")


if __name__ == "__main__":
    typer.run(command(main))
