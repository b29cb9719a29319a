"""`framelora validate`: what it prints and writes, and its exit code."""

from __future__ import annotations

import html
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from broken_media import clip
from conftest import REPOSITORY
from PIL import Image
from ruamel.yaml import YAML
from typer.testing import CliRunner

from framelora.cli import app
from framelora.dataset.rules import RULES

HOSTILE = '<script>alert(1)</script> & "<img src=x onerror=alert(2)>" \N{REPLACEMENT CHARACTER}'


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("video") / "a.mp4", source="testsrc2=size=96x64:rate=8:duration=2")


@pytest.fixture
def root(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder in which nothing is wrong: a clip and an image pair, both with a caption."""
    shutil.copyfile(REPOSITORY / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRAMELORA_CELLS", raising=False)
    monkeypatch.setenv("COLUMNS", "240")
    root = tmp_path / "data/mine"
    root.mkdir(parents=True)
    shutil.copyfile(video, root / "a.mp4")
    (root / "a.txt").write_text("a test card in many colours")
    for half, colour in (("start", "red"), ("end", "blue")):
        Image.new("RGB", (96, 64), colour).save(root / f"b_{half}.png")
    (root / "b.txt").write_text("a red plane becomes blue")
    return root


def set_severities(**severities: str) -> None:
    yaml = YAML()
    document = yaml.load(Path("params.yaml"))
    document["captions"]["severities"] = {name.replace("_", "-"): level for name, level in severities.items()}
    yaml.dump(document, Path("params.yaml"))


def validate(*arguments: str) -> tuple[int, list[str], list[str]]:
    """Exit code, and the lines of stdout and stderr."""
    result = CliRunner().invoke(app, ["validate", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout.splitlines(), result.stderr.splitlines()


def test_good_data_is_exit_code_0_and_a_line_of_counts(root: Path) -> None:
    code, out, err = validate("data/mine")
    assert (code, err) == (0, [])
    assert out[-1] == "data/mine: 1 image pair, 1 video; 0 errors, 0 warnings, 0 infos"


def test_data_root_is_checked_where_no_folder_is_named(root: Path) -> None:
    shutil.move(root, root.with_name("demo"))
    assert validate()[1][-1].startswith("data/demo: 1 image pair, 1 video;")


def test_an_error_is_exit_code_1_and_is_named(root: Path) -> None:
    (root / "c.mp4").write_text("text")
    code, out, err = validate("data/mine")
    assert code == 1
    assert err == [
        "error: c.mp4: is not a .mp4 file, whatever its name says [unreadable]",
        "error: 1 error in data/mine: mend what is named above",
    ]
    assert out[-1] == "data/mine: 1 image pair, 2 videos; 1 error, 0 warnings, 0 infos"


def test_a_severity_of_the_parameters_decides_the_exit_code(root: Path) -> None:
    (root / "a.txt").unlink()
    assert validate("data/mine")[0] == 0
    set_severities(no_caption="error")
    code, _, err = validate("data/mine")
    assert (code, err[0]) == (1, "error: a.mp4: has no caption [no-caption]")
    set_severities(no_caption="off")
    assert validate("data/mine")[1][-1].endswith("0 errors, 0 warnings, 0 infos")


def test_a_severity_of_no_rule_is_refused(root: Path) -> None:
    set_severities(no_captoin="error")
    code, _, err = validate("data/mine")
    message = "params.yaml: captions.severities: there is no rule 'no-captoin': `framelora validate --rules` lists them"
    assert (code, err) == (1, [f"error: {message}"])


def test_infos_are_printed_when_all_is_asked_for(root: Path) -> None:
    (root / "a.txt").unlink()
    (root / "notes.md").touch()
    quiet, loud = validate("data/mine"), validate("data/mine", "--all")
    assert quiet[2] == []
    assert loud[2] == [
        "info: a.mp4: has no caption [no-caption]",
        "info: notes.md: is neither media nor captions [other-file]",
    ]
    assert quiet[1][-1] == loud[1][-1] == "data/mine: 1 image pair, 1 video; 0 errors, 0 warnings, 2 infos"


def test_of_one_rule_the_first_ten_are_printed(root: Path) -> None:
    for number in range(12):
        (root / f"stray {number:02d}.txt").write_text("x")
    lines = validate("data/mine")[2]
    assert len(lines) == 11
    assert lines[-1] == "... and 2 more of stray-sidecar"


def test_every_rule_is_printed_with_its_severity(root: Path) -> None:
    set_severities(no_caption="error")
    code, out, _ = validate("--rules")
    assert code == 0
    for rule in RULES.values():
        (line,) = [line for line in out if f" {rule.name} " in line]
        severity = "error (was info)" if rule.name == "no-caption" else rule.severity
        cells = [cell.strip() for cell in line.split("\N{BOX DRAWINGS LIGHT VERTICAL}")[1:-1]]
        assert cells == [rule.name, severity, rule.about, rule.fix]


class Tags(HTMLParser):
    """Names of the elements of a page, its text, and the addresses of its pictures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.text = ""
        self.pictures: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag == "img":
            self.pictures.append(str(dict(attrs)["src"]))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_holds_a_page_tables_and_pictures(root: Path) -> None:
    (root / "a.txt").write_text(HOSTILE)
    (root / "c.mp4").write_text("text")
    (root / "<b>.pdf").touch()
    code, out, _ = validate("data/mine", "--report", "checked")
    assert (code, out[-1]) == (1, "report: checked/index.html")
    folder = Path("checked")
    rows = json.loads((folder / "issues.json").read_text())
    assert {(row["severity"], row["rule"], row["where"]) for row in rows} == {
        ("error", "unreadable", "c.mp4"),
        ("warning", "mixed-encodings", "a.txt"),
        ("info", "other-file", "<b>.pdf"),
    }
    assert pd.read_csv(folder / "issues.csv", keep_default_na=False).to_dict("records") == rows
    (picture,) = {row["picture"] for row in rows} - {""}
    assert Image.open(folder / picture).size == (96, 64)

    page = Tags((folder / "index.html").read_text())
    assert "script" not in page.names and "b" not in page.names
    assert page.pictures == [picture]
    assert "1 image pair, 2 videos; 1 error, 1 warning, 1 info" in page.text
    for row in rows:
        assert all(row[name] in page.text for name in ("severity", "rule", "where", "message", "fix"))
    assert HOSTILE[:40] in page.text
    assert html.escape("<script>alert(1)</script>") in (folder / "index.html").read_text()


def test_a_report_replaces_an_earlier_one_and_nothing_else(root: Path) -> None:
    assert validate("data/mine", "--report", "checked")[0] == 0
    assert "No issues." in Path("checked/index.html").read_text()
    (root / "c.mp4").write_text("text")
    set_severities(unreadable="off")
    assert validate("data/mine", "--report", "checked")[0] == 0
    assert "captions.severities turns the rule off: 1 unreadable" in Path("checked/index.html").read_text()
    refused = {
        "data": "holds mine, which is no part of a report: name a new folder",
        "params.yaml": "is a file: name a folder",
        "data/mine": "lies in the data folder: name another",
        "data/mine/checked": "lies in the data folder: name another",
    }
    before = sorted(root.parent.rglob("*"))
    for report, problem in refused.items():
        code, _, err = validate("data/mine", "--report", report)
        assert (code, err) == (1, [f"error: --report {report}: {problem}"])
    assert sorted(root.parent.rglob("*")) == before
