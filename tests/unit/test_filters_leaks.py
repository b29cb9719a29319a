"""Filters are data and never code; near duplicates are those that comparing all with all finds."""

from __future__ import annotations

import contextlib
from itertools import combinations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framelora.console import UserError
from framelora.dataset.filters import Filter
from framelora.dataset.leaks import find_leaks, near_duplicates, shots_that_give_way
from framelora.media.measure import difference_hash, measure_windows


@pytest.mark.parametrize(
    ("text", "kept", "dropped"),
    [
        ("motion > 0.5", 0.6, 0.5),
        ("motion>=5e-1", 0.5, 0.4),
        ("score != 3", 4.0, 3.0),
        ("score in [1, 2.5]", 2.5, 2.0),
        ('scene == "wood"', "wood", "Wood"),
        ('scene in ["a b", "c"]', "a b", "b"),
        ("`my column` <= -1", -1.0, 0.0),
        ("größe < 2", 1.0, 2.0),
    ],
)
def test_a_condition_keeps_what_meets_it(text: str, kept: float | str, dropped: float | str) -> None:
    condition = Filter.parse(text)
    assert condition.keeps(kept)
    assert not condition.keeps(dropped)
    assert not condition.keeps(None)
    assert not condition.keeps(float("nan"))
    assert condition.is_text == isinstance(kept, str)


@pytest.mark.parametrize(
    "text",
    ["", "motion", "motion >", "motion > fast", "motion = 1", "motion > 1 and static < 1", "motion > [1]", "a in 3",
     'scene > "a"', 'a in [1, "b"]', "__import__('os').system('true') > 1", "a.b > 1", "1 > 0", "motion > null",
     "motion > " + "[" * 5000],
)  # fmt: skip
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"is no filter: write COLUMN OPERATOR VALUE, for example 'motion > 0.5'"):
        Filter.parse(text)


@given(st.text(max_size=30))
def test_no_text_raises_anything_else(text: str) -> None:
    with contextlib.suppress(UserError):
        Filter.parse(text)


def apart(first: str, second: str) -> int:
    """The most bits that differ in one of the pictures, one by one."""
    pictures = [(first[place : place + 16], second[place : place + 16]) for place in range(0, len(first), 16)]
    return max(bin(int(one, 16) ^ int(other, 16)).count("1") for one, other in pictures)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 191), max_size=6)), min_size=2, max_size=12),
    st.integers(0, 6),
)
def test_near_duplicates_are_those_of_brute_force(changes: list[tuple[int, set[int]]], bits: int) -> None:
    """Fingerprints of three pictures, a few bits away from one of four."""
    centres = [int.from_bytes(np.random.default_rng(seed).bytes(24)) for seed in range(4)]
    hashes = {f"{centres[centre] ^ sum(1 << bit for bit in flips):048x}" for centre, flips in changes}
    expected = {pair: apart(*pair) for pair in combinations(sorted(hashes), 2) if apart(*pair) <= bits}
    assert {(one, other): number for one, other, number in near_duplicates(hashes, bits)} == expected


def row(content_id: str, text: str) -> dict[str, object]:
    return {"pair": f"{content_id}-000", "content_id": content_id, "hash": text}


def test_leaks_are_between_splits_only_and_name_the_nearest_windows() -> None:
    base, near, far = "0" * 48, "0" * 47 + "3", "f" * 48
    splits = {
        "train": [row("a", base), row("b", base)],
        "val": [row("c", far)],
        "test": [row("d", near), row("d", base)],
    }
    leaks = find_leaks(splits, 3)
    assert [(leak["pair"], leak["other_pair"], leak["bits"]) for leak in leaks] == [
        ("a-000", "d-000", 0),
        ("b-000", "d-000", 0),
    ]
    assert find_leaks(splits, -1) == []


def test_the_rows_grow_with_the_sources_and_not_with_their_pairs() -> None:
    """3,000 equal sources: each is named, each two at most once; all pairs of them would be 2.5 million rows."""
    contents = {"train": 1800, "val": 450, "test": 750}
    splits = {split: [row(f"{split}{number}", "0" * 48) for number in range(n)] for split, n in contents.items()}
    leaks = find_leaks(splits, 3)
    assert len(leaks) <= 2 * 3000
    assert len({frozenset((leak["pair"], leak["other_pair"])) for leak in leaks}) == len(leaks)
    named = {leak[end] for leak in leaks for end in ("pair", "other_pair")}
    assert named == {row["pair"] for rows in splits.values() for row in rows}
    assert all(leak["split"] != leak["other_split"] for leak in leaks)


WINDOW = st.tuples(
    st.sampled_from(["train", "val", "test"]), st.integers(0, 3), st.sets(st.integers(0, 191), max_size=6)
)


@given(st.lists(WINDOW, max_size=12), st.integers(0, 6))
def test_what_is_left_out_is_what_leaks_and_no_more(windows: list[tuple[str, int, set[int]]], bits: int) -> None:
    """Beside all comparisons: nothing leaks any more, and each shot left out had a reason that was kept."""
    centres = [int.from_bytes(np.random.default_rng(seed).bytes(24)) for seed in range(2)]
    splits: dict[str, list[dict[str, object]]] = {"train": [], "val": [], "test": []}
    for number, (split, shot, flips) in enumerate(windows):
        text = f"{centres[shot % 2] ^ sum(1 << bit for bit in flips):048x}"
        name = f"{split}{shot}"
        splits[split].append({"pair": f"{name}-{number}", "content_id": name, "start_shot": name, "hash": text})
    hashes = {str(row["pair"]): str(row["hash"]) for rows in splits.values() for row in rows}
    left_out = shots_that_give_way(splits, bits)
    kept = {split: [row for row in rows if row["start_shot"] not in left_out] for split, rows in splits.items()}
    assert kept["test"] == splits["test"]
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        for first in kept[one]:
            assert all(apart(str(first["hash"]), str(second["hash"])) > bits for second in kept[other])
    for shot_name, reason in left_out.items():
        own = [row for rows in splits.values() for row in rows if row["start_shot"] == shot_name]
        assert min(apart(str(row["hash"]), hashes[reason]) for row in own) <= bits
        assert reason in {row["pair"] for split in ("val", "test") for row in kept[split]}
        assert not (shot_name.startswith("val") and reason.startswith("val"))
    assert shots_that_give_way(splits, -1) == {}


# measures


def picture(shift: float) -> np.ndarray:
    """A smooth texture, moved to the right by some pixels."""
    texture = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (128, 384), np.uint8), (0, 0), 3)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    moved = cv2.warpAffine(texture, np.float32([[1, 0, shift - 64], [0, 1, 0]]), (192, 128))
    return np.repeat(moved[..., None], 3, 2)


def test_motion_is_the_length_of_the_flow_in_percent_of_the_diagonal() -> None:
    frames = np.stack([picture(2.0 * number) for number in range(5)])
    (one,) = measure_windows(frames, [(0, 4)])
    percent = 100 / np.hypot(192, 128)
    assert one.motion == pytest.approx(2 * percent, rel=0.15)
    assert one.motion_ends == pytest.approx(8 * percent, rel=0.2)
    assert one.static is not None
    assert one.static < 0.3
    large = np.stack([cv2.resize(frame, (768, 512)) for frame in frames])
    assert measure_windows(large, [(0, 4)])[0].motion == pytest.approx(one.motion, rel=0.1)


def test_a_still_does_not_move_and_a_blur_is_less_sharp() -> None:
    still = np.stack([picture(0)] * 4)
    (one,) = measure_windows(still, [(0, 3)])
    assert (one.motion, one.motion_ends, one.static) == (0, 0, 1)
    assert one.brightness == pytest.approx(still.mean() / 255, abs=0.01)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in still])
    assert measure_windows(blurred, [(0, 3)])[0].sharpness < one.sharpness / 2
    (image,) = measure_windows(still[:1], [(0, 0)])
    assert (image.motion, image.motion_ends, image.static) == (None, None, None)


def test_a_window_is_measured_the_same_whatever_else_is_measured() -> None:
    frames = np.stack([picture(3.0 * number) for number in range(8)])
    together = measure_windows(frames, [(0, 4), (2, 6), (3, 7)])
    assert together[1] == measure_windows(frames, [(2, 6)])[0]


def test_the_hash_stays_under_noise_and_scale_and_changes_with_the_picture() -> None:
    gray = picture(0)[..., 0]
    noisy = np.clip(gray + np.random.default_rng(0).normal(0, 3, gray.shape), 0, 255).astype(np.uint8)
    small = cv2.resize(gray, (96, 64), interpolation=cv2.INTER_AREA)
    assert apart(difference_hash(gray), difference_hash(noisy)) <= 3
    assert apart(difference_hash(gray), difference_hash(small)) <= 3
    assert apart(difference_hash(gray), difference_hash(picture(60)[..., 0])) > 12
