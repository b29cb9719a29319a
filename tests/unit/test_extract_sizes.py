"""Sizes and what is left out: the stage extract on small clips of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from broken_media import H264, clip
from conftest import REPOSITORY
from ruamel.yaml import YAML

from framelora.cells.store import open_store
from framelora.media.lossless import decode_frames
from stages import captions, extract

pytestmark = pytest.mark.slow
SMOOTH = "gradients=size={}:rate=8:duration=0.75:c0=white:c1=navy:seed=1"


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty data root of a project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRAMELORA_CELLS", raising=False)
    Path("clips").mkdir()
    return tmp_path / "clips"


def extracted(**values: object) -> tuple[pd.DataFrame, dict[str, str]]:
    """The index of frames by path, and what was left out, with the reasons."""
    document = YAML(typ="safe", pure=True).load(REPOSITORY / "params.yaml")
    document["data"]["root"] = "clips"
    document["extract"] |= values
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(document, file)
    captions.main()
    extract.main(shard="", fill=False)
    sources = pd.read_parquet("data/sources.parquet").set_index("content_id").path
    frames = pd.read_parquet("data/frames.parquet")
    skipped = pd.read_csv("reports/extract/skipped.csv")
    return frames.assign(path=frames.content_id.map(sources)).set_index("path"), dict(skipped.to_numpy().tolist())


def test_what_would_be_enlarged_too_much_is_left_out_and_listed(
    clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip(clips / "small.mp4", *H264, source=SMOOTH.format("40x28"))
    clip(clips / "enough.mp4", *H264, source=SMOOTH.format("48x32"))
    frames, left_out = extracted(buckets=["96x64"], max_upscale=2.0)
    reason = "would be enlarged 2.4 times; extract.max_upscale is 2"
    assert left_out == {"small.mp4": reason}
    assert set(frames.index) == {"enough.mp4"}
    assert f"warning: small.mp4 {reason}: left out" in capsys.readouterr().err
    frames, left_out = extracted(buckets=["96x64"], max_upscale=2.5)
    assert left_out == {}
    assert set(frames.index) == {"small.mp4", "enough.mp4"}


def test_what_holds_nothing_but_black_is_left_out_and_listed(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip(clips / "black.mp4", *H264, source="color=black:size=96x64:rate=8:duration=0.75")
    clip(clips / "light.mp4", *H264, source=SMOOTH.format("96x64"))
    frames, left_out = extracted(black_level=8.0)
    reason = "holds nothing but black (extract.black_level)"
    assert left_out == {"black.mp4": reason}
    assert set(frames.index) == {"light.mp4"}
    assert f"warning: black.mp4 {reason}: left out" in capsys.readouterr().err
    frames, left_out = extracted(black_level=0.0)
    assert left_out == {}
    assert set(frames.index) == {"black.mp4", "light.mp4"}


def test_a_budget_sizes_each_source_by_its_aspect(clips: Path) -> None:
    """Beside a search of all sizes: none that fits is nearer to the aspect and as large."""
    sizes = {"wide.mp4": (240, 120), "tall.mp4": (120, 180), "square.mp4": (128, 128), "strip.mp4": (320, 80)}
    for name, (width, height) in sizes.items():
        clip(clips / name, *H264, source=SMOOTH.format(f"{width}x{height}"))
    budget = {"pixels": 8192, "tokens": None, "multiple": 16, "max_aspect": 2.0}
    frames, left_out = extracted(buckets=[], bucket_budget=budget)
    assert left_out == {}
    fits = [
        (w, h) for w in range(16, 513, 16) for h in range(16, 513, 16) if w * h <= 8192 and max(w, h) <= 2 * min(w, h)
    ]
    fullest = [(w, h) for w, h in fits if not any(a >= w and b >= h and (a, b) != (w, h) for a, b in fits)]
    for name, (width, height) in sizes.items():
        aspects = {size: abs(np.log(size[0] / size[1]) - np.log(width / height)) for size in fullest}
        row = frames.loc[name]
        assert aspects[row.width, row.height] == min(aspects.values()), name
        stored = decode_frames(open_store().read("extract/frames", row.cell)[1])
        assert stored.shape == (row.num_frames, row.height, row.width, 3)
