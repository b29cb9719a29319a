"""Which split a source is dealt to, and what to do where one of them stays empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from framelora.console import UserError
from framelora.dataset.pairs import SPLITS
from framelora.digest import sha256

if TYPE_CHECKING:
    from framelora.schema.data import Pair

# Text and number of each metadata column, by content id and name.
Columns = dict[tuple[str, str], tuple[str, float]]


def split_of(content_id: str, *, seed: int, val_fraction: float, test_fraction: float) -> str:
    """The split of a source: a function of its id and the seed, so adding clips moves no other clip.

    Sources that belong together are dealt by the name of their group in place of the content id.
    """
    share = int(sha256(f"{seed}/{content_id}".encode())[:16], 16) / 16**16
    if share < test_fraction:
        return "test"
    return "val" if share < test_fraction + val_fraction else "train"


def place(content_id: str, params: Pair, columns: Columns) -> str:
    """The split of a source: as its metadata says, or dealt by a hash of its group or of its content."""
    if params.split_column and (given := columns.get((content_id, params.split_column))):
        if given[0] not in SPLITS:
            raise UserError(
                f"pair.split_column: {params.split_column} is {given[0]!r} for {content_id}: "
                f"write one of {', '.join(SPLITS)} in the metadata (data/sources.parquet names that content's files)"
            )
        return given[0]
    group = columns.get((content_id, params.group_column or ""), (content_id, 0.0))[0]
    return split_of(group, seed=params.split_seed, val_fraction=params.val_fraction, test_fraction=params.test_fraction)


def check_splits(windows: Mapping[str, Sequence[dict[str, Any]]], params: Pair, columns: Columns) -> None:
    """Stop when a split that is asked for has no window, and say what would help."""
    if not any(windows.values()):
        condition = " in a window that meets pair.filters" if params.filters else ""
        raise UserError(
            f"no shot has pair.num_frames ({params.num_frames}) frames{condition}, so there is nothing to train on: "
            "add longer clips, lower pair.num_frames, or raise extract.fps (image pairs have no middles to learn from; "
            "pair.pseudo_middles makes some)"
        )
    contents = sorted({(str(row["content_id"]), row["kind"] == "image") for rows in windows.values() for row in rows})
    wanted = {"train": 1.0, "val": params.val_fraction, "test": params.test_fraction}
    for split, fraction in wanted.items():
        if fraction and not windows[split]:
            seed = next((seed for seed in range(10_000) if fills_all(contents, params, columns, seed)), None)
            advice = (
                f"set pair.split_seed to {seed}"
                if seed is not None
                else "add clips, or set pair.val_fraction or pair.test_fraction to 0"
            )
            what = "clips" if not any(image for _, image in contents) else "clips and images"
            raise UserError(f"no window of {len(contents)} {what} fell into {split}: {advice}")


def fills_all(contents: list[tuple[str, bool]], params: Pair, columns: Columns, seed: int) -> bool:
    """Whether a seed deals sources to every split that is asked for.

    Args:
        contents: id of each, and whether it is a single image, which is learned from and not rendered.
        params, columns: as in `place`.
        seed: tried in the place of `split_seed`.
    """
    trial = params.model_copy(update={"split_seed": seed})
    dealt = set()
    for content_id, image in contents:
        split = place(content_id, trial, columns)
        dealt |= set() if image and split == "test" else {split}
    asked = {"train"} | ({"val"} if params.val_fraction else set()) | ({"test"} if params.test_fraction else set())
    return dealt >= asked
