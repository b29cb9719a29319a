"""Made-up tables of a small run, and made-up runs to compare, for the tests of the report."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from framelora.report.compare import Revision
from framelora.report.page import Tables

METHODS = ("truth", "truth_vae", "base", "adapter_1", "hold_first", "blend")
WINDOW, IMAGES = "c0ffee0000000001-000-00000-12", "c0ffee0000000002-pair-12"
FRAMES = 12


def metrics(base: float = 20.0, adapters: dict[str, float] | None = None, blend: float = 18.0, **more: float) -> Any:
    """`reports/metrics.json` for three windows, with intervals of 0.1 dB to both sides of the gains."""
    scores = {"truth_vae": 40.0, "base": base, **(adapters or {"adapter_1": 20.5}), "blend": blend, "hold_first": 15.0}
    found: dict[str, float] = {"windows": 3, "image_pairs": 1}
    for method, psnr in scores.items():
        found |= {f"psnr_{method}": psnr, f"ssim_{method}": 0.5, f"ends_psnr_{method}": 30.0}
        if method.startswith("adapter"):
            gain = psnr - base
            found |= {f"psnr_gain_{method}{end}": gain + by for end, by in (("", 0), ("_low", -0.1), ("_high", 0.1))}
    return found | more


def pair(name: str, kind: str) -> dict[str, Any]:
    """A row of a pairs table."""
    content_id = name[:16]
    start, end = (f"{content_id}-000",) * 2 if kind == "window" else (f"{content_id}-start", f"{content_id}-end")
    return {
        "pair": name,
        "content_id": content_id,
        "kind": kind,
        "start_shot": start,
        "start_frame": 0,
        "end_shot": end,
        "end_frame": FRAMES - 1 if kind == "window" else 0,
        "num_frames": FRAMES,
        "width": 96,
        "height": 64,
        "pseudo": "",
    }


def tables(**changes: Any) -> Tables:
    """Two test samples (a window and an image pair), one training clip, one too short."""
    kinds = {WINDOW: "window", IMAGES: "image_pair"}
    shown = [
        (name, method) for name in kinds for method in METHODS if (kinds[name], method) != ("image_pair", "truth_vae")
    ]
    pairs = pd.DataFrame([pair(name, kind) for name, kind in kinds.items()])
    names = ["clips/wave.mp4", "pairs/hands", "clips/train me.mp4", "clips/short.mp4"]
    ids = [WINDOW[:16], IMAGES[:16], "c0ffee0000000003", "c0ffee0000000004"]
    scored = [
        {"pair": name, "kind": kinds[name], "method": method, "psnr": psnr, "ssim": psnr / 50, "ends_psnr": 100.0}
        for name, method in shown
        if method != "truth"
        for psnr in [21.0 if kinds[name] == "window" else math.nan]
    ]
    samples = pd.DataFrame(scored)
    windows = samples[samples.kind == "window"]
    totals = [
        {
            "metric": metric,
            "method": row.method,
            "mean": getattr(row, metric),
            "samples": 1,
            "unit": "",
            "better": "higher",
        }
        | (
            {"gain": math.nan, "gain_low": math.nan, "gain_high": math.nan}
            if row.method == "base"
            else {"gain": 0.5, "gain_low": 0.25, "gain_high": 0.75}
        )
        for metric in ("psnr", "ssim", "ends_psnr")
        for row in windows.itertuples()
    ]
    best = {"method": "adapter_1", "which": "best", "rank": 1, "pair": WINDOW, "psnr": 21.0, "base_psnr": 20.5}
    found: dict[str, Any] = {
        "params": {"report": {"title": "A run"}, "train": {"seed": 1, "rates": [1e-4, None], "fast": False}},
        "metrics": metrics(),
        "methods": samples.groupby("method")[["psnr", "ssim", "ends_psnr"]].mean().reset_index(),
        "samples": samples,
        "totals": pd.DataFrame(totals),
        "extremes": pd.DataFrame([{**best, "gain": 0.5}]),
        "notes": {"fid": "needs weights: score.fid_weights"},
        "thumbnails": {WINDOW[:16]: f"thumbnails/{WINDOW[:16]}.jpg"},
        "renders": pd.DataFrame(
            [
                {"pair": name, "kind": kinds[name], "method": method, "video": f"videos/{name}/{method}.mp4"}
                for name, method in shown
            ]
        ),
        "loss": pd.DataFrame({"step": range(1, 31), "loss": [1 / step for step in range(1, 31)]}),
        "validation": pd.DataFrame({"step": [0, 15, 30], "validation_loss": [0.9, 0.7, 0.6]}),
        "run": {
            "adapter_bytes": 1234,
            "cell": "ab" * 32,
            "final_loss": 0.03,
            "steps": 30,
            "trained_parameters": 5678,
            "validation_loss": 0.6,
            "validation_loss_base": 0.9,
        },
        "issues": [
            {
                "severity": "info",
                "rule": "no-caption",
                "where": "pairs/hands",
                "message": "has no caption",
                "fix": "write one",
                "picture": "",
            }
        ],
        "skipped": pd.DataFrame({"path": ["clips/broken.mp4"], "reason": ["no frame can be decoded"]}),
        "sources": pd.DataFrame(
            {
                "name": names,
                "kind": ["video", "image_pair", "video", "video"],
                "content_id": ids,
                "width": 320,
                "height": 180,
                "num_frames": [48, 0, 48, 3],
                "fps": [24.0, 0.0, 24.0, 24.0],
                "codec": "h264",
            }
        ),
        "captions": pd.DataFrame({"content_id": ids, "text": ["A hand waves.", "", "A bird.", ""]}),
        "pairs": {
            "train": pd.DataFrame([pair("c0ffee0000000003-000-00000-12", "window")]),
            "val": pairs[:0],
            "test": pairs,
        },
        "base": {"unet/model.safetensors": {"bytes": 1000, "sha256": "cd" * 32}},
    }
    return Tables(**(found | changes))


COMPARED = [f"{clip:016x}-000-{start:05d}-12" for clip in range(4) for start in (0, 4)]


def revision(name: str, gain: float = 0.0, **changes: Any) -> Revision:
    """A finished run whose adapter is better than the base by `gain` dB on every window."""
    rows = [
        {"pair": one, "kind": "window", "method": method, "psnr": psnr, "ssim": psnr / 50, "ends_psnr": 30.0}
        for number, one in enumerate(COMPARED)
        for method, psnr in (("base", 20.0 + number), ("adapter_1", 20.0 + number + gain), ("truth_vae", 40.0))
    ]
    scores = metrics(base=20.0, adapters={"adapter_1": 20.0 + gain})
    scores |= {f"psnr_gain_adapter_1{end}": gain for end in ("", "_low", "_high")}
    facts: dict[str, Any] = {
        "name": name,
        "commit": "",
        "params": {"train": {"learning_rate": gain, "seed": 1}},
        "digests": {"framelora/a.py": "1" * 32},
        "sources": {COMPARED[0][:16]: "clips/a.mp4"},
        "loss": pd.DataFrame({"step": range(1, 9), "loss": [1 / step for step in range(1, 9)]}),
        "metrics": scores,
        "samples": pd.DataFrame(rows),
        "pairs": pd.DataFrame([pair(one, "window") for one in COMPARED]),
        "videos": {
            (one, method): f"videos/{name}/{one}/{method}.mp4"
            for one in COMPARED
            for method in ("truth", "base", "adapter_1")
        },
    }
    return Revision(**(facts | changes))


def stopped(name: str) -> Revision:
    """A run that left no adapter."""
    empty = {"loss": None, "metrics": None, "samples": None, "pairs": None, "videos": {}}
    return revision(name, stopped="the loss is nan at step 7", **empty)
