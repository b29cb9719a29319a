"""Builds reports/index.html: a pure function of the tables it is given."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from framelora.digest import canonical_json, sha256
from framelora.evaluation.catalogue import ADAPTED, PER_SAMPLE
from framelora.report.chart import Chart, draw, smoothed, thinned
from framelora.report.scores import (
    digits,
    dynamics_charts,
    result_table,
    score_columns,
    score_rows,
    shown,
    step_charts,
    steps_of,
    weight_charts,
)
from framelora.report.verdict import Verdict, adapters_of, count, signed, verdicts

TEMPLATE = Path(__file__).with_name("page.html.j2")
SCRIPTS = ("player.js", "viewer.js", "table.js", "page.js")
ABOUT = {
    "truth": "the frames of the clip",
    "truth_vae": "the truth through the VAE: what a perfect model would reach",
    "base": "the base model without an adapter",
    "blend": "linear cross-fade of the two ends",
    "blend_vae": "that blend through the VAE: what the VAE costs a render",
    "flow_warp": "the two ends moved along their optical flow, then cross-faded",
    "rife": "the interpolation network RIFE",
    "hold_first": "the first frame held until the last",
    "still": "the first frame throughout",
}
SPLITS = {
    "train": "Training",
    "val": "Validation",
    "test": "Test",
    "unused": "Not used",
}


@dataclass(frozen=True)
class Tables:
    """What the page is built from: the outs of the stages, as read."""

    params: dict[str, Any]
    metrics: dict[str, float]
    methods: pd.DataFrame
    samples: pd.DataFrame
    totals: pd.DataFrame
    extremes: pd.DataFrame
    notes: dict[str, str]
    renders: pd.DataFrame
    loss: pd.DataFrame
    validation: pd.DataFrame | None
    run: dict[str, Any]
    issues: list[dict[str, str]]
    skipped: pd.DataFrame
    sources: pd.DataFrame
    captions: pd.DataFrame
    pairs: dict[str, pd.DataFrame]  # by split
    base: dict[str, dict[str, Any]]
    thumbnails: dict[str, str]  # paths beside the page, by content id


def build_page(tables: Tables) -> str:
    """The whole page. It carries a digest of itself, by which `run.js` tells whose costs it holds."""
    environment = page_environment()
    windows = tables.pairs["test"].query("kind == 'window'")
    groups = test_groups(tables)
    titles = {
        sample["id"]: f"{', '.join(group['names'])}: {sample['title']}"
        for group in groups
        for sample in group["samples"]
    }

    def order(method: str) -> int:
        return place(method, tables)

    def what(method: str) -> str:
        return about(method, tables.params.get("render", {}).get("adapters", {}))

    columns = score_columns(tables.samples)
    page = environment.get_template(TEMPLATE.name).render(
        title=tables.params["report"]["title"],
        style=read_part("page.css"),
        script=read_script(*SCRIPTS),
        metrics=tables.metrics,
        verdicts=[*pseudo_verdicts(tables), *verdicts(tables.metrics, windows.content_id.nunique())],
        totals=result_table(tables.totals, tables.notes, order, what, mid=False),
        mids=result_table(tables.totals, tables.notes, order, what, mid=True),
        adapters=adapters_of(tables.metrics),
        extremes=[{**row, "title": titles[row["pair"]]} for row in tables.extremes.to_dict("records")],
        score_metrics=columns,
        score_rows=score_rows(tables.samples, columns, titles, order) if groups else [],
        groups=groups,
        charts_of_weights=[
            *weight_charts(tables.metrics, tables.totals),
            *step_charts(tables.totals),
            *dynamics_charts(tables.metrics),
        ],
        charts=[chart for chart in (loss_chart(tables.loss), validation_chart(tables.validation)) if chart],
        validated=tables.validation is not None,
        run=tables.run,
        splits=split_rows(tables),
        thumbnails={content_id: quote(path) for content_id, path in tables.thumbnails.items()},
        issues=tables.issues,
        skipped=tables.skipped.to_dict("records"),
        params=flat(tables.params),
        base=tables.base,
        base_digest=sha256(canonical_json(tables.base).encode()),
        data_digest=sha256(canonical_json(sorted(set(tables.sources.content_id))).encode()),
    )
    return page.replace('data-page=""', f'data-page="{sha256(page.encode())}"', 1)


def page_environment() -> Environment:
    """Templates that escape what they are given and refuse what they are not given."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"db": decibels, "digits": digits, "count": count, "signed": signed, "csp": csp_hash}
    environment.globals["zip"] = zip
    return environment


def read_part(name: str) -> str:
    """A file that becomes a part of the page."""
    return TEMPLATE.with_name(name).read_text()


def read_script(*names: str) -> str:
    """Scripts as one."""
    return '"use strict";\n' + "".join(read_part(name) for name in names)


def csp_hash(text: str) -> str:
    """The source expression by which a Content-Security-Policy lets one inline script or style pass."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def decibels(value: float | None) -> str:
    """A PSNR; equal pictures have no finite one."""
    return shown(value, PER_SAMPLE["psnr"])


def about(method: str, mixtures: Mapping[str, Mapping[str, float]]) -> str:
    """What a method is; `mixtures` is the parameter render.adapters."""
    if method.startswith("with_step_"):
        return f"the adapter after {count(int(method.removeprefix('with_step_')), 'step')}, at weight 1"
    if method.startswith("with_"):
        mixture = mixtures[method.removeprefix("with_")]
        return " and ".join(f"{folder} at weight {weight:g}" for folder, weight in sorted(mixture.items()))
    if method.startswith("adapter_"):
        return f"the adapter at weight {method.removeprefix('adapter_')}"
    if method.startswith("steered_"):
        return f"the adapter at weight {method.removeprefix('steered_')}, steered along the window's own tracks"
    if (run := steps_of(method)) is not None:
        return f"{run[1]} steps{' of ' + run[0] if run[0] else ''}, the adapter at its largest weight"
    return ABOUT.get(method, "")


def place(method: str, tables: Tables) -> int:
    """Where a method stands among the others."""
    order = ["truth", "truth_vae", "base", *adapters_of(tables.metrics)]
    order += sorted(method for method in set(tables.renders.method) if method.startswith("steered_"))
    order += [name for name in tables.renders.method.unique() if name.startswith("with_")]
    order += ["rife", "flow_warp", "blend", "blend_vae", "hold_first", "still"]
    run = steps_of(method)
    return order.index(method) if method in order else len(order) + (run[1] if run else 0)


def test_groups(tables: Tables) -> list[dict[str, Any]]:
    """The test samples by source: clips first, then image pairs, by name."""
    sources = {source["id"]: source for source in source_rows(tables)}
    columns = [metric.name for metric in score_columns(tables.samples)]
    scores = tables.samples.set_index(["pair", "method"])[columns].to_dict("index")
    renders = tables.renders.groupby("pair")
    groups = []
    rendered = tables.pairs["test"][tables.pairs["test"].pair.isin(set(tables.renders.pair))]
    for content_id, rows in rendered.groupby("content_id"):
        samples = [sample(row, renders.get_group(row.pair), scores, tables) for row in rows.itertuples()]
        groups.append({**sources[content_id], "samples": samples})
    return sorted(groups, key=lambda group: (group["kind"] != "video", group["names"]))


def sample(row: Any, renders: pd.DataFrame, scores: dict[Any, dict[str, float]], tables: Tables) -> dict[str, Any]:
    """One test window or image pair with its videos."""
    base = scores.get((row.pair, "base"), {}).get("psnr", math.nan)
    videos = []
    for render in sorted(renders.itertuples(), key=lambda render: place(render.method, tables)):
        score = scores.get((row.pair, render.method), {})
        adapter = render.method.startswith(ADAPTED)
        gain = score.get("psnr", math.nan) - base if adapter else math.nan
        link = quote(f"render/{render.video}")
        videos.append({"method": render.method, "adapter": adapter, "src": link, "gain": gain, **score})
    shot = row.start_shot.removeprefix(f"{row.content_id}-")
    measured = row.kind == "window"
    return {
        "id": row.pair,
        "title": f"Shot {shot}, frames {row.start_frame} to {row.end_frame}" if measured else "Image pair",
        "measured": measured,
        "num_frames": row.num_frames,
        "width": row.width,
        "height": row.height,
        "sheet": quote(f"render/sheets/{row.pair}.png"),
        "videos": videos,
    }


def source_rows(tables: Tables) -> list[dict[str, Any]]:
    """A row a content: the names it goes by, its caption, its facts, its split and what was cut from it."""
    captions = dict(zip(tables.captions.content_id, tables.captions.text, strict=True))
    pairs = {
        content_id: (split, len(rows))
        for split, table in tables.pairs.items()
        for content_id, rows in table.groupby("content_id")
    }
    found = []
    for content_id, rows in tables.sources.groupby("content_id"):
        first = rows.iloc[0]
        facts = f"{first.width}x{first.height}"
        if first.kind == "video":
            facts += f", {count(int(first.num_frames), 'frame')} at {first.fps:g}/s, {first.codec}"
        split, cut = pairs.get(content_id, ("unused", 0))
        found.append(
            {
                "id": content_id,
                "names": sorted(rows.name),
                "kind": first.kind,
                "caption": captions.get(content_id, ""),
                "facts": facts,
                "split": split,
                "cut": cut,
            }
        )
    return sorted(found, key=lambda source: source["names"])


def pseudo_windows(tables: Tables, split: str) -> dict[str, int]:
    """How many windows of a split have made middles, by method."""
    made = tables.pairs[split].query("pseudo != ''").pseudo
    return {str(method): int(number) for method, number in made.value_counts().sort_index().items()}


def pseudo_verdicts(tables: Tables) -> list[Verdict]:
    """What stands before all else where the adapter learned from made middles."""
    made = pseudo_windows(tables, "train")
    if not made:
        return []
    total = len(tables.pairs["train"])
    text = f"Pseudo middles: {sum(made.values())} of {count(total, 'training window')} are image pairs whose middles "
    return [Verdict("unclear", f"{text}were made by {' and '.join(made)}. The adapter learns what that method does.")]


def split_rows(tables: Tables) -> list[dict[str, Any]]:
    """A row a split, with its sources; `Not used` only when a source is in none."""
    sources = source_rows(tables)
    rows = []
    for split, label in SPLITS.items():
        own = [source for source in sources if source["split"] == split]
        made = pseudo_windows(tables, split) if split in tables.pairs else {}
        rows.append(
            {
                "name": split,
                "label": " ".join([label, *([f"({sum(made.values())} with pseudo middles)"] if made else [])]),
                "sources": own,
                "clips": sum(source["kind"] == "video" for source in own),
                "image_pairs": sum(source["kind"] == "image_pair" for source in own),
                "windows": sum(source["cut"] for source in own if source["kind"] == "video"),
                "captioned": sum(bool(source["caption"]) for source in own),
            }
        )
    return [row for row in rows if row["sources"] or row["name"] != "unused"]


def loss_chart(loss: pd.DataFrame) -> Chart | None:
    """The training loss: each step, and the mean around it."""
    points, size = thinned(list(zip(loss.step.astype(float), loss.loss.astype(float), strict=True)))
    every = "each step" if size == 1 else f"mean of {size} steps"
    return draw(
        "Training loss",
        f"Training loss over {count(len(loss), 'step')}.",
        "step",
        "loss",
        {("faint", every): points, ("strong", "running mean"): smoothed(points)},
    )


def validation_chart(validation: pd.DataFrame | None) -> Chart | None:
    """The validation loss: its first value is the base's, before any step."""
    if validation is None or validation.empty:
        return None
    points = list(zip(validation.step.astype(float), validation.validation_loss.astype(float), strict=True))
    first, last = points[0], points[-1]
    return draw(
        "Validation loss",
        f"Validation loss from {first[1]:.4f} at step {first[0]:g} to {last[1]:.4f} at step {last[0]:g}.",
        "step",
        "loss",
        {("level", "base"): [first, (last[0], first[1])], ("strong dots", "adapter"): points},
    )


def flat(section: dict[str, Any], path: str = "") -> list[tuple[str, str]]:
    """Parameters as `section.key` and their value as JSON."""
    rows: list[tuple[str, str]] = []
    for name, value in section.items():
        if isinstance(value, dict):
            rows += flat(value, f"{path}{name}.")
        else:
            rows.append((f"{path}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return rows
