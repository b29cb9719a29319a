"""Cut shots into windows, join image pairs, and split both into train, val and test by source.

Reads data/frames.parquet. Writes data/pairs_{train,val,test}.parquet.
"""

from __future__ import annotations

from pathlib import Path

import typer

from framelora import files
from framelora.console import UserError, command, say
from framelora.dataset.pairs import PAIRS_SCHEMA, SPLITS, cut_pairs, split_of
from framelora.params import load_params
from framelora.schema.data import Pair


def main() -> None:
    """Write the pairs of each split."""
    params = load_params().pair
    shots = files.read_table(Path("data/frames.parquet"))
    rows = cut_pairs(shots, num_frames=params.num_frames, stride=params.stride)
    splits: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
    for row in rows:
        # An image pair has no middles to learn from: it is always for test.
        splits[place(str(row["content_id"]), params) if row["kind"] == "window" else "test"].append(row)
    windows = {split: [row for row in splits[split] if row["kind"] == "window"] for split in SPLITS}
    counts = ", ".join(f"{split} {len(windows[split])}" for split in SPLITS)
    say(
        f"pair: {len(rows)} pairs: windows {counts}; image pairs for test {len(rows) - sum(map(len, windows.values()))}"
    )
    short = shots[(shots.kind == "video") & (shots.num_frames < params.num_frames)]
    if len(short):
        say(f"pair: {len(short)} shots are shorter than pair.num_frames ({params.num_frames}) and give no window")
    check_splits(windows, params)
    for split in SPLITS:
        files.write_table(Path(f"data/pairs_{split}.parquet"), splits[split], PAIRS_SCHEMA)


def place(content_id: str, params: Pair) -> str:
    """The split of a source."""
    return split_of(
        content_id, seed=params.split_seed, val_fraction=params.val_fraction, test_fraction=params.test_fraction
    )


def check_splits(windows: dict[str, list[dict[str, object]]], params: Pair) -> None:
    """Stop when a split that is asked for has no window, and say what would help."""
    if not any(windows.values()):
        raise UserError(
            f"no shot has pair.num_frames ({params.num_frames}) frames, so there is nothing to train on: add longer "
            "clips, lower pair.num_frames, or raise extract.fps (image pairs have no middles to learn from)"
        )
    content_ids = sorted({str(row["content_id"]) for rows in windows.values() for row in rows})
    wanted = {"train": 1.0, "val": params.val_fraction, "test": params.test_fraction}
    for split, fraction in wanted.items():
        if fraction and not windows[split]:
            seed = next((seed for seed in range(10_000) if fills_all(content_ids, params, seed)), None)
            advice = (
                f"set pair.split_seed to {seed}"
                if seed is not None
                else "add clips, or set pair.val_fraction or pair.test_fraction to 0"
            )
            raise UserError(f"no window of {len(content_ids)} clips fell into {split}: {advice}")


def fills_all(content_ids: list[str], params: Pair, seed: int) -> bool:
    """Whether a seed deals sources to every split that is asked for."""
    dealt = {place(content_id, params.model_copy(update={"split_seed": seed})) for content_id in content_ids}
    asked = {"train"} | ({"val"} if params.val_fraction else set()) | ({"test"} if params.test_fraction else set())
    return dealt >= asked


if __name__ == "__main__":
    typer.run(command(main))
