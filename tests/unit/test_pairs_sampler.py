"""Windows, image pairs, the split by source, and the order of batches."""

from __future__ import annotations

import functools
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from broken_media import H264, ffmpeg
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from framelora import files
from framelora.cells.store import Cell, open_store
from framelora.console import UserError
from framelora.dataset.captions import COLUMNS_SCHEMA, column_rows
from framelora.dataset.pairs import PAIRS_SCHEMA, SHOTS_SCHEMA, SPLITS, cut_pairs
from framelora.dataset.sampler import BatchSampler
from framelora.dataset.splits import check_splits, place, split_of
from framelora.digest import draw_seed, sha256
from framelora.media.decode import decode_video
from framelora.media.lossless import encode_frames
from framelora.media.probe import NO_FILE_BEYOND
from framelora.media.shots import Cutting
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
    measures = {"motion", "motion_ends", "static", "sharpness", "brightness", "hash"}
    assert all(set(row) == set(PAIRS_SCHEMA.names) - measures for row in rows)
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
    monkeypatch.delenv("FRAMELORA_CELLS", raising=False)
    set_pair(tmp_path, leaks="report", stride=2, filters=[])
    return tmp_path


def set_pair(project: Path, **values: object) -> None:
    """Change parameters of `pair`."""
    document = YAML(typ="safe", pure=True).load(project / "params.yaml")
    document["pair"] |= values
    with (project / "params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(document, file)


@functools.cache
def packed(length: int, seed: int) -> bytes:
    """Frames of a shot: noise that moves to the left."""
    wide = np.random.default_rng(seed).integers(0, 256, (16, 24 + length, 3), np.uint8).repeat(2, 0).repeat(2, 1)
    return encode_frames(np.stack([wide[:, 2 * number : 2 * number + 48] for number in range(length)]))


def run_stage(
    rows: list[dict[str, object]],
    columns: dict[str, dict[str, str]] | None = None,
    noise: int = 0,
    frames: dict[str, np.ndarray] | None = None,
) -> dict[str, pd.DataFrame]:
    """Run the stage on shots whose frames are in the store: those given, or for shot n noise n modulo `noise`."""
    store = open_store()
    for number, row in enumerate(rows):
        payload = packed(int(str(row["num_frames"])), number % noise if noise else 0)
        if frames and str(row["shot"]) in frames:
            payload = encode_frames(frames[str(row["shot"])])
        stored = store.put(Cell("extract/frames", "", {"payload": sha256(payload)}), payload)
        row["cell"], row["digest"] = stored.key, stored.digest
    files.write_table(Path("data/frames.parquet"), rows, SHOTS_SCHEMA)
    files.write_table(Path("data/columns.parquet"), column_rows(columns or {}), COLUMNS_SCHEMA)
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


REST = {"split_column": None, "group_column": None, "filters": [], "pseudo_middles": "off"}
REST |= {"image_frames": 1, "short_shots": "drop", "leak_bits": 3, "leaks": "report"}
SETTINGS = Pair(num_frames=5, stride=3, split_seed=0, **FRACTIONS, **REST)


@settings(deadline=None, max_examples=30)
@given(st.sets(st.sampled_from(IDS[:200]), min_size=3, max_size=12), st.integers(0, 3))
def test_the_advised_seed_fills_every_split(names: set[str], short: int) -> None:
    """Also where some sources are too short to give a window."""
    shots = table([shot(f"{name}-000", 4 if number < short else 9) for number, name in enumerate(sorted(names))])
    rows = cut_pairs(shots, num_frames=5, stride=3)

    def check(params: Pair) -> None:
        windows: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
        for row in rows:
            windows[place(str(row["content_id"]), params, {})].append(row)
        check_splits(windows, params, {})

    try:
        check(SETTINGS)
    except UserError as error:
        advice = str(error)
        if "split_seed to" in advice:
            check(SETTINGS.model_copy(update={"split_seed": int(advice.rpartition(" ")[2])}))
        else:
            assert len(names) - short < 3


def test_a_single_image_is_a_window_of_one_frame_and_follows_its_split(project: Path) -> None:
    shots = [shot(f"{name}-000", 9) for name in IDS[:40]] + [shot(f"{name}-image", 1, "image") for name in IDS[40:60]]
    splits = run_stage(shots)
    for split in SPLITS:
        images = splits[split][splits[split].kind == "image"]
        assert set(images.content_id) == {name for name in IDS[40:60] if split_of(name, seed=4, **FRACTIONS) == split}
        assert set(images.num_frames) <= {1}
        assert images.motion.isna().all()
        assert images.sharpness.notna().all()


def test_short_shots_give_their_middle_frame_where_stills_are_learned_from(project: Path) -> None:
    shots = table([shot("a-000", 9), shot("b-000", 4), shot("c-000", 1)])
    rows = cut_pairs(shots, num_frames=5, stride=3, image_frames=9, stills=True)
    assert [row["pair"] for row in rows if row["kind"] == "window"] == ["a-000-00000-5", "a-000-00003-5"]
    stills = [(row["pair"], row["start_frame"], row["end_frame"], row["num_frames"]) for row in rows if
              row["kind"] == "image"]  # fmt: skip
    assert stills == [("b-000-00001-9", 1, 1, 9), ("c-000-00000-9", 0, 0, 9)]
    assert len(cut_pairs(shots, num_frames=5, stride=3, image_frames=9)) == 2


def test_a_folder_of_images_alone_is_learned_from(project: Path) -> None:
    images = [shot(f"{name}-image", 1, "image") for name in IDS[:20]]
    with pytest.raises(UserError, match=r"no window of \d+ clips and images fell into test: add clips, or set .* to 0"):
        run_stage(images)
    set_pair(project, test_fraction=0.0)
    splits = run_stage(images)
    assert len(splits["train"]) + len(splits["val"]) == 20
    assert set(splits["train"].kind) == {"image"}


def test_windows_carry_their_measures_and_are_measured_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [shot(f"{name}-000", 9) for name in IDS[:20]]
    splits = run_stage(rows)
    assert "pair/measures: 1 cells, 1 computed, 0 reused" in capsys.readouterr().out  # equal frames are one cell
    train = splits["train"]
    assert train.motion.between(1, 6).all()  # 2 pixels of a diagonal of 58: 3.5 %
    assert (train.static < 0.2).all()
    set_pair(project, filters=["motion > 0.5"])
    kept = run_stage(rows)
    assert "0 computed" in capsys.readouterr().out
    pd.testing.assert_frame_equal(kept["train"], train)
    set_pair(project, filters=["static > 0.5"])
    with pytest.raises(UserError, match=r"no shot has pair.num_frames \(5\) frames in a window that meets"):
        run_stage(rows)
    dropped = pd.read_csv(project / "reports/pairs/dropped.csv")
    assert len(dropped) == sum(map(len, splits.values()))
    assert set(dropped["filter"]) == {"static > 0.5"}


def test_filters_on_metadata_drop_windows_and_say_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {
        name: {"score": str(number), "scene": "sea" if number % 2 else "wood"} for number, name in enumerate(IDS[:60])
    }
    rows = [shot(f"{name}-000", 9) for name in IDS[:61]]
    set_pair(project, filters=["score >= 10", 'scene in ["wood", "hill"]'])
    kept = {name for table in run_stage(rows, columns).values() for name in table.content_id}
    assert kept == {name for number, name in enumerate(IDS[:60]) if number >= 10 and number % 2 == 0}
    out = capsys.readouterr().out
    assert "do not meet 'score >= 10'" in out  # the source without metadata among them
    assert 'do not meet \'scene in ["wood", "hill"]\'' in out


def test_a_filter_on_an_unknown_column_names_the_known_ones(project: Path) -> None:
    set_pair(project, filters=["motoin > 1"])
    with pytest.raises(UserError, match=r"there is no column 'motoin': use one of .*motion, .*scene"):
        run_stage([shot("a-000", 9)], {"a": {"scene": "x"}})


def test_a_filter_on_a_name_that_is_a_measure_and_a_column_is_refused(project: Path) -> None:
    set_pair(project, filters=["width > 90"])
    assert set(run_stage([shot(f"{name}-000", 9) for name in IDS[:20]])["train"].width) == {96}
    message = (
        r"'width > 90': 'width' is both a measure of windows .* rename the metadata's column, for example to 'my_w"
    )
    with pytest.raises(UserError, match=message):
        run_stage([shot("a-000", 9)], {"a": {"width": "4"}})


def test_image_pairs_that_a_column_gives_to_train_are_counted(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips, pairs = IDS[:30], IDS[30:40]
    set_pair(project, split_column="fold")
    columns = {name: {"fold": fold} for name, fold in zip(pairs, ["train", "val", "test"] * 3, strict=False)}
    rows = [shot(f"{name}-000", 9) for name in clips] + [image for name in pairs for image in images(name)]

    def told() -> list[str]:
        return [line for line in capsys.readouterr().out.splitlines() if "pair.split_column" in line]

    splits = run_stage(rows, columns)  # one of the ten is dealt by its hash, which says nothing of what was wanted
    assert set(splits["test"].content_id) >= set(pairs)
    (line,) = told()
    assert line.startswith("pair: 6 image pairs are for test, though fold (pair.split_column) says train or val: they")
    set_pair(project, pseudo_middles="flow")
    run_stage(rows, columns)
    assert told() == []


def test_splits_are_given_by_a_column_and_groups_stay_together(project: Path) -> None:
    columns = {name: {"film": f"film {number % 9}"} for number, name in enumerate(IDS[:90])}
    columns[IDS[0]]["fold"], columns[IDS[1]]["fold"] = "test", "val"
    set_pair(project, split_column="fold", group_column="film")
    rows = [shot(f"{name}-000", 9) for name in IDS[:90]]
    splits = run_stage(rows, columns)
    assert IDS[0] in set(splits["test"].content_id)
    assert IDS[1] in set(splits["val"].content_id)
    films = {
        split: {columns[name]["film"] for name in set(splits[split].content_id) - set(IDS[:2])} for split in SPLITS
    }
    assert sum(map(len, films.values())) == 9
    columns[IDS[0]]["fold"] = "exam"
    with pytest.raises(
        UserError, match=r"fold is 'exam' for .*: write one of train, val, test in the metadata \(data/sources"
    ):
        run_stage(rows, columns)
    set_pair(project, split_column="sheet")
    with pytest.raises(UserError, match=r"pair.split_column: no metadata has a column 'sheet': it has film, fold"):
        run_stage(rows, columns)


def test_equal_pictures_in_two_splits_are_leaks(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [shot(f"{name}-000", 9) for name in IDS[:40]]
    splits = run_stage(rows, noise=39)  # the first and the last source show the same
    leaks = pd.read_csv(project / "reports/pairs/leaks.csv")
    of = {name: split for split in SPLITS for name in splits[split].content_id}
    expected = int(of[IDS[0]] != of[IDS[39]])
    assert len(leaks) == expected
    assert ("show nearly the same in two splits" in capsys.readouterr().err) == bool(expected)
    run_stage(rows)  # now all do
    leaks = pd.read_csv(project / "reports/pairs/leaks.csv")
    assert (leaks["split"] != leaks.other_split).all()
    assert set(leaks.bits) == {0}


def decoded(path: Path) -> np.ndarray:
    """The one shot of a clip at 6 frames a second."""
    options = {"target_fps": 6.0, "buckets": ["96x64"], "limits": NO_FILE_BEYOND}
    (found,) = decode_video(path, cutting=Cutting(), **options)  # type: ignore[arg-type]
    return found.frames


@pytest.mark.parametrize("name", ["bird_flaps_wings", "cloud_over_trees", "bunny_paw_in_burrow", "camera_down_trees"])
def test_a_trimmed_clip_and_a_still_of_a_held_out_clip_are_leaks(
    project: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three frames later at the source's rate, so between the frames that are kept; windows are 7 frames apart."""
    whole = REPOSITORY / f"data/demo/clips/{name}.mp4"
    later = project / "later.mp4"
    ffmpeg("-i", whole, "-vf", "select=gte(n\\,3),setpts=PTS-STARTPTS", "-an", *H264, "-crf", "18", later)
    dealt = {split: [name for name in IDS if split_of(name, seed=4, **FRACTIONS) == split] for split in SPLITS}
    frames = {
        f"{dealt['test'][0]}-000": decoded(whole),
        f"{dealt['train'][0]}-000": decoded(later),
        f"{dealt['train'][1]}-image": decoded(whole)[3:4],
        f"{dealt['val'][0]}-000": np.full((12, 64, 96, 3), 90, np.uint8),  # an even wall is like no other
        f"{dealt['train'][2]}-000": np.full((12, 64, 96, 3), 90, np.uint8),
    }
    rows = [shot(key, len(one), "image" if key.endswith("image") else "video") for key, one in frames.items()]
    rows += [shot(f"{one}-000", 12) for split in SPLITS for one in dealt[split][3:8]]  # each shows something else
    set_pair(project, stride=7)
    before = run_stage(rows, noise=len(rows), frames=frames)
    leaks = pd.read_csv(project / "reports/pairs/leaks.csv")
    assert set(leaks.pair.str.rpartition("-")[0].str[:16]) == set(dealt["train"][:2])
    assert set(leaks.other_pair.str[:16]) == {dealt["test"][0]}
    assert "2 pairs of sources show nearly the same in two splits" in capsys.readouterr().err
    set_pair(project, leaks="drop")
    after = run_stage(rows, noise=len(rows), frames=frames)
    assert set(before["train"].content_id) - set(after["train"].content_id) == set(dealt["train"][:2])
    for split in ("val", "test"):
        pd.testing.assert_frame_equal(after[split], before[split])


@pytest.mark.parametrize(("gives_way", "keeps"), [("train", "test"), ("train", "val"), ("val", "test")])
def test_shots_that_nearly_show_what_is_held_out_are_left_out_and_listed(
    project: Path, gives_way: str, keeps: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dealt = {split: [name for name in IDS if split_of(name, seed=4, **FRACTIONS) == split] for split in SPLITS}
    first, last = dealt[gives_way][0], dealt[keeps][0]
    others = [name for split in (gives_way, *SPLITS) for name in dealt[split][1:5]]
    names = [*dict.fromkeys([first, *others]), last]
    rows = [shot(f"{name}-000", 9) for name in names] + [shot(f"{first}-001", 9)]
    # The first shows what the last does; its second shot shows what the second source does, of the same split.
    before = run_stage(rows, noise=len(names) - 1)
    set_pair(project, leaks="drop")
    capsys.readouterr()
    after = run_stage(rows, noise=len(names) - 1)
    lost = before[gives_way][before[gives_way].start_shot == f"{first}-000"].pair
    assert len(lost) == 3
    for split in SPLITS:
        assert set(after[split].pair) == set(before[split].pair) - set(lost if split == gives_way else ())
    dropped = pd.read_csv(project / "reports/pairs/dropped.csv")
    assert set(dropped.pair) == set(lost)
    assert set(dropped["filter"]) == {"pair.leaks: drop"}
    assert set(dropped.value.str[:20]) == {f"{last}-000"}
    assert not len(pd.read_csv(project / "reports/pairs/leaks.csv"))
    told = capsys.readouterr()
    assert "3 of 45 are of shots that nearly show what is held out" in told.out
    assert "two splits" not in told.err


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


MIXED = st.lists(st.sampled_from([("window", 5, 8), ("window", 5, 4), ("image", 1, 8), ("image", 1, 16)]), max_size=25)


@given(MIXED, st.integers(1, 4), st.sampled_from([0.1, 0.25, 0.5, 0.9]))
def test_images_get_their_share_of_the_batches_and_every_item_still_comes(
    shapes: list[tuple[int | str, ...]], batch_size: int, share: float
) -> None:
    shapes = [("window", 5, 8), ("image", 1, 8), *shapes]
    sampler = BatchSampler(shapes, batch_size, 3, share)
    batches = [sampler.batch(number) for number in range(sampler.batches_per_epoch)]
    assert all(len({shapes[item] for item in batch}) == 1 for batch in batches)
    assert {item for batch in batches for item in batch} == set(range(len(shapes)))
    images = [shapes[sampler.batch(number)[0]][0] == "image" for number in range(200)]
    assert all(abs(sum(images[:length]) - share * length) <= 1 for length in range(1, 201))
    # Within a kind, nothing comes twice before everything came once.
    for kind in ("image", "window"):
        members = [item for item, shape in enumerate(shapes) if shape[0] == kind]
        dealt = [sampler.batch(number) for number in range(200) if images[number] == (kind == "image")]
        first = [item for batch in dealt[: sampler.lengths[kind == "image"]] for item in batch]
        assert set(first) == set(members)


@pytest.mark.parametrize("shapes", [[("window", 5, 8)] * 9, [("image", 1, 8)] * 9])
def test_a_share_without_the_other_kind_changes_nothing(shapes: list[tuple[int | str, ...]]) -> None:
    with_share, without = (BatchSampler(shapes, 2, 1, share) for share in (0.5, None))
    assert [with_share.batch(number) for number in range(12)] == [without.batch(number) for number in range(12)]


# draw_seed


def test_seeds_depend_on_every_part_and_stay_the_same() -> None:
    assert draw_seed(42, "noise", 3, 1) == int(sha256(b"42/noise/3/1")[:16], 16) // 2
    seeds = {draw_seed(seed, what, step) for seed in range(5) for what in ("noise", "order") for step in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
