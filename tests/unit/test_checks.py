"""The rules: each finds its case and leaves the others alone; severities can be changed; the texts that models get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from framelora.console import UserError
from framelora.dataset.captions import Caption, Gathered
from framelora.dataset.checks import (
    check_captions,
    check_copies,
    check_names,
    check_source,
    check_text,
)
from framelora.dataset.prompts import full_text, tag_variants
from framelora.dataset.rules import ORDER, RULES, Finding, judge
from framelora.dataset.sources import Source
from framelora.dataset.tokens import WORDS, text_length
from framelora.families.base import EncodeUnit
from framelora.media.buckets import allowed_sizes, budget_buckets
from framelora.media.probe import Facts
from framelora.params import load_params
from stages.encode import label

PARAMS = load_params(REPOSITORY / "params.yaml")
CLIP = Source("clips/wave.mp4", "video", "clips/wave.mp4")
SOUND = Facts(320, 180, 72, 24.0, 3.0, "h264", 0, "yuv420p")


def rules_of(text: str, **changes: Any) -> set[str]:
    params = PARAMS.captions.model_copy(update={"min_tokens": 3, "max_tokens": 20} | changes)
    return {finding.rule for finding in check_text(Caption(text, "a.txt"), [CLIP.name], params, WORDS)}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("todo", "placeholder"),
        ("<caption>", "placeholder"),
        ("Lorem ipsum dolor sit amet", "placeholder"),
        ("wave", "placeholder"),
        ("...", "placeholder"),
        ("a hand", "short-caption"),
        ("a hand waves " * 10, "long-caption"),
        ("a hand\x07 waves slowly", "control-characters"),
        ("a hand \u202ewaves slowly", "control-characters"),
        ("a hand waves \ufffd slowly", "mixed-encodings"),
        ("ein MÃ¤dchen winkt langsam", "mixed-encodings"),
        ("itâ€™s a hand that waves", "mixed-encodings"),
    ],
)
def test_a_caption_breaks_its_rule_alone(text: str, rule: str) -> None:
    assert rules_of(text) == {rule}


@pytest.mark.parametrize(
    "text", ["A hand waves slowly.", "Ein Mädchen winkt: «Hallo»", "一只手在挥动", "so 👩‍👧 wave now"]
)
def test_a_good_caption_breaks_none(text: str) -> None:
    assert rules_of(text) == set()


def test_tokens_of_the_base_are_counted_where_it_has_a_tokenizer() -> None:
    """Beside transformers' own count; Framer has no tokenizer, so its captions are counted in words."""
    base = REPOSITORY / "bases/tiny-easyanimate"
    length = text_length(base)
    assert length.unit == "tokens"
    tokenizer = AutoTokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
    for text in ("a red disc moves up", "Zwölf Boxkämpfer", "一只手在挥动", "a " * 500, ""):
        assert length.count(text) == len(tokenizer(text).input_ids)
    assert text_length(REPOSITORY / "bases/tiny-framer") is WORDS
    assert text_length(Path("nowhere")) is WORDS


def test_an_older_tokenizer_is_read_too_and_a_broken_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "hand"]
    (tmp_path / "tokenizer/vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer/tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert text_length(tmp_path).count("a hand waves") == 5
    (tmp_path / "tokenizer/tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer can't be loaded \(.*\): restore its files"):
        text_length(tmp_path)


def test_the_limits_hold_for_what_models_get() -> None:
    """Too long counts the trigger word and what stands around a caption; too short does not."""
    assert rules_of("a hand waves", max_tokens=4, suffix=", film, grain") == {"long-caption"}
    assert rules_of("a hand", min_tokens=3, prefix="film of ") == {"short-caption"}
    params = PARAMS.captions.model_copy(update={"max_tokens": 3})
    (finding,) = check_text(Caption("a hand waves slowly", "a.txt"), [CLIP.name], params, WORDS)
    assert finding.message == "4 words; captions.max_tokens is 3"


def test_captions_that_are_alike_but_for_numbers_are_counted() -> None:
    sources = [Source(f"{number}.mp4", "video", f"{number}.mp4") for number in range(6)]
    ids = {source.name: source.name for source in sources}
    texts = {f"{number}.mp4": Caption(f"Take {number} of the  scene", f"{number}.txt") for number in range(4)}
    gathered = Gathered({**texts, "4.mp4": Caption("", "metadata.csv line 2")})
    found = list(check_captions(gathered, sources, ids, PARAMS.captions, WORDS))
    assert {(finding.rule, finding.where) for finding in found} == {
        ("repeated-caption", "0.txt"),
        ("empty-caption", "metadata.csv line 2"),
        ("no-caption", "5.mp4"),
    }


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({}, None),
        ({"duration": 0.5}, "too-short"),
        ({"duration": 60.0}, "too-long"),
        ({"fps": 5.0}, "low-frame-rate"),
        ({"width": 32, "height": 18}, "too-small"),
        ({"transfer": "hlg"}, "hdr"),
        ({"interlaced": True}, "interlaced"),
        ({"pixel_format": "yuva420p"}, "alpha"),
    ],
)
def test_a_clip_breaks_its_rule_alone(changes: dict[str, Any], rule: str | None) -> None:
    facts = {CLIP.path: Facts(**{**vars(SOUND), **changes})}
    pair = PARAMS.pair.model_copy(update={"num_frames": 3})
    found = [finding.rule for finding in check_source(CLIP, facts, PARAMS.captions, PARAMS.extract, pair)]
    assert found == ([rule] if rule else [])


def test_a_clip_without_a_window_is_told_before_it_is_decoded() -> None:
    """SOUND lasts 3 s at 24 frames/s; frames are kept at 8 a second."""
    facts, extract = {CLIP.path: SOUND}, PARAMS.extract.model_copy(update={"fps": 8.0})
    for num_frames, short_shots, told in ((24, "drop", False), (25, "drop", True), (25, "still", False)):
        pair = PARAMS.pair.model_copy(update={"num_frames": num_frames, "short_shots": short_shots})
        found = list(check_source(CLIP, facts, PARAMS.captions, extract, pair))
        assert [finding.rule for finding in found] == (["no-window"] if told else [])
    pair = PARAMS.pair.model_copy(update={"num_frames": 25})
    (finding,) = check_source(CLIP, facts, PARAMS.captions, extract, pair)
    assert finding.message == "lasts 3.00 s, 24 frames at 8 frames/s; pair.num_frames is 25"


def test_other_files_and_copies_are_named() -> None:
    found = list(check_names(["a.mp4", "a.TXT", "x/metadata.csv", "old.FLV", "pic.gif", "LICENSE.md"]))
    assert [(finding.rule, finding.where) for finding in found] == [
        ("unsupported-type", "old.FLV"),
        ("unsupported-type", "pic.gif"),
        ("other-file", "LICENSE.md"),
    ]
    names = [Source(name, "video", name) for name in ("a.mp4", "b.mp4", "c.mp4")]
    (copy,) = check_copies(names, {"a.mp4": "1", "b.mp4": "2", "c.mp4": "1"})
    assert (copy.rule, copy.where, copy.message) == ("same-content", "c.mp4", "has the same content as a.mp4")


def test_severities_come_from_the_table_and_can_be_changed() -> None:
    findings = [Finding("no-caption", "a", ""), Finding("too-short", "b", ""), Finding("unreadable", "c", "")]
    assert [(issue.severity, issue.where) for issue in judge(findings, {})] == [
        ("error", "c"), ("warning", "b"), ("info", "a")
    ]  # fmt: skip
    changed = judge(findings * 2, {"no-caption": "error", "unreadable": "off"})
    assert [(issue.severity, issue.where) for issue in changed] == [("error", "a"), ("warning", "b")]
    assert all(issue.fix == RULES[issue.rule].fix for issue in changed)


def test_every_rule_says_what_it_finds_and_how_to_mend_it() -> None:
    code = "".join(path.read_text() for path in Path(REPOSITORY, "framelora/dataset").glob("*.py"))
    for rule in RULES.values():
        assert rule.severity in ORDER
        assert rule.about
        assert rule.fix
        assert code.count(f'"{rule.name}"') > 1, f"nothing finds {rule.name}"


# texts


def test_trigger_word_prefix_and_suffix_are_put_around_a_caption() -> None:
    around = {"trigger_word": "sks", "prefix": "a film of ", "suffix": ", 35 mm"}
    assert full_text("a hand", **around) == "sks, a film of a hand, 35 mm"
    assert full_text("a sks hand", **around) == "a film of a sks hand, 35 mm"
    assert full_text("", **around) == "sks"
    assert full_text("a hand", trigger_word="", prefix="", suffix="") == "a hand"


TAGS = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=6)


@given(TAGS, st.integers(1, 5), st.integers(0, 3), st.integers(0, 5))
def test_variants_are_orders_of_the_same_tags(tags: list[str], count: int, keep: int, seed: int) -> None:
    text = ", ".join(tags)
    variants = tag_variants(text, count=count, keep=keep, seed=seed)
    assert variants == tag_variants(text, count=count, keep=keep, seed=seed)
    assert (len(variants), variants[0]) == (count, text)
    for variant in variants:
        assert variant.split(", ")[:keep] == tags[:keep]
        assert sorted(variant.split(", ")) == sorted(tags)


def test_orders_differ_by_seed() -> None:
    text = ", ".join("abcdefghij")
    assert len({variant for seed in range(3) for variant in tag_variants(text, count=4, keep=1, seed=seed)}) > 8


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", "text of c0ffee"),
        ("a hand\n waves", "text of c0ffee ('a hand waves')"),
        ("一只手" * 30, f"text of c0ffee ('{'一只手' * 19}...')"),
        ("x" * 60, f"text of c0ffee ('{'x' * 60}')"),
    ],
)
def test_messages_of_encode_tell_a_caption_by_its_beginning(text: str, shown: str) -> None:
    assert label(EncodeUnit("text", "c0ffee", text=text)) == shown


# buckets of a budget


@given(st.integers(1024, 600_000), st.sampled_from([16, 32, 64]), st.floats(1, 4))
def test_a_budget_gives_the_largest_sizes_that_fit(pixels: int, multiple: int, max_aspect: float) -> None:
    sizes = [tuple(map(int, size.split("x"))) for size in budget_buckets(pixels, multiple, max_aspect)]
    assert bool(sizes) == (pixels >= multiple**2)
    for width, height in sizes:
        assert width % multiple == height % multiple == 0
        assert width * height <= pixels
        assert max(width, height) <= min(width, height) * max_aspect
        wider = width + multiple
        assert wider * height > pixels or wider > height * max_aspect


def test_budgets_of_the_families() -> None:
    budget = {"pixels": None, "tokens": 1024, "multiple": 16, "max_aspect": 2.0}
    extract = PARAMS.extract.model_validate(PARAMS.extract.model_dump() | {"buckets": [], "bucket_budget": budget})
    sizes = allowed_sizes(extract)
    assert sizes[0] == "512x512"  # 32 x 32 tokens
    assert "672x384" in sizes
    assert allowed_sizes(PARAMS.extract) == PARAMS.extract.buckets
