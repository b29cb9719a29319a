"""The report page: pure, escaped, plain about who wins, and whole when parts of a run are missing."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from report_tables import IMAGES, WINDOW, metrics, tables

from framelora.report.chart import draw, smoothed, thinned, ticks
from framelora.report.page import build_page, csp_hash
from framelora.report.run import page_digest, read_commit, read_costs, run_script
from framelora.report.scores import dynamics_charts, step_charts, steps_of
from framelora.report.verdict import signed, verdicts

MINUS = "\N{MINUS SIGN}"
EVIL = "<script>alert(1)</script>\"'{{ 7 * 7 }}"


def without_markup(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<(script|style)>.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL))


def test_equal_tables_give_equal_bytes() -> None:
    assert build_page(tables()) == build_page(tables())


def test_page_names_no_place_and_no_time() -> None:
    page = build_page(tables())
    assert str(Path.cwd()) not in page
    assert str(Path.home()) + "/" not in page
    assert not re.search(r"\b20\d\d-\d\d-\d\d", page)


def test_page_carries_a_digest_that_changes_with_it() -> None:
    one, other = (page_digest(build_page(tables(metrics=metrics(base=base)))) for base in (20.0, 19.0))
    assert re.fullmatch("[0-9a-f]{64}", one)
    assert one != other


def test_text_of_users_stays_text() -> None:
    given = tables()
    evil = dataclasses.replace(
        given,
        params={"report": {"title": EVIL}, EVIL: EVIL},
        captions=given.captions.assign(text=EVIL),
        sources=given.sources.assign(name=EVIL, codec=EVIL),
        issues=[dict.fromkeys(("severity", "rule", "where", "message", "fix", "picture"), EVIL)],
        skipped=given.skipped.assign(path=EVIL, reason=EVIL),
        base={EVIL: {"bytes": 1, "sha256": EVIL}},
        run=given.run | {"cell": EVIL, "versions": {EVIL: EVIL}},
    )
    plain, page = build_page(given), build_page(evil)
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;{{ 7 * 7 }}" in page
    scripts = re.findall("<script.*?</script>", plain, re.DOTALL)
    assert re.findall("<script.*?</script>", page, re.DOTALL) == scripts
    assert len(scripts) == 2


def test_the_policy_lets_only_the_pages_own_script_and_style_pass() -> None:
    page = build_page(tables())
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none'; ")
    assert "unsafe" not in policy[1]
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert f"'{csp_hash(text)}'" in policy[1]
    assert not re.search(r"""\s(style|on\w+)=""", page)
    assert not re.search(r"https?://", page)


def test_headings_go_down_one_level_at_a_time_and_ids_are_unique() -> None:
    page = build_page(tables())
    levels = [int(level) for level in re.findall("<h([1-6])", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'aria-(?:labelledby|describedby)="([^"]*)"', page)) <= set(ids)


def test_videos_and_sheets_are_relative_links_in_the_order_of_the_methods() -> None:
    page = build_page(tables())
    methods = ["truth", "truth_vae", "base", "adapter_1", "blend", "hold_first"]
    links = re.findall('data-src="([^"]*)"', page)
    assert links[:6] == [f"render/videos/{WINDOW}/{method}.mp4" for method in methods]
    assert links[6:] == [f"render/videos/{IMAGES}/{method}.mp4" for method in methods if method != "truth_vae"]
    assert f'href="render/sheets/{WINDOW}.png"' in page
    assert page.count("Two pictures without frames between them") == 1


@pytest.mark.parametrize(
    ("adapter", "tone", "gain", "interval", "verdict"),
    [
        (20.3, "better", "+0.30", "+0.20 to +0.40", "better than the base."),
        (19.5, "worse", "-0.50", "-0.60 to -0.40", "worse than the base."),
        (20.05, "unclear", "+0.05", "-0.05 to +0.15", "no clear difference."),
    ],
)
def test_verdict_against_the_base(adapter: float, tone: str, gain: str, interval: str, verdict: str) -> None:
    (found,) = verdicts(metrics(adapters={"adapter_1": adapter}), clips=2)
    where = "against the base on 3 windows of 2 clips"
    assert found.tone == tone
    assert found.text.replace(MINUS, "-") == f"adapter_1: {gain} dB PSNR {where} (95 % interval {interval}): {verdict}"


def test_a_gain_near_zero_is_told_with_enough_decimals() -> None:
    near = metrics(psnr_gain_adapter_1=0.004, psnr_gain_adapter_1_low=0.001, psnr_gain_adapter_1_high=0.007)
    assert "+0.0040 dB PSNR against the base" in verdicts(near, 2)[0].text
    assert "+0.0010 to +0.0070" in verdicts(near, 2)[0].text


def test_windows_of_one_clip_are_too_little_for_a_verdict() -> None:
    (verdict,) = verdicts(metrics(), clips=1)
    assert verdict.tone == "unclear"
    assert verdict.text.endswith("on 3 windows of 1 clip: one clip is too little to tell.")


def test_who_loses_to_the_linear_blend_is_named() -> None:
    losing = verdicts(metrics(adapters={"adapter_0.5": 25.0, "adapter_1": 21.0}, blend=24.0), 2)
    assert [verdict.text for verdict in losing[2:]] == [
        "The base (20.00 dB) and adapter_1 (21.00 dB) lose to the linear blend of the two end frames (24.00 dB PSNR)."
    ]
    only_base = verdicts(metrics(adapters={"adapter_1": 25.0}, blend=24.0), 2)
    assert only_base[1].text.startswith("The base (20.00 dB) loses to the linear blend")
    all_three = verdicts(metrics(adapters={"adapter_0.5": 20.0, "adapter_1": 21.0}, blend=24.0), 2)
    assert all_three[2].text.startswith("The base (20.00 dB), adapter_0.5 (20.00 dB) and adapter_1 (21.00 dB) lose ")


def test_a_vae_below_the_blend_is_told() -> None:
    assert "the VAE limits these scores" in verdicts(metrics(blend=41.0), 2)[-1].text


def test_adapters_come_by_weight() -> None:
    weights = {"adapter_1": 20.0, "adapter_0.5": 20.0, "adapter_-1": 20.0, "adapter_10": 20.0}
    names = [verdict.text.partition(":")[0] for verdict in verdicts(metrics(adapters=weights), 2)]
    assert names == ["adapter_-1", "adapter_0.5", "adapter_1", "adapter_10"]


@pytest.mark.parametrize(("value", "text"), [(0.5, "+0.50"), (-0.5, f"{MINUS}0.50"), (-0.001, "0.00"), (0.0, "0.00")])
def test_signed(value: float, text: str) -> None:
    assert signed(value, 2) == text


def test_no_test_windows() -> None:
    given = tables()
    none = dataclasses.replace(
        given,
        metrics={"windows": 0, "image_pairs": 0},
        methods=given.methods[:0],
        samples=given.samples[:0],
        totals=given.totals[:0],
        extremes=given.extremes[:0],
        renders=given.renders[:0],
        pairs=given.pairs | {"test": given.pairs["test"][:0]},
    )
    text = without_markup(build_page(none))
    assert "Not measured: there are no test windows." in text
    assert "There are no test samples" in text


def test_only_image_pairs_to_test() -> None:
    given = tables()
    scores = {"windows": 0, "image_pairs": 1, "ends_psnr_base": 30.0, "ends_psnr_adapter_1": 30.0}
    test = given.pairs["test"].query("kind == 'image_pair'")
    rest = {"samples": given.samples.query("kind == 'image_pair'"), "extremes": given.extremes[:0]}
    page = build_page(dataclasses.replace(given, metrics=scores, pairs=given.pairs | {"test": test}, **rest))
    assert "Not measured: there are no test windows; 1 image pair rendered, which have no middles" in page
    assert page.count("<canvas") == 5  # a video takes the place of each that comes near the window
    assert page.count("<video") == 2  # of the viewer


def test_no_validation_split() -> None:
    run = {name: value for name, value in tables().run.items() if not name.startswith("validation")}
    page = build_page(tables(validation=None, run=run))
    assert "No validation split, so no validation loss." in page
    assert page.count("<svg") == 1
    assert "validation.tsv" not in page


def test_no_captions_no_issues_no_skipped_files() -> None:
    given = tables()
    page = build_page(tables(captions=given.captions[:0], issues=[], skipped=given.skipped[:0]))
    assert page.count("No caption.") == 2
    assert "None: every source was decoded." in page


def test_two_names_of_one_content_are_one_source() -> None:
    given = tables()
    twice = given.sources.assign(content_id=given.sources.content_id.replace("c0ffee0000000004", "c0ffee0000000003"))
    assert "clips/short.mp4, clips/train me.mp4" in build_page(tables(sources=twice))


def test_sources_without_a_window_are_listed_as_not_used() -> None:
    assert "Not used: 1 source" in build_page(tables())


def test_charts_are_well_formed_svg() -> None:
    charts = re.findall("<svg.*?</svg>", build_page(tables()), re.DOTALL)
    assert len(charts) == 2
    for chart in charts:
        assert ElementTree.fromstring(chart).get("aria-label")


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 60.0), (0.6342, 0.6421), (-3.0, 1e6), (5.0, 5.0), (0.0, 0.0), (0.3, 0.3)]
)
def test_ticks_enclose_their_range_in_even_steps(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert marks[0] <= low <= high <= marks[-1]
    assert 4 <= len(marks) <= 9
    steps = {round((after - before) / (marks[1] - marks[0]), 6) for before, after in pairwise(marks)}
    assert steps == {1.0}


def test_long_curves_are_thinned_and_infinite_points_left_out() -> None:
    points = [(float(step), 1.0) for step in range(10_001)]
    thin, each = thinned(points)
    assert len(thin) <= 400
    assert each == 26
    assert {y for _, y in smoothed(thin)} == {1.0}
    chart = draw("t", "s", "x", "y", {("strong", "a"): [(0.0, 1.0), (1.0, float("nan")), (2.0, 2.0)]})
    assert chart
    assert len(chart.lines[0].points) == 2
    assert draw("t", "s", "x", "y", {("strong", "a"): []}) is None


def test_rounding_is_no_slope_and_long_numbers_have_room() -> None:
    flat = draw("t", "s", "x", "y", {("line0", "a"): [(0.0, 0.13996), (1.0, 0.139959)]})
    assert flat
    (_, start), (_, end) = flat.lines[0].points
    assert abs(end - start) < 0.05 * (flat.bottom - flat.top)
    assert flat.left - 7 > 7 * max(len(label) for _, label in flat.y_ticks)
    steep = draw("t", "s", "x", "y", {("line0", "a"): [(0.0, 0.14), (1.0, 0.13)]})
    assert steep
    (_, start), (_, end) = steep.lines[0].points
    assert abs(end - start) > 0.5 * (steep.bottom - steep.top)


def record(stage: str, kind: str, seconds: float, computed: int = 1) -> str:
    counts = {"cells": 3, "computed": computed, "reused": 3 - computed}
    return json.dumps({"stage": stage, "kind": kind, "seconds": seconds, "peak_memory_mib": 100, **counts})


def test_costs_are_those_of_the_last_run_of_each_stage(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    lines = [
        record("encode", "encode/ends", 9.0, 3),
        record("encode", "encode/older", 9.0, 3),
        record("train", "train/adapter", 5.0),
        record("encode", "encode/ends", 1.0, 0),
        record("encode", "encode/latents", 1.5, 1),
        '{"stage": "enc',
    ]
    journal.write_text("\n".join(lines))
    encode, train = read_costs(journal)
    assert (encode["stage"], encode["seconds"]) == ("encode", 1.5)
    assert [(kind["kind"], kind["computed"]) for kind in encode["kinds"]] == [("encode/ends", 0), ("encode/latents", 1)]
    assert train["seconds"] == 5.0
    assert read_costs(tmp_path / "missing.jsonl") == []


def test_run_script_sets_one_json_value() -> None:
    name, _, value = run_script("ab", {"id": "</script>", "dirty": False}, []).partition(" = ")
    assert name == "window.framelora"
    assert json.loads(value.removesuffix(";\n")) == {
        "page": "ab",
        "commit": {"id": "</script>", "dirty": False},
        "costs": [],
    }


def test_commit_is_dirty_by_edits_and_not_by_what_a_run_writes(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "core.hooksPath=/dev/null"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert read_commit(tmp_path) is None
    git("init")
    for name in ("params.yaml", "dvc.lock", "reports/metrics.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "dvc.lock").write_text("2")
    (tmp_path / "reports/metrics.json").write_text("2")
    clean = read_commit(tmp_path)
    assert clean
    assert len(clean["id"]) == 40
    assert not clean["dirty"]
    (tmp_path / "params.yaml").write_text("2")
    assert read_commit(tmp_path) == {"id": clean["id"], "dirty": True}


def test_what_was_not_measured_says_why_in_the_table() -> None:
    page = build_page(tables())
    assert re.search(
        r'<tfoot>\s*<tr><th scope="row">FID</th><td colspan="3">needs weights: score.fid_weights</td>', page
    )


def test_an_issue_says_what_to_do() -> None:
    text = without_markup(build_page(tables()))
    assert re.search("pairs/hands info no-caption has no caption write one", text)


def test_gains_and_intervals_stand_below_the_means_of_every_method_but_the_base() -> None:
    page = build_page(tables())
    about = '<span class="sub about">[^<]*</span>'
    row = rf'<th scope="row">(\w+){about}</th>\s*(.*?)</tr>'
    rows = re.findall(row, page.partition('id="samples"')[0], re.DOTALL)
    found = {method: re.findall(r'<span class="sub">([^<]+)</span>', cells) for method, cells in rows}
    assert found["base"] == []
    # The ends equal the truth: how much better that is than the base has no number.
    assert found["adapter_1"] == ["+0.50 (+0.25 to +0.75)", "+0.500 (+0.250 to +0.750)"]


def test_the_best_and_worst_windows_link_to_their_samples() -> None:
    page = build_page(tables())
    assert f'<a href="#{WINDOW}" data-compare="{WINDOW}">clips/wave.mp4: Shot 000, frames 0 to 11</a>' in page


def test_thumbnails_are_shown_for_the_sources_that_have_one() -> None:
    page = build_page(tables())
    assert page.count('class="thumbnail"') == 1
    assert f'src="thumbnails/{WINDOW[:16]}.jpg" loading="lazy"' in page


def test_an_issue_stands_beside_a_picture_of_what_it_is_about() -> None:
    issues = [
        dict.fromkeys(("severity", "rule", "where", "message", "fix"), "x") | {"picture": name}
        for name in ("a.jpg", "")
    ]
    page = build_page(tables(thumbnails={}, issues=issues))
    assert page.count('class="thumbnail"') == 1
    assert 'src="captions/a.jpg"' in page


def test_an_adapter_that_changes_nothing_is_told_whatever_the_number_of_clips() -> None:
    zero = metrics(**{f"psnr_gain_adapter_1{end}": 0.0 for end in ("", "_low", "_high")})
    for clips in (1, 3):
        assert verdicts(zero, clips)[0].text.endswith("no improvement, the adapter leaves the base as it is.")


def test_quality_is_plotted_against_steps_a_line_a_sampler() -> None:
    given = tables()
    scores = {"steps_euler_8": 21.0, "steps_euler_2": 19.0, "steps_dpm++_2": 20.0, "steps_dpm++_8": 22.5}
    scores["steps_4"] = 18.0
    rows = [{"metric": "psnr", "method": method, "mean": mean} for method, mean in scores.items()]
    totals = pd.concat([given.totals, pd.DataFrame(rows)], ignore_index=True)
    (chart,) = step_charts(totals)
    assert chart.title == "PSNR by steps"
    assert chart.summary.endswith("dpm++ 2: 20.00, 8: 22.50; euler 2: 19.00, 8: 21.00; steps 4: 18.00")
    lines = {line.label: line.points for line in chart.lines}
    assert list(lines) == ["dpm++", "euler", "steps"]
    (x_low, y_low), (x_high, y_high) = lines["euler"]
    assert x_low < x_high and y_low > y_high  # more steps to the right, and a higher score further up
    assert step_charts(given.totals) == []
    assert (steps_of("steps_dpm++_20"), steps_of("steps_4"), steps_of("adapter_1")) == (("dpm++", 20), ("", 4), None)
    assert "PSNR by steps" in build_page(dataclasses.replace(given, totals=totals))


def test_made_middles_are_told_at_the_head_and_in_the_table_of_data() -> None:
    given = tables()
    assert "seudo" not in without_markup(build_page(given))
    given.pairs["train"] = given.pairs["train"].assign(pseudo="flow")
    page = without_markup(build_page(given))
    told = "Pseudo middles: 1 of 1 training window are image pairs whose middles were made by flow."
    assert told in page
    assert page.index(told) < page.index("against the base")
    assert "Training (1 with pseudo middles)" in page


def swept(errors: dict[str, float], moved: dict[str, float]) -> dict[str, float]:
    """Metrics of weights with their warp error and the share of motion that is left; the base's error is 4."""
    found: dict[str, float] = metrics(adapters=dict.fromkeys(errors, 20.0))
    found |= {"warp_error_base": 4.0, "flow_magnitude_base": 1.0}
    for name, error in errors.items():
        found |= {f"warp_error_{name}": error, f"dynamics_{name}": moved[name]}
        found |= {
            f"warp_error_gain_{name}{end}": 4.0 - error + by for end, by in (("", 0), ("_low", -0.1), ("_high", 0.1))
        }
    return found


@pytest.mark.parametrize(
    ("errors", "moved", "tone", "part"),
    [
        ((3.8, 3.5, 2.0), (0.95, 0.81, 0.3), "better", "Steadier at weight 0.15: warp error 3.50 levels against the "),
        (
            (3.95, 3.5, 2.0),
            (0.95, 0.79, 0.3),
            "unclear",
            "Steadier at weight 0.05: warp error 3.95 levels against the ",
        ),
        ((4.1, 3.5, 2.0), (0.95, 0.79, 0.3), "worse", "No rendered weight is steadier: none has less warp error than "),
    ],
)
def test_the_steadiest_weight_that_still_moves_is_named_or_that_there_is_none(
    errors: tuple[float, ...], moved: tuple[float, ...], tone: str, part: str
) -> None:
    names = ("adapter_0.05", "adapter_0.15", "adapter_1")
    given = swept(dict(zip(names, errors, strict=True)), dict(zip(names, moved, strict=True)))
    found = [verdict for verdict in verdicts(given, 2) if "steadier" in verdict.text.lower()]
    assert [verdict.tone for verdict in found] == [tone]
    assert found[0].text.startswith(part)


def test_warp_error_is_drawn_against_motion_from_the_base_through_the_weights() -> None:
    (chart,) = dynamics_charts(swept({"adapter_0.5": 3.0, "adapter_1": 2.0}, {"adapter_0.5": 0.8, "adapter_1": 0.2}))
    assert chart.summary.endswith("base 4.00 at 100 %, adapter_0.5 3.00 at 80 %, adapter_1 2.00 at 20 %")
    (line,) = chart.lines
    across, down = zip(*line.points, strict=True)
    assert list(across) == sorted(across, reverse=True)
    assert list(down) == sorted(down)
    assert dynamics_charts(metrics()) == []
    # The truth, and a clip that stands still: perfectly steady, which is why motion stands beside it.
    ends = {"warp_error_truth": 2.5, "dynamics_truth": 1.1, "warp_error_still": 0.0, "dynamics_still": 0.0}
    alone, chart = dynamics_charts(swept({"adapter_1": 2.0}, {"adapter_1": 0.2}) | ends)
    assert len(alone.lines) == 1  # where they lie far apart, the weights would be a dot beside them
    assert chart.summary.endswith("adapter_1 2.00 at 20 %, truth 2.50 at 110 %, still 0.00 at 0 %")
    assert [line.label for line in chart.lines] == [
        "base, then rising weights", "the true clip", "a clip that stands still",
    ]  # fmt: skip
    assert [len(line.points) for line in chart.lines] == [2, 1, 1]


def test_adapters_that_are_rendered_together_are_told_by_folders_and_weights() -> None:
    given = tables()

    def renamed(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(method=table.method.replace("hold_first", "with_both"))

    changed = {name: renamed(getattr(given, name)) for name in ("methods", "samples", "totals", "renders")}
    mixture = {"both": {"models/start/style": 1.0, "models/adapter": 0.15}}
    page = build_page(dataclasses.replace(given, params=given.params | {"render": {"adapters": mixture}}, **changed))
    assert "models/adapter at weight 0.15 and models/start/style at weight 1" in page
    row = re.search(r'<tr class="adapter"><th scope="row">with_both<', page)
    assert row
    shown = re.findall('<span class="name">([^<]+)</span>', page)[:6]
    assert shown == ["truth", "truth_vae", "base", "adapter_1", "with_both", "blend"]
