"""The sweep: its grid, its table and its plot."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from framelora.commands.sweep import parse_axis
from framelora.console import UserError
from framelora.report.sweep import Trial, best_adapter, build_sweep, gain_chart, verdict


def trial(rank: str, rate: str, gain: float | None) -> Trial:
    """An experiment with one weight; without a gain it failed."""
    if gain is None:
        return Trial({"adapter.rank": rank, "train.learning_rate": rate}, None)
    metrics = {"psnr_adapter_1": 20.0 + gain, "ends_psnr_adapter_1": 30.0, "windows": 2}
    metrics |= {f"psnr_gain_adapter_1{end}": gain + by for end, by in (("", 0.0), ("_low", -0.1), ("_high", 0.1))}
    return Trial({"adapter.rank": rank, "train.learning_rate": rate}, metrics)


TRIALS = [trial("4", "1e-3", 0.1), trial("4", "5e-3", 0.3), trial("8", "1e-3", 0.2), trial("8", "5e-3", None)]


def test_an_axis_is_a_name_and_its_values() -> None:
    assert parse_axis("adapter.rank=4,8") == ("adapter.rank", ["4", "8"])


@pytest.mark.parametrize("text", ["adapter.rank", "=4", "adapter.rank=", "adapter.rank=4,,8"])
def test_another_text_is_no_axis(text: str) -> None:
    with pytest.raises(UserError, match="NAME=VALUE"):
        parse_axis(text)


def test_there_is_one_line_a_rank_along_the_learning_rates() -> None:
    chart = gain_chart(TRIALS)
    assert chart is not None
    assert {line.label: len(line.points) for line in chart.lines} == {"adapter.rank 4": 2, "adapter.rank 8": 1}
    assert chart.x_label == "train.learning_rate"
    assert [label for _, label in chart.x_ticks] == ["1e-3", "5e-3"]


def test_values_stand_at_even_distances_by_size_and_words_have_their_names() -> None:
    chart = gain_chart([trial("4", rate, 0.1) for rate in ("1e-3", "cosine", "1e-5", "0.0001")])
    assert chart is not None
    places, labels = zip(*chart.x_ticks, strict=True)
    assert labels == ("1e-5", "0.0001", "1e-3", "cosine")
    steps = [after - before for before, after in pairwise(places)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)
    assert [x for x, _ in chart.lines[0].points] == pytest.approx(places, abs=0.1)
    assert chart.right + 9 / 2 * len("cosine") < chart.width


@pytest.mark.parametrize(
    ("gain", "tone", "words"),
    [
        (
            0.3,
            "better",
            "train.learning_rate 5e-3, adapter_1, with +0.30 dB PSNR against the base (95 % interval +0.20",
        ),
        (0.05, "unclear", "no clear difference."),
        (-0.3, "worse", "worse than the base."),
        (None, "unclear", "No experiment was measured."),
    ],
)
def test_the_page_begins_with_the_best_experiment_and_whether_it_is_any_good(
    gain: float | None, tone: str, words: str
) -> None:
    found = verdict([trial("4", "1e-3", None), trial("4", "5e-3", gain)])
    assert found.tone == tone
    assert words in found.text
    assert found.text in build_sweep([trial("4", "1e-3", None), trial("4", "5e-3", gain)])


def test_the_table_begins_with_the_best_and_ends_with_what_failed() -> None:
    page = build_sweep(TRIALS)
    rows = re.findall(r'<tr><td class="number">(\d)</td><td class="number">([\de-]+)</td>.*?>([^<>]+)</td></tr>', page)
    assert rows == [
        ("4", "5e-3", "+0.300 (+0.200 to +0.400)"),
        ("8", "1e-3", "+0.200 (+0.100 to +0.300)"),
        ("4", "1e-3", "+0.100 (0.000 to +0.200)"),
        ("8", "5e-3", "failed"),
    ]


def test_the_best_of_several_weights_counts() -> None:
    metrics = {"ends_psnr_adapter_0.5": 1.0, "ends_psnr_adapter_1": 1.0}
    metrics |= {"psnr_gain_adapter_0.5": 0.4, "psnr_gain_adapter_1": 0.2}
    assert best_adapter(metrics) == "adapter_0.5"
    assert best_adapter({"ends_psnr_adapter_1": 1.0}) is None
