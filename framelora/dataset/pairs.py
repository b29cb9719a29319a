"""Windows with a first frame, middles and a last frame, image pairs without middles, and their split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from framelora.files import column

SPLITS = ("train", "val", "test")
SHOTS_SCHEMA = pa.schema(
    [
        column("shot", pa.string(), "id of the shot: content id and number, start/end of an image pair, or image"),
        column("content_id", pa.string(), "content it was cut from"),
        column("kind", pa.string(), "video, image, image_pair, or pseudo (middles made for an image pair)"),
        column("cell", pa.string(), "key of the cell that holds the frames: extract/frames, or pair/pseudo"),
        column("digest", pa.string(), "SHA-256 of that cell's payload"),
        column("num_frames", pa.int32(), "frames kept", "frames"),
        column("width", pa.int32(), "width of the frames", "pixels"),
        column("height", pa.int32(), "height of the frames", "pixels"),
        column("fps", pa.float64(), "rate of the frames; 0 for an image", "frames/s"),
        column("times", pa.list_(pa.float64()), "display time of each frame in its source", "s"),
    ]
)
PAIRS_SCHEMA = pa.schema(
    [
        column("pair", pa.string(), "id of the window or image pair"),
        column("content_id", pa.string(), "content it comes from; the split goes by it"),
        column("kind", pa.string(), "window (has its middles), image, or image_pair (has none: never trained on)"),
        column("start_shot", pa.string(), "shot of the first frame"),
        column("start_frame", pa.int32(), "number of the first frame in that shot", "frames"),
        column("end_shot", pa.string(), "shot of the last frame"),
        column("end_frame", pa.int32(), "number of the last frame in that shot", "frames"),
        column("num_frames", pa.int32(), "frames of the clip, both ends included", "frames"),
        column("width", pa.int32(), "width of the frames", "pixels"),
        column("height", pa.int32(), "height of the frames", "pixels"),
        column("motion", pa.float64(), "mean optical flow between neighbouring frames", "% of the diagonal"),
        column("motion_ends", pa.float64(), "mean optical flow between first and last frame", "% of the diagonal"),
        column("static", pa.float64(), "share of pixels that do not change along the window", "0..1"),
        column("sharpness", pa.float64(), "variance of the Laplacian of brightness", "(0..255)^2"),
        column("brightness", pa.float64(), "mean brightness", "0..1"),
        column("pseudo", pa.string(), "what made the middles of an image pair: flow or rife; empty: nothing did"),
        column("hash", pa.string(), "difference hashes of first, middle and last frame, 16 hex digits each"),
    ]
)
# Columns that a filter may name, beside those of metadata files.
MEASURES = ("motion", "motion_ends", "static", "sharpness", "brightness", "num_frames", "width", "height")


def cut_pairs(
    shots: pd.DataFrame, *, num_frames: int, stride: int, image_frames: int = 1, stills: bool = False
) -> list[dict[str, object]]:
    """Cut every shot into windows, and join the two images of each pair.

    Args:
        shots: table of `SHOTS_SCHEMA`.
        num_frames: frames of a window, both ends included.
        stride: frames from the start of a window to the start of the next.
        image_frames: frames of the clip that a single image makes, held still.
        stills: whether a shot that is shorter than a window gives its middle frame as a single image.

    Returns:
        Rows of `PAIRS_SCHEMA` without measures, sorted by id. Other shots that are shorter than a window give none; a
        single image is a window whose first and last frame are one.
    """
    rows: list[dict[str, object]] = []
    for shot in shots[shots.kind == "video"].itertuples():
        for first in range(0, shot.num_frames - num_frames + 1, stride):
            name = f"{shot.shot}-{first:05d}-{num_frames}"
            rows.append(pair_row(name, "window", (shot, first), (shot, first + num_frames - 1), num_frames))
        if stills and shot.num_frames < num_frames:
            middle = (shot, (shot.num_frames - 1) // 2)
            rows.append(pair_row(f"{shot.shot}-{middle[1]:05d}-{image_frames}", "image", middle, middle, image_frames))
    for shot in shots[shots.kind == "image"].itertuples():
        rows.append(pair_row(f"{shot.shot}-{image_frames}", "image", (shot, 0), (shot, 0), image_frames))
    for content_id, images in shots[shots.kind == "image_pair"].groupby("content_id", sort=True):
        halves = {shot.shot: shot for shot in images.itertuples()}
        start, end = (halves[f"{content_id}-{half}"] for half in ("start", "end"))
        rows.append(pair_row(f"{content_id}-pair-{num_frames}", "image_pair", (start, 0), (end, 0), num_frames))
    return sorted(rows, key=lambda row: str(row["pair"]))


def pair_row(pair: str, kind: str, start: tuple[Any, int], end: tuple[Any, int], num_frames: int) -> dict[str, object]:
    """A row of `PAIRS_SCHEMA` without measures; `start` and `end` are a shot and the number of a frame in it."""
    return {
        "pair": pair,
        "content_id": start[0].content_id,
        "kind": kind,
        "start_shot": start[0].shot,
        "start_frame": start[1],
        "end_shot": end[0].shot,
        "end_frame": end[1],
        "num_frames": num_frames,
        "width": start[0].width,
        "height": start[0].height,
        "pseudo": "",
    }


def pseudo_row(row: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The window with made middles in place of an image pair; it keeps the measures of the pair's two images."""
    num_frames, shot = row["num_frames"], pseudo_shot(row["content_id"])
    places = {"start_shot": shot, "start_frame": 0, "end_shot": shot, "end_frame": num_frames - 1}
    return {**row, **places, "pair": f"{shot}-{num_frames}", "kind": "window", "pseudo": method}


def pseudo_shot(content_id: str) -> str:
    """Id of the shot that is made of an image pair."""
    return f"{content_id}-pseudo"
