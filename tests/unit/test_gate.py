"""The gate on real files: what can't be read is named and stops it, and nothing is left out without a line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from broken_media import clip, ffmpeg
from conftest import REPOSITORY, unprivileged
from PIL import Image
from ruamel.yaml import YAML

from framelora.cells.store import Store
from framelora.console import UserError
from framelora.dataset import gate
from framelora.dataset.metadata import FILES
from framelora.dataset.rules import LEAVE_OUT, RULES
from framelora.dataset.tokens import WORDS
from framelora.files import read_table
from framelora.params import load_params
from stages import captions, extract

PARAMS = load_params(REPOSITORY / "params.yaml")


def pair(root: Path, name: str, colour: str = "white") -> None:
    """An image pair whose halves differ from each other, and from those of another colour."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    for half, size in (("start", 4), ("end", 8)):
        picture = Image.new("RGB", (96, 64), colour)
        picture.paste("black", (0, 0, size, size))
        picture.save(root / f"{name}_{half}.png")


def inspect(root: Path, store: Path, **changes: dict[str, Any]) -> gate.Inputs:
    """The gate's verdict under the demo's parameters; `changes` are values of their sections."""
    parts = [
        getattr(PARAMS, section).model_copy(update=changes.get(section, {}))
        for section in ("data", "captions", "extract", "pair")
    ]
    return gate.inspect(root, Store(store), *parts, WORDS)


def found(inputs: gate.Inputs) -> dict[str, tuple[str, str]]:
    """Rule and message of the errors and warnings, by place."""
    return {issue.where: (issue.rule, issue.message) for issue in inputs.issues if issue.severity != "info"}


def test_files_without_permission_are_findings_that_say_what_to_do(open_folder: Path, tmp_path: Path) -> None:
    root = open_folder / "data"
    pair(root, "good")
    pair(root, "closed", "red")
    (root / "clip.mp4").write_bytes(b"never read")
    (root / "good.txt").write_text("a caption that nobody may read")
    closed = ["clip.mp4", "closed_end.png", "good.txt", *FILES]
    for name in FILES:
        (root / name).touch()
    for name in closed:
        (root / name).chmod(0)
    gate.facts_cell("a.png", "0")  # the code's own files are read as the one who runs the tests
    with unprivileged():
        inputs = inspect(root, open_folder / "cells")
    message = "can't be read (Permission denied): make it readable (chmod u+r), or remove it"
    media = {"clip.mp4", "closed_end.png"}
    rules = {name: "unreadable" if name in media else "metadata-unreadable" for name in closed}
    assert found(inputs) == {name: (rule, message) for name, rule in rules.items()}
    assert [source.name for source in inputs.sources] == ["good"]


def test_what_a_rule_that_is_off_leaves_out_is_counted_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    pair(root, "good")
    (root / "text.mp4").write_text("text")
    (root / "void.webm").touch()
    (root / "lone_start.png").write_bytes((root / "good_start.png").read_bytes())
    (root / ".DS_Store").touch()
    (root / "metadata.csv").write_text("file_name,text\ngone.mp4,x\n")

    def printed(**severities: str) -> list[str]:
        gate.show(inspect(root, tmp_path / "cells", captions={"severities": severities}))
        return capsys.readouterr().err.splitlines()

    names = "(`framelora validate --all` names them)"
    turned_off = "warning: not used, though captions.severities turns the rule off:"
    hidden = f"info: not used: 1 hidden-file {names}"
    assert hidden in printed() and not any("turns the rule off" in line for line in printed())
    off = dict.fromkeys(("unreadable", "half-pair", "path-missing"), "off")
    assert printed(**off) == [hidden, f"{turned_off} 1 half-pair, 1 path-missing, 2 unreadable"]
    off["hidden-file"] = "off"
    counts = "1 half-pair, 1 hidden-file, 1 path-missing, 2 unreadable"
    assert printed(**off) == [f"{turned_off} {counts}"]
    assert printed(**dict.fromkeys(off, "info")) == [f"info: not used: {counts} {names}"]


def test_rules_that_leave_something_out_are_rules() -> None:
    assert set(RULES) >= LEAVE_OUT


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds at 8 frames/s. Matroska has no count of frames."""
    source = "testsrc2=size=96x64:rate=8:duration=2"
    return clip(tmp_path_factory.mktemp("video") / "clip.mkv", source=source)


def test_a_codec_that_nothing_decodes_is_named(tmp_path: Path, video: Path) -> None:
    root = tmp_path / "data"
    pair(root, "good")
    data = video.read_bytes()
    (root / "odd.mkv").write_bytes(data.replace(b"V_MPEG4/ISO/AVC", b"V_FUTURE/CODEC1"))
    inputs = inspect(root, tmp_path / "cells")
    assert found(inputs) == {"odd.mkv": ("unsupported-codec", "has a video stream of an unknown codec")}
    assert [issue.severity for issue in inputs.issues if issue.where == "odd.mkv"] == ["error"]
    inputs = inspect(root, tmp_path / "cells", extract={"on_error": "skip"})
    assert [issue.severity for issue in inputs.issues if issue.where == "odd.mkv"] == ["warning"]
    assert [source.name for source in inputs.sources] == ["good"]


def test_limits_of_the_parameters_are_findings_and_lifting_them_reads_nothing_anew(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, cells = tmp_path / "data", tmp_path / "cells"
    pair(root, "good")
    ffmpeg("-i", video, "-c", "copy", root / "clip.mp4")  # mp4 has a count of frames

    def over(**limits: float) -> dict[str, tuple[str, str]]:
        return found(inspect(root, cells, data=limits))

    for known in (False, True):  # by the file, and then by its cell
        too_large = ("over-limit", "is 96x64 pixels; data.max_pixels is 6143")
        assert over(max_pixels=6143) == dict.fromkeys(("clip.mp4", "good_end.png", "good_start.png"), too_large)
        assert over(max_frames=15) == {"clip.mp4": ("over-limit", "has 16 frames; data.max_frames is 15")}
        assert over(max_seconds=1.5) == {"clip.mp4": ("over-limit", "lasts 2 s; data.max_seconds is 1.5")}
        assert over(max_pixels=6144, max_frames=16, max_seconds=2.0) == {}
        said = capsys.readouterr().out.splitlines()
        assert all("3 cells, 0 computed" in line for line in said) == known


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which stages run; its base model has no tokenizer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRAMELORA_CELLS", raising=False)
    (tmp_path / "data/mine").mkdir(parents=True)
    return tmp_path


def set_params(project: Path, **changes: dict[str, Any]) -> None:
    """Write params.yaml with values of some sections changed."""
    document = YAML(typ="safe", pure=True).load(REPOSITORY / "params.yaml")
    for section, values in changes.items():
        document[section] |= values
    with (project / "params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(document, file)


def test_limits_reach_the_decoder_too(project: Path, video: Path) -> None:
    """What the header does not tell shows when the frames are counted."""
    shutil.copy(video, project / "data/mine")
    set_params(project, data={"root": "data/mine", "max_frames": 15})
    captions.main()
    with pytest.raises(UserError, match=r"clip.mkv goes on beyond 15 frames or 2 s: data.max_\* forbid it"):
        extract.main(shard="", fill=False)
    set_params(project, data={"root": "data/mine", "max_frames": 16})
    extract.main(shard="", fill=False)
    assert len(read_table(project / "data/frames.parquet")) == 1


def test_texts_get_trigger_word_prefix_suffix_and_orders_of_their_tags(project: Path) -> None:
    root = project / "data/mine"
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        pair(root, name, colour)
    (root / "a.txt").write_text("fox, snow, dusk")
    (root / "b.txt").write_text("zxc fox")
    around = {"trigger_word": "zxc", "prefix": "film of ", "suffix": ", grain", "tag_variants": 3}
    set_params(project, data={"root": "data/mine"}, captions=around)
    captions.main()
    sources = read_table(project / "data/sources.parquet")
    rows = read_table(project / "data/captions.parquet").set_index("content_id")
    texts = {source.name: rows.text[source.content_id] for source in sources.itertuples()}
    assert texts == {"a": "zxc, film of fox, snow, dusk, grain", "b": "film of zxc fox, grain", "c": "zxc"}
    first, *others = rows.variants[sources.content_id[sources.name == "a"].item()]
    assert (first, len(others)) == (texts["a"], 2)
    assert {tuple(sorted(text.split(", "))) for text in others} == {tuple(sorted(first.split(", ")))}
