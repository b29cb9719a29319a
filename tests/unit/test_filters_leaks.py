"""Filters are data and never code; near duplicates are those that comparing all with all finds."""

from __future__ import annotations

import contextlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framelora.console import UserError
from framelora.dataset.filters import Filter
from framelora.dataset.leaks import find_leaks, near_pictures, shots_that_give_way
from framelora.media.measure import difference_hash, measure_windows, picture_hashes


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
    """The bits that differ between two hashes."""
    return (int(first, 16) ^ int(second, 16)).bit_count()


def hashes_near(centres: int, seed: int, count: int) -> np.ndarray:
    """Hashes a few bits away from one of some centres."""
    random = np.random.default_rng(seed)
    middles = random.integers(0, 2**64, centres, np.uint64)
    flips = (np.uint64(1) << random.integers(0, 64, (count, 8), np.uint64)) * (random.random((count, 8)) < 0.5)
    return middles[random.integers(0, centres, count)] ^ np.bitwise_xor.reduce(flips, axis=1)


@pytest.mark.parametrize("bits", [0, 1, 3, 6, 7, 16])
@pytest.mark.parametrize("few", [5000, 1_000_000])
def test_near_pictures_are_those_of_brute_force(bits: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bands or in blocks, and at once."""
    monkeypatch.setattr("framelora.dataset.leaks.FEW", few)
    hashes = hashes_near(20, bits, 400)
    ours, theirs = hashes[:250], hashes[150:]
    expected = {
        (here, there)
        for here, one in enumerate(ours.tolist())
        for there, other in enumerate(theirs.tolist())
        if (one ^ other).bit_count() <= bits
    }
    found = list(zip(*(places.tolist() for places in near_pictures(ours, theirs, bits)), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert len(expected) >= 100


def shown(content_id: str, pictures: list[str], *spans: tuple[int, int]) -> list[dict[str, object]]:
    """Rows of the windows of one shot."""
    same = {"content_id": content_id, "start_shot": f"{content_id}-000", "pictures": pictures}
    return [{**same, "pair": f"{content_id}-{first:03d}", "span": (first, last)} for first, last in spans]


def film(seed: int, count: int) -> list[str]:
    """Pictures that have nothing in common."""
    return [f"{number:016x}" for number in np.random.default_rng(seed).integers(0, 2**64, count, np.uint64).tolist()]


def test_leaks_are_between_splits_only_and_name_the_nearest_windows() -> None:
    base, far = film(0, 6), film(1, 6)
    near = [f"{int(text, 16) ^ 3:016x}" for text in base]
    splits = {
        "train": [*shown("a", base, (0, 4)), *shown("b", base, (0, 4))],
        "val": shown("c", far, (0, 4)),
        "test": [*shown("d", near, (0, 4)), *shown("e", base, (0, 4), (1, 5))],
    }
    leaks = [tuple(leak.values()) for leak in find_leaks(splits, 3)]
    assert leaks == [
        ("train", "a-000", "test", "d-000", 2),
        ("train", "a-000", "test", "e-000", 0),
        ("train", "b-000", "test", "e-000", 0),
    ]
    assert find_leaks(splits, 1) == find_leaks(splits, 0)
    assert len(find_leaks(splits, 1)) == 2
    assert find_leaks(splits, -1) == []


def leaking(train: list[dict[str, object]], test: list[dict[str, object]]) -> bool:
    """Whether two shots leak, by both functions, which must agree."""
    splits = {"train": train, "val": [], "test": test}
    given_way = shots_that_give_way(splits, 3)
    assert bool(given_way) == bool(find_leaks(splits, 3))
    return list(given_way) == [train[0]["start_shot"]]


def test_windows_are_found_at_any_offset_and_only_by_what_they_show() -> None:
    pictures = film(0, 30)
    held_out = shown("t", pictures[:20], (0, 4), (9, 13))
    assert leaking(shown("a", pictures[3:], (7, 11)), held_out)  # shows 10 to 14
    assert leaking(shown("a", pictures[3:], (4, 8)), held_out)  # shows 7 to 11, three of which are held out
    assert not leaking(shown("a", pictures[3:], (3, 7)), held_out)  # shows 6 to 10, two of which are
    assert leaking(shown("a", pictures[9:12][::-1], (0, 2)), held_out)  # in whatever order


def test_a_still_leaks_where_a_window_shows_it() -> None:
    pictures = film(0, 12)
    held_out = shown("t", pictures, (0, 4))
    assert leaking(shown("still", [pictures[2]], (0, 0)), held_out)
    assert not leaking(shown("still", [pictures[8]], (0, 0)), held_out)
    assert leaking(shown("clip", pictures, (1, 5)), shown("held out still", [pictures[2]], (0, 0)))


def test_pictures_that_say_nothing_are_like_no_other() -> None:
    flat = [""] * 9
    assert not leaking(shown("a", flat, (0, 4)), shown("t", flat, (0, 4)))
    assert not leaking(shown("a", [""], (0, 0)), shown("t", flat, (0, 4)))
    half = [*film(0, 2), *flat]
    assert not leaking(shown("a", half, (0, 4)), shown("t", half, (0, 4)))  # two of five pictures
    assert leaking(shown("a", half, (0, 2)), shown("t", half, (0, 4)))


def test_the_rows_grow_with_the_sources_and_not_with_their_pairs() -> None:
    """3,000 equal sources: each is named, each two at most once; all pairs of them would be 2.5 million rows."""
    contents = {"train": 1800, "val": 450, "test": 750}
    pictures = film(0, 5)
    splits = {
        split: [row for number in range(count) for row in shown(f"{split}{number}", pictures, (0, 4))]
        for split, count in contents.items()
    }
    leaks = find_leaks(splits, 3)
    assert len(leaks) <= 2 * 3000
    assert len({frozenset((leak["pair"], leak["other_pair"])) for leak in leaks}) == len(leaks)
    named = {leak[end] for leak in leaks for end in ("pair", "other_pair")}
    assert named == {row["pair"] for rows in splits.values() for row in rows}
    assert all(leak["split"] != leak["other_split"] for leak in leaks)


def show_the_same(one: list[dict[str, Any]], other: list[dict[str, Any]], bits: int) -> bool:
    """Whether more than half of the pictures of any window of two shots are near what the other's windows show."""
    for rows, others in ((one, other), (other, one)):
        theirs = [text for row in others for text in row["pictures"][row["span"][0] : row["span"][1] + 1] if text]
        for row in rows:
            pictures = row["pictures"][row["span"][0] : row["span"][1] + 1]
            near = [any(apart(text, known) <= bits for known in theirs) for text in pictures if text]
            if 2 * sum(near) > len(pictures):
                return True
    return False


SHOT = st.tuples(
    st.sampled_from(["train", "val", "test"]),
    st.lists(st.tuples(st.integers(-1, 7), st.sets(st.integers(0, 63), max_size=3)), min_size=3, max_size=6),
)


@given(st.lists(SHOT, max_size=9), st.integers(0, 4))
def test_what_is_left_out_is_what_leaks_and_no_more(shots: list[tuple[str, Any]], bits: int) -> None:
    """Beside all comparisons: nothing leaks any more, and each shot left out had a reason that was kept."""
    centres = [int(text, 16) for text in film(0, 8)]
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    of_shot: dict[str, list[dict[str, Any]]] = {}
    for number, (split, places) in enumerate(shots):
        pictures = [f"{centres[at] ^ sum(1 << bit for bit in flips):016x}" if at >= 0 else "" for at, flips in places]
        rows = shown(f"{split}{number}", pictures, *((first, first + 2) for first in range(len(pictures) - 2)))
        of_shot[str(rows[0]["start_shot"])] = rows
        splits[split] += rows
    left_out = shots_that_give_way(splits, bits)
    kept = {split: [row for row in rows if row["start_shot"] not in left_out] for split, rows in splits.items()}
    assert kept["test"] == splits["test"]
    names = {split: sorted({row["start_shot"] for row in rows}) for split, rows in kept.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        for first in names[one]:
            assert not any(show_the_same(of_shot[first], of_shot[second], bits) for second in names[other])
    shot_of = {row["pair"]: row["start_shot"] for rows in splits.values() for row in rows}
    for name, reason in left_out.items():
        assert show_the_same(of_shot[name], of_shot[shot_of[reason]], bits)
        assert shot_of[reason] in names["val"] + names["test"]
        assert not (name.startswith("val") and reason.startswith("val"))
    assert bool(find_leaks(splits, bits)) == bool(left_out)
    assert find_leaks(kept, bits) == []
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


def test_every_picture_has_its_hash_but_even_ones_have_none() -> None:
    random = np.random.default_rng(0)
    even = np.clip(random.normal(90, 6, (128, 192, 3)), 0, 255).astype(np.uint8)  # noise of a camera on a wall
    black = np.zeros_like(even)
    frames = np.stack([picture(0), even, picture(60), black])
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    assert picture_hashes(frames) == [difference_hash(gray[0]), "", difference_hash(gray[2]), ""]
