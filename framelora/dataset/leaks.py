"""Shots of different splits that show nearly the same: what is trained on must not be what is tested on.

Pictures are compared, not windows: a shot that begins a few frames later, or a still out of it, shows the same.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 64
FEW = 1_000_000  # comparisons that are made at once, without bands
MOST_BANDED_BITS = 6  # beyond it, bands are so narrow and so many that all pictures are compared
EQUAL_BANDS = 3
MOST_NEAR = 32  # pictures of the other split that one picture is found near to; the first stand for more

Hashes = NDArray[np.uint64]
Rows = Sequence[Mapping[str, Any]]
Span = tuple[int, int]  # first and last picture of a window


@dataclass
class Unit:
    """A shot (or an image pair) of one split, with the windows that are kept of it."""

    content_id: str
    shot: str
    pairs: dict[Span, str] = field(default_factory=dict)


@dataclass
class Film:
    """Shots whose pictures and windows are equal; they are compared once.

    Attributes:
        pictures: hash of each picture of the shot; empty for one that says nothing.
        spans: the windows.
        units: the shots by split.
    """

    pictures: tuple[str, ...]
    spans: list[Span]
    units: dict[str, list[Unit]] = field(default_factory=lambda: defaultdict(list))

    @functools.cached_property
    def places(self) -> dict[str, list[int]]:
        """Where each picture that its windows show, and that says something, stands in the shot."""
        places: dict[str, list[int]] = {}
        for number in sorted({number for first, last in self.spans for number in range(first, last + 1)}):
            if self.pictures[number]:
                places.setdefault(self.pictures[number], []).append(number)
        return places

    @functools.cached_property
    def ends(self) -> NDArray[np.intp]:
        """`[N, 2]`: first picture of each window, and the one after its last."""
        return np.array([(first, last + 1) for first, last in self.spans])

    def window_within(self, bits_of: Mapping[str, int]) -> tuple[Span, int] | None:
        """The first window more than half of whose pictures are among some of `places`, and the most of their bits."""
        counts = np.zeros(len(self.pictures) + 1, np.intp)
        for text in bits_of:
            counts[np.array(self.places[text]) + 1] = 1
        within = counts.cumsum()[self.ends]
        enough = 2 * (within[:, 1] - within[:, 0]) > self.ends[:, 1] - self.ends[:, 0]
        if not enough.any():
            return None
        first, last = self.spans[int(enough.argmax())]
        return (first, last), max(bits_of.get(text, 0) for text in self.pictures[first : last + 1])

    def window_with(self, hashes: Mapping[str, int]) -> Span:
        """The first window that shows a picture of some hashes."""
        return next(span for span in self.spans if any(text in hashes for text in self.pictures[span[0] : span[1] + 1]))


@dataclass(frozen=True)
class Near:
    """Two films of two splits that show nearly the same, a window of each, and the bits that differ."""

    split: str
    film: Film
    span: Span
    other_split: str
    other: Film
    other_span: Span
    bits: int


def near_pictures(ours: Hashes, theirs: Hashes, bits: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places in two lists of hashes `[N]`, `[M]` whose hashes differ in at most `bits` bits.

    Two hashes that differ in at most `bits` places agree wholly on three of `bits + 3` bands of their bits. So for each
    choice of three bands (20 for 3 bits) both lists are sorted by them and only what agrees is compared: the time is
    that of sorting, N log M, and of the likely pairs. Where more than `MOST_NEAR` agree, the first of them stand for
    all. Beyond `MOST_BANDED_BITS` all are compared with all: N M.
    """
    if len(ours) * len(theirs) <= FEW or bits > MOST_BANDED_BITS:
        found = [(np.zeros(0, np.intp), np.zeros(0, np.intp))]
        step = max(1, FEW // max(1, len(theirs)))
        for start in range(0, len(ours), step):
            apart = np.bitwise_count(ours[start : start + step, None] ^ theirs[None])
            near = apart <= bits
            if len(ours) * len(theirs) > FEW:
                near &= np.cumsum(near, axis=1) <= MOST_NEAR
            here, there = np.nonzero(near)
            found.append((here + start, there))
        return np.concatenate([one for one, _ in found]), np.concatenate([other for _, other in found])
    bands = [
        sum(1 << int(bit) for bit in places) for places in np.array_split(np.arange(HASH_BITS), bits + EQUAL_BANDS)
    ]
    found_codes = np.zeros(0, np.int64)  # of a place here and one there
    for chosen in combinations(bands, EQUAL_BANDS):
        mask = np.uint64(sum(chosen))
        order = np.argsort(theirs & mask, kind="stable")
        keys = (theirs & mask)[order]
        first = np.searchsorted(keys, ours & mask, "left")
        counts = np.minimum(np.searchsorted(keys, ours & mask, "right") - first, MOST_NEAR)
        codes = [found_codes]
        step = max(1, FEW // MOST_NEAR)
        for start in range(0, len(ours), step):
            number = counts[start : start + step]
            here = np.repeat(np.arange(start, start + len(number)), number)
            within = np.arange(len(here)) - np.repeat(np.cumsum(number) - number, number)
            there = order[first[here] + within]
            near = np.bitwise_count(ours[here] ^ theirs[there]) <= bits
            codes.append(here[near] * len(theirs) + there[near])
        found_codes = np.unique(np.concatenate(codes))
        here = found_codes // len(theirs)
        found_codes = found_codes[np.arange(len(here)) - np.searchsorted(here, here, "left") < MOST_NEAR]
    here, there = np.divmod(found_codes, len(theirs))
    return here, there


def films_of(splits: Mapping[str, Rows]) -> list[Film]:
    """The shots of all splits, equal ones together. Rows hold `pictures` of their shot and the `span` of their own."""
    units: dict[tuple[str, str], tuple[Unit, tuple[str, ...]]] = {}
    for split, rows in splits.items():
        for row in rows:
            shot = str(row["start_shot"])
            if (split, shot) not in units:
                units[split, shot] = Unit(str(row["content_id"]), shot), tuple(row["pictures"])
            unit, _ = units[split, shot]
            unit.pairs.setdefault(row["span"], str(row["pair"]))
    films: dict[tuple[tuple[str, ...], tuple[Span, ...]], Film] = {}
    for (split, _), (unit, pictures) in units.items():
        spans = sorted(unit.pairs)
        films.setdefault((pictures, tuple(spans)), Film(pictures, spans)).units[split].append(unit)
    return list(films.values())


def near_films(films: list[Film], split: str, other_split: str, bits: int) -> Iterator[Near]:
    """All films of a split beside those of another that show nearly the same."""
    for film in films:
        in_both = split in film.units and other_split in film.units
        if in_both and (found := film.window_within(dict.fromkeys(film.places, 0))):
            yield Near(split, film, found[0], other_split, film, found[0], 0)
    ours, theirs = ([film for film in films if name in film.units] for name in (split, other_split))
    our_shown, their_shown = (
        [(at, text) for at, film in enumerate(some) for text in film.places] for some in (ours, theirs)
    )
    hashes, other_hashes = (
        np.array([int(text, 16) for _, text in some], np.uint64) for some in (our_shown, their_shown)
    )
    here, there = near_pictures(hashes, other_hashes, bits)
    at, other_at = (
        np.array([at for at, _ in some], np.intp)[places] for some, places in ((our_shown, here), (their_shown, there))
    )
    both = at * len(theirs) + other_at
    order = np.argsort(both, kind="stable")
    here, there, both = here[order], there[order], both[order]
    apart = np.bitwise_count(hashes[here] ^ other_hashes[there])
    bounds = np.flatnonzero(np.diff(both, prepend=-1, append=-1))
    for start, end in pairwise(bounds.tolist()):
        number, other_number = divmod(int(both[start]), len(theirs))
        film, other = ours[number], theirs[other_number]
        if film is other:
            continue
        nearest: dict[str, int] = {}
        other_nearest: dict[str, int] = {}
        pictures = zip(here[start:end].tolist(), there[start:end].tolist(), apart[start:end].tolist(), strict=True)
        for one, another, differ in pictures:
            text, other_text = our_shown[one][1], their_shown[another][1]
            nearest[text] = min(differ, nearest.get(text, HASH_BITS))
            other_nearest[other_text] = min(differ, other_nearest.get(other_text, HASH_BITS))
        if found := film.window_within(nearest):
            yield Near(split, film, found[0], other_split, other, other.window_with(other_nearest), found[1])
        elif found := other.window_within(other_nearest):
            yield Near(split, film, film.window_with(nearest), other_split, other, found[0], found[1])


def find_leaks(splits: Mapping[str, Rows], bits: int) -> list[dict[str, object]]:
    """Rows that name each content beside the nearest one of each other split that shows nearly the same.

    Two shots do if more than half of the pictures of any window of one are nearly equal to pictures of the other, in
    whatever order. No two rows have the same two contents, and there are at most two for each content, however many
    are alike.

    Args:
        splits: rows of the pairs tables by split, each with the hashes of the `pictures` of its shot and the `span` of
            its own among them.
        bits: bits of 64 in which nearly equal pictures may differ; -1 looks for nothing.
    """
    if bits < 0:
        return []
    films = films_of(splits)
    near = [one for split, other in combinations(splits, 2) for one in near_films(films, split, other, bits)]
    named: set[tuple[str, str]] = set()  # contents and the other split
    found: dict[frozenset[str], dict[str, object]] = {}
    for one in sorted(near, key=lambda one: one.bits):
        ours, theirs = one.film.units[one.split], one.other.units[one.other_split]
        for unit, other in [*((unit, theirs[0]) for unit in ours), *((ours[0], unit) for unit in theirs)]:
            keys = {(unit.content_id, one.other_split), (other.content_id, one.split)}
            if keys <= named:
                continue
            named |= keys
            row = {
                "split": one.split, "pair": unit.pairs[one.span],
                "other_split": one.other_split, "other_pair": other.pairs[one.other_span], "bits": one.bits,
            }  # fmt: skip
            found.setdefault(frozenset((unit.content_id, other.content_id)), row)
    return sorted(found.values(), key=lambda row: (str(row["pair"]), str(row["other_pair"])))


def shots_that_give_way(splits: Mapping[str, Rows], bits: int) -> dict[str, str]:
    """Shots to leave out so that no two splits show nearly the same: those of val for test, those of train for both.

    No source changes its split, so that adding one moves no other.

    Args:
        splits, bits: as in `find_leaks`.

    Returns:
        By shot, a window of the other split that it nearly shows.
    """
    left_out: dict[str, str] = {}
    if bits < 0:
        return left_out
    films = films_of(splits)
    for split, held_out in (("val", "test"), ("train", "val"), ("train", "test")):
        for near in near_films(films, split, held_out, bits):
            kept = (unit for unit in near.other.units[held_out] if unit.shot not in left_out)
            if unit := next(kept, None):
                for shot in near.film.units[split]:
                    left_out.setdefault(shot.shot, unit.pairs[near.other_span])
    return left_out
