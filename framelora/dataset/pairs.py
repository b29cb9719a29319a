"""Windows with a first frame, middles and a last frame, image pairs without middles, and their split."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from framelora.digest import sha256
from framelora.files import column

SPLITS = ("train", "val", "test")
SHOTS_SCHEMA = pa.schema(
    [
        column("shot", pa.string(), "id of the shot: content id and number, or start/end of an image pair"),
        column("content_id", pa.string(), "content it was cut from"),
        column("kind", pa.string(), "video or image_pair"),
        column("cell", pa.string(), "key of the extract/frames cell that holds the frames"),
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
        column("kind", pa.string(), "window (has its middles) or image_pair (has none: never a training target)"),
        column("start_shot", pa.string(), "shot of the first frame"),
        column("start_frame", pa.int32(), "number of the first frame in that shot", "frames"),
        column("end_shot", pa.string(), "shot of the last frame"),
        column("end_frame", pa.int32(), "number of the last frame in that shot", "frames"),
        column("num_frames", pa.int32(), "frames of the clip, both ends included", "frames"),
        column("width", pa.int32(), "width of the frames", "pixels"),
        column("height", pa.int32(), "height of the frames", "pixels"),
    ]
)


def split_of(content_id: str, *, seed: int, val_fraction: float, test_fraction: float) -> str:
    """The split of a source: a function of its content and the seed, so adding clips moves no other clip."""
    share = int(sha256(f"{seed}/{content_id}".encode())[:16], 16) / 16**16
    if share < test_fraction:
        return "test"
    return "val" if share < test_fraction + val_fraction else "train"


def cut_pairs(shots: pd.DataFrame, *, num_frames: int, stride: int) -> list[dict[str, object]]:
    """Cut every shot into windows, and join the two images of each pair.

    Args:
        shots: table of `SHOTS_SCHEMA`.
        num_frames: frames of a window, both ends included.
        stride: frames from the start of a window to the start of the next.

    Returns:
        Rows of `PAIRS_SCHEMA`, sorted by id. Shots shorter than a window give none.
    """
    rows: list[dict[str, object]] = []
    for shot in shots[shots.kind == "video"].itertuples():
        for start in range(0, shot.num_frames - num_frames + 1, stride):
            rows.append(
                {
                    "pair": f"{shot.shot}-{start:05d}-{num_frames}",
                    "content_id": shot.content_id,
                    "kind": "window",
                    "start_shot": shot.shot,
                    "start_frame": start,
                    "end_shot": shot.shot,
                    "end_frame": start + num_frames - 1,
                    "num_frames": num_frames,
                    "width": shot.width,
                    "height": shot.height,
                }
            )
    for content_id, images in shots[shots.kind == "image_pair"].groupby("content_id", sort=True):
        start, end = (images[images.shot == f"{content_id}-{half}"].iloc[0] for half in ("start", "end"))
        rows.append(
            {
                "pair": f"{content_id}-pair-{num_frames}",
                "content_id": content_id,
                "kind": "image_pair",
                "start_shot": start.shot,
                "start_frame": 0,
                "end_shot": end.shot,
                "end_frame": 0,
                "num_frames": num_frames,
                "width": start.width,
                "height": start.height,
            }
        )
    return sorted(rows, key=lambda row: str(row["pair"]))
