"""Tracks of points that come with a video: `NAME.tracks.json` beside it, or `tracks.json` where it is the only one.

    {"tracks": [[{"frame": 0, "x": 310.5, "y": 120}, {"frame": 12, "x": 340, "y": 118}], ...]}

A track is a list of places in pixels of the video as it is displayed, each at a `frame` (from 0, by the video's rate)
or at a `time` in seconds from its start. Between two places a point moves evenly and in a straight line; before the
first and after the last it is hidden.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from framelora.dataset.paths import composed
from framelora.dataset.rules import Finding, unopened
from framelora.dataset.sources import Source
from framelora.dataset.window_tracks import Place
from framelora.digest import canonical_json
from framelora.files import column
from framelora.media.probe import Facts

SUFFIX = ".tracks.json"
SHARED = "tracks.json"
SCHEMA = pa.schema(
    [
        column("content_id", pa.string(), "content that the tracks belong to"),
        column("tracks", pa.string(), "JSON: a list of tracks, each a list of [time in s, x, y], in source pixels"),
        column("width", pa.int32(), "width of the source as displayed", "pixels"),
        column("height", pa.int32(), "height of the source as displayed", "pixels"),
    ]
)


class BadTracks(ValueError):
    """A file of tracks that can't be used; the text says why, and where in it."""


def parse(text: str, facts: Facts) -> list[list[Place]]:
    """Read a file of tracks.

    Raises:
        BadTracks: it is not JSON of that form, a place lies outside the picture, or a track's times do not rise.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise BadTracks(f"is not JSON ({error})") from None
    except RecursionError:
        raise BadTracks("is nested too deeply") from None
    tracks = document.get("tracks") if isinstance(document, dict) else None
    if not isinstance(tracks, list) or not all(isinstance(track, list) for track in tracks):
        raise BadTracks('must hold {"tracks": [[{"frame": 0, "x": 10, "y": 20}, ...], ...]}')
    return [read_track(track, f"track {number}", facts) for number, track in enumerate(tracks)]


def read_track(track: Sequence[Any], name: str, facts: Facts) -> list[Place]:
    """One track as times and places. Raises `BadTracks` naming it and the place that is wrong."""
    if not track:
        raise BadTracks(f"{name} has no place")
    places: list[Place] = []
    for number, given in enumerate(track):
        where = f"{name}, place {number}"
        keys = set(given) if isinstance(given, dict) else set()
        if keys not in ({"frame", "x", "y"}, {"time", "x", "y"}):
            raise BadTracks(f"{where} must have x, y, and frame or time")
        time, x, y = (
            finite(given[key], f"{where} has a value that is no number")
            for key in ("frame" if "frame" in keys else "time", "x", "y")
        )
        if "frame" in keys:
            if not facts.fps:
                raise BadTracks(f"{where} goes by frames, and the video tells no rate: give times")
            time = finite(time / facts.fps, f"{where} lies beyond all times")
        if not (0 <= x < facts.width and 0 <= y < facts.height):
            raise BadTracks(f"{where} lies outside the picture ({facts.width}x{facts.height})")
        if time < (0 if not places else np.nextafter(places[-1][0], np.inf)):
            raise BadTracks(f"{where}: times must rise from 0")
        places.append((time, x, y))
    return places


def finite(value: object, message: str) -> float:
    """A value of JSON as a number. Raises `BadTracks` with a message when it is none, or none that a float holds."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadTracks(message)
    return number


def find(names: Iterable[str], sources: Iterable[Source]) -> tuple[dict[str, Source], list[Finding]]:
    """The file of tracks of each video, and files that belong to none.

    Args:
        names: all files under the data root.
        sources: the videos and others that are used.
    """
    videos = [source for source in sources if source.kind == "video"]
    by_stem = {str(PurePosixPath(video.path).with_suffix("")): video for video in videos}
    by_composed = {composed(stem): video for stem, video in by_stem.items()}
    by_folder: dict[str, list[Source]] = {}
    for video in videos:
        by_folder.setdefault(str(PurePosixPath(video.path).parent), []).append(video)
    found: dict[str, Source] = {}
    findings = []
    for name in names:
        path = PurePosixPath(name)
        if path.name.lower() == SHARED:
            beside = by_folder.get(str(path.parent), [])
            if len(beside) == 1:
                found[name] = beside[0]
            else:
                message = f"lies beside {len(beside)} videos: call it NAME{SUFFIX}, after one of them"
                findings.append(Finding("stray-tracks", name, message))
        elif name.lower().endswith(SUFFIX):
            stem = name[: -len(SUFFIX)]
            if (own := by_stem.get(stem) or by_composed.get(composed(stem))) is not None:
                found[name] = own
            else:
                findings.append(Finding("stray-tracks", name, "belongs to no video"))
    return found, findings


def read(root: Path, found: Mapping[str, Source], facts: Mapping[str, Facts]) -> tuple[dict[str, str], list[Finding]]:
    """The tracks of each video, as JSON by its path; a file of its own name goes before the folder's."""
    tracks: dict[str, str] = {}
    findings = []
    for name in sorted(found, key=lambda name: PurePosixPath(name).name.lower() == SHARED):
        video = found[name].path
        if video in tracks:
            findings.append(Finding("stray-tracks", name, f"is not used: {video} has a file of its own"))
            continue
        try:
            tracks[video] = canonical_json(parse((root / name).read_text(encoding="utf-8-sig"), facts[video]))
        except UnicodeDecodeError:
            findings.append(Finding("tracks-unreadable", name, "is not UTF-8"))
        except OSError as error:
            findings.append(Finding("tracks-unreadable", name, unopened(error)))
        except BadTracks as error:
            findings.append(Finding("tracks-unreadable", name, str(error)))
    return tracks, findings
