"""Windows of different splits that show nearly the same: what is trained on must not be what is tested on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 64


def near_duplicates(hashes: Iterable[str], bits: int) -> list[tuple[str, str, int]]:
    """Pairs of different fingerprints each of whose pictures differs in at most `bits` bits, and the most that differ.

    Two hashes of 64 bits that differ in at most `bits` places agree on one of `bits + 1` bands whole, so only those
    that share a band are compared: the work grows with the number of likely pairs, not with its square.

    Args:
        hashes: fingerprints as `media.measure` makes them: 16 hex digits a picture. Those of one length are compared.
        bits: the greatest distance of a picture.
    """
    distinct = sorted(set(hashes))
    unpacked = {text: np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)) for text in distinct}
    bands: dict[tuple[int, int, bytes], list[str]] = defaultdict(list)
    for text, ones in unpacked.items():
        for number, band in enumerate(np.array_split(ones[:HASH_BITS], bits + 1)):
            bands[len(text), number, band.tobytes()].append(text)
    found: dict[tuple[str, str], int] = {}
    for members in bands.values():
        for first, second in combinations(members, 2):
            if (first, second) not in found:
                found[first, second] = distance(unpacked[first], unpacked[second])
    return sorted((first, second, bits_apart) for (first, second), bits_apart in found.items() if bits_apart <= bits)


def distance(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> int:
    """The most bits in which two pictures of two fingerprints differ."""
    return int((first != second).reshape(-1, HASH_BITS).sum(axis=1).max())


def find_leaks(splits: Mapping[str, list[dict[str, object]]], bits: int) -> list[dict[str, object]]:
    """Rows that name each content beside the nearest one of each other split that has a nearly equal window.

    No two rows have the same two contents, and there are at most two for each content, however many are alike.

    Args:
        splits: rows of the pairs tables by split.
        bits: bits of 64 in which nearly equal pictures may differ; -1 looks for nothing.
    """
    if bits < 0:
        return []
    # By hash and split: a window of each content.
    by_hash: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for split, rows in splits.items():
        for row in rows:
            by_hash[str(row["hash"])][split].setdefault(str(row["content_id"]), str(row["pair"]))
    rank = {split: number for number, split in enumerate(splits)}
    named: set[tuple[str, str]] = set()  # contents and the other split
    found: dict[frozenset[str], dict[str, object]] = {}
    near = [(text, text, 0) for text in by_hash] + near_duplicates(by_hash, bits)
    for one, other, apart in sorted(near, key=lambda pair: pair[2]):
        for here, there in ((one, other), (other, one)):
            for split, contents in by_hash[here].items():
                for other_split, others in by_hash[there].items():
                    if split == other_split:
                        continue
                    partner, other_pair = next(iter(others.items()))
                    for content_id, pair in contents.items():
                        if (content_id, other_split) in named:
                            continue
                        named.add((content_id, other_split))
                        ends = sorted([(split, pair), (other_split, other_pair)], key=lambda end: rank[end[0]])
                        row = dict(zip(("split", "pair", "other_split", "other_pair"), sum(ends, ()), strict=True))
                        found.setdefault(frozenset((content_id, partner)), {**row, "bits": apart})
    return sorted(found.values(), key=lambda row: (str(row["pair"]), str(row["other_pair"])))


def shots_that_give_way(splits: Mapping[str, list[dict[str, object]]], bits: int) -> dict[str, str]:
    """Shots to leave out so that no two splits show nearly the same: those of val for test, those of train for both.

    No source changes its split, so that adding one moves no other.

    Args:
        splits: rows of the pairs tables by split.
        bits: as in `find_leaks`.

    Returns:
        By shot, a window of the other split that one of its windows nearly equals.
    """
    if bits < 0:
        return {}
    windows: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))  # hash, split, shot: window
    for split, rows in splits.items():
        for row in rows:
            windows[str(row["hash"])][split].setdefault(str(row["start_shot"]), str(row["pair"]))
    near = near_duplicates(windows, bits)
    nearly = [(text, text) for text in windows] + [(one, other) for one, other, _ in near]
    nearly += [(other, one) for one, other, _ in near]
    left_out: dict[str, str] = {}
    for split, held_out in (("val", ("test",)), ("train", ("val", "test"))):
        for one, other in nearly:
            kept = (pair for name in held_out for shot, pair in windows[other][name].items() if shot not in left_out)
            if windows[one][split] and (pair := next(kept, None)):
                left_out |= {shot: pair for shot in windows[one][split] if shot not in left_out}
    return left_out
