"""The page that sets revisions side by side: who is better, what changed, and what is said of a run that stopped."""

from __future__ import annotations

import re
from dataclasses import replace

from report_tables import COMPARED as PAIRS
from report_tables import FRAMES, revision, stopped

from framelora.report.compare import Revision, build_comparison, changed_params, changed_sources, statements


def build(*revisions: Revision) -> str:
    return build_comparison(revisions, bootstrap=100, seed=0)


def said(*revisions: Revision) -> list[tuple[str, str]]:
    return statements(revisions, bootstrap=100, seed=0)


def test_a_run_that_learned_nothing_and_a_better_one_are_told_apart() -> None:
    zero, learned, verdict = said(revision("zero"), revision("learned", 0.5))
    assert zero[0] == "unclear" and "no improvement, the adapter leaves the base as it is" in zero[1]
    assert learned[0] == "better" and "better than the base" in learned[1]
    assert verdict[0] == "better"
    assert verdict[1].startswith("adapter_1 of learned: +0.50 dB PSNR against zero on 8 shared windows (95 % interval")
    assert verdict[1].endswith("learned is better.")
    assert said(revision("learned", 0.5), revision("zero"))[-1][1].endswith("learned is better.")
    assert said(revision("one", 0.5), revision("other", 0.5))[-1][1].endswith("no difference.")


def test_two_runs_on_windows_of_one_clip_are_too_little_for_a_verdict() -> None:
    runs = [revision("one"), revision("other", 0.5)]
    few = [replace(run, samples=run.samples[run.samples.pair.str[:16] == PAIRS[0][:16]]) for run in runs]
    tone, text = said(*few)[-1]
    assert tone == "unclear"
    assert text.endswith("against one on 2 shared windows: one clip is too little to tell.")


def test_a_run_that_stopped_says_why_and_has_no_scores() -> None:
    first, second = said(revision("good", 0.5), stopped("workspace"))
    assert first[0] == "better"
    assert second == ("worse", "workspace: the training stopped, so there is no adapter: the loss is nan at step 7.")
    assert "the loss is nan at step 7" in build(revision("good", 0.5), stopped("workspace"))


def test_only_what_differs_is_listed() -> None:
    one, other = revision("one", 0.25), revision("other", 0.5, sources={PAIRS[2][:16]: "clips/b.mp4"})
    assert changed_params([one, other]) == [("train.learning_rate", ["0.25", "0.5"])]
    assert changed_sources([one, other]) == [
        ("clips/a.mp4", ["there", "\N{EN DASH}"]),
        ("clips/b.mp4", ["\N{EN DASH}", "there"]),
    ]


def test_each_shared_sample_is_one_player_with_the_truth_once() -> None:
    fewer = revision("fewer", 0.5)
    videos = {key: path for key, path in fewer.videos.items() if key[0] != PAIRS[0]}
    page = build(revision("one"), revision("fewer", 0.5, videos=videos))
    players = page.split('class="card group sample"')[1:]
    assert len(players) == len(PAIRS) - 1
    methods = [source.split("/")[1::2] for source in re.findall(r'data-src="([^"]+)"', players[0])]
    assert methods == [
        *(["one", "truth.mp4"], ["one", "base.mp4"], ["one", "adapter_1.mp4"]),
        *(["fewer", "base.mp4"], ["fewer", "adapter_1.mp4"]),
    ]
    assert f'max="{FRAMES}"' in players[0]


def test_names_of_users_stay_text() -> None:
    evil = "<script>alert(1)</script>"
    page = build(revision(evil, params={evil: evil}), revision("other", sources={PAIRS[0][:16]: evil}))
    assert evil not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
