"""Windows, image pairs, the split by source, and the order of batches."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framelora import files
from framelora.console import UserError
from framelora.dataset.pairs import PAIRS_SCHEMA, SHOTS_SCHEMA, SPLITS, cut_pairs, split_of
from framelora.dataset.sampler import BatchSampler
from framelora.digest import draw_seed, sha256
from framelora.schema.data import Pair
from stages import pair as stage

FRACTIONS = {"val_fraction": 0.15, "test_fraction": 0.25}


def shot(name: str, num_frames: int, kind: str = "video") -> dict[str, object]:
    return {
        "shot": name,
        "content_id": name.rpartition("-")[0],
        "kind": kind,
        "cell": "0" * 64,
        "digest": "1" * 64,
        "num_frames": num_frames,
        "width": 96,
        "height": 64,
        "fps": 8.0,
        "times": [number / 8 for number in range(num_frames)],
    }


def images(content_id: str) -> list[dict[str, object]]:
    return [shot(f"{content_id}-{half}", 1, "image_pair") for half in ("end", "start")]


def table(rows: list[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=SHOTS_SCHEMA.names)


# cut_pairs


@given(st.lists(st.integers(1, 40), max_size=5), st.integers(3, 12), st.integers(1, 15))
def test_the_windows_are_those_of_brute_force(lengths: list[int], num_frames: int, stride: int) -> None:
    shots = table([shot(f"c{number}-000", length) for number, length in enumerate(lengths)])
    cut = {
        (row["start_shot"], row["start_frame"], row["end_frame"])
        for row in cut_pairs(shots, num_frames=num_frames, stride=stride)
    }
    expected = {
        (f"c{number}-000", first, last)
        for number, length in enumerate(lengths)
        for first in range(length)
        for last in range(length)
        if last - first + 1 == num_frames and first % stride == 0
    }
    assert cut == expected


def test_rows_follow_the_schema_and_are_sorted_by_their_unique_ids() -> None:
    rows = cut_pairs(
        table([*images("p"), shot("b-001", 9), shot("b-000", 9), shot("a-000", 4)]), num_frames=4, stride=2
    )
    assert all(set(row) == set(PAIRS_SCHEMA.names) for row in rows)
    ids = [row["pair"] for row in rows]
    assert ids == sorted(set(ids))
    assert all(row["start_shot"] == row["end_shot"] for row in rows if row["kind"] == "window")


def test_an_image_pair_goes_from_its_start_to_its_end_and_has_no_middles() -> None:
    (row,) = cut_pairs(table(images("p")), num_frames=5, stride=1)
    assert (row["kind"], row["start_shot"], row["end_shot"]) == ("image_pair", "p-start", "p-end")
    assert (row["start_frame"], row["end_frame"], row["num_frames"]) == (0, 0, 5)


def test_images_of_a_pair_are_never_cut_into_windows() -> None:
    rows = cut_pairs(table([*images("p"), *images("q")]), num_frames=3, stride=1)
    assert [row["kind"] for row in rows] == ["image_pair", "image_pair"]


# split_of

IDS = [sha256(str(number).encode())[:16] for number in range(5000)]


def test_the_fractions_are_met() -> None:
    counts = Counter(split_of(content_id, seed=4, **FRACTIONS) for content_id in IDS)
    shares = {"train": 0.6, "val": 0.15, "test": 0.25}
    for split in SPLITS:  # four standard deviations
        assert abs(counts[split] / 5000 - shares[split]) < 4 * (shares[split] * (1 - shares[split]) / 5000) ** 0.5


@given(st.text(max_size=20), st.integers())
def test_a_split_of_nothing_or_everything(content_id: str, seed: int) -> None:
    content_id = content_id.encode(errors="replace").decode()
    assert split_of(content_id, seed=seed, val_fraction=0.0, test_fraction=0.0) == "train"
    assert split_of(content_id, seed=seed, val_fraction=0.0, test_fraction=1.0) == "test"


def test_a_larger_test_share_takes_from_the_others_and_gives_nothing_back() -> None:
    small = {name for name in IDS if split_of(name, seed=0, val_fraction=0.0, test_fraction=0.1) == "test"}
    large = {name for name in IDS if split_of(name, seed=0, val_fraction=0.0, test_fraction=0.2) == "test"}
    assert small < large


def test_another_seed_deals_anew() -> None:
    first, second = ([split_of(name, seed=seed, **FRACTIONS) for name in IDS] for seed in (0, 1))
    same = np.mean([one == other for one, other in zip(first, second, strict=True)])
    assert abs(same - (0.6**2 + 0.15**2 + 0.25**2)) < 0.03


# the stage


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_bytes((Path(__file__).resolve().parents[2] / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_stage(rows: list[dict[str, object]]) -> dict[str, pd.DataFrame]:
    files.write_table(Path("data/frames.parquet"), rows, SHOTS_SCHEMA)
    stage.main()
    return {split: files.read_table(Path(f"data/pairs_{split}.parquet")) for split in SPLITS}


def test_no_source_is_in_two_splits_and_image_pairs_are_for_test_only(project: Path) -> None:
    rows = [shot(f"{name}-{part:03d}", 9) for name in IDS[:60] for part in range(2)]
    splits = run_stage(rows + [image for name in IDS[60:90] for image in images(name)])
    for split in SPLITS:
        windows = splits[split][splits[split].kind == "window"]
        assert set(windows.content_id) == {name for name in IDS[:60] if split_of(name, seed=4, **FRACTIONS) == split}
    assert set(splits["train"].kind) == set(splits["val"].kind) == {"window"}
    test = splits["test"]
    assert set(test[test.kind == "image_pair"].content_id) == set(IDS[60:90])


def test_adding_sources_moves_no_other(project: Path) -> None:
    few = run_stage([shot(f"{name}-000", 9) for name in IDS[:50]])
    many = run_stage([shot(f"{name}-000", 9) for name in IDS[:300]])
    for split in SPLITS:
        assert set(few[split].pair) == {pair for pair in many[split].pair if pair.rpartition("-000-")[0] in IDS[:50]}


SETTINGS = Pair(num_frames=5, stride=3, split_seed=0, **FRACTIONS)


@settings(deadline=None, max_examples=30)
@given(st.sets(st.sampled_from(IDS[:200]), min_size=3, max_size=12), st.integers(0, 3))
def test_the_advised_seed_fills_every_split(names: set[str], short: int) -> None:
    """Also where some sources are too short to give a window."""
    shots = table([shot(f"{name}-000", 4 if number < short else 9) for number, name in enumerate(sorted(names))])
    rows = cut_pairs(shots, num_frames=5, stride=3)

    def check(params: Pair) -> None:
        windows: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
        for row in rows:
            windows[stage.place(str(row["content_id"]), params)].append(row)
        stage.check_splits(windows, params)

    try:
        check(SETTINGS)
    except UserError as error:
        advice = str(error)
        if "split_seed to" in advice:
            check(SETTINGS.model_copy(update={"split_seed": int(advice.rpartition(" ")[2])}))
        else:
            assert len(names) - short < 3


# BatchSampler

SHAPES = st.lists(st.sampled_from([(5, 8, 12), (5, 12, 8), (5, 8, 8)]), min_size=1, max_size=30)


@given(SHAPES, st.integers(1, 7), st.integers(0, 10), st.integers(0, 3))
def test_each_item_comes_once_an_epoch_in_batches_of_one_shape(
    shapes: list[tuple[int, ...]], batch_size: int, seed: int, epoch: int
) -> None:
    sampler = BatchSampler(shapes, batch_size, seed)
    length = sampler.batches_per_epoch
    batches = [sampler.batch(epoch * length + place) for place in range(length)]
    assert all(len(batch) == batch_size for batch in batches)
    assert all(len({shapes[item] for item in batch}) == 1 for batch in batches)
    counts = Counter(item for batch in batches for item in batch)
    assert set(counts) == set(range(len(shapes)))
    for shape in set(shapes):
        members = [counts[item] for item, other in enumerate(shapes) if other == shape]
        assert sum(members) == -(-len(members) // batch_size) * batch_size  # filled up, never a batch more
        assert max(members) - min(members) <= 1  # and fairly
    # Pure: a new object that has dealt nothing before gives the same batch.
    assert [BatchSampler(shapes, batch_size, seed).batch(epoch * length + place) for place in range(length)] == batches


def test_the_order_differs_between_epochs_and_seeds() -> None:
    shapes = [(1,)] * 50

    def order(seed: int, epoch: int) -> tuple[int, ...]:
        sampler = BatchSampler(shapes, 5, seed)
        return tuple(item for place in range(10) for item in sampler.batch(epoch * 10 + place))

    assert len({order(seed, epoch) for seed in range(3) for epoch in range(5)}) == 15


def test_batches_of_different_shapes_are_mixed() -> None:
    """Or the end of each epoch would train one shape only."""
    sampler = BatchSampler([(1,)] * 40 + [(2,)] * 40, 4, 0)
    kinds = [sampler.batch(number)[0] < 40 for number in range(20)]
    assert sum(first != second for first, second in pairwise(kinds)) > 4


# draw_seed


def test_seeds_depend_on_every_part_and_stay_the_same() -> None:
    assert draw_seed(42, "noise", 3, 1) == int(sha256(b"42/noise/3/1")[:16], 16) // 2
    seeds = {draw_seed(seed, what, step) for seed in range(5) for what in ("noise", "order") for step in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
