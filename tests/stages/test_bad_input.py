"""What people really put into data.root and params.yaml: each mistake ends in one line that says what to do.

Most stages run inside this process, which takes no seconds to import torch; the tests under "processes" start them as
DVC does.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pandas as pd
import pytest
import typer
from conftest import CELLS, Project
from PIL import Image
from typer.testing import CliRunner

from framelora.cli import app as framelora
from framelora.console import command
from stages import captions, extract, pair

pytestmark = pytest.mark.slow

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
STAGES = {"captions": captions, "extract": extract, "pair": pair}
GOOD = ("bunny_wakes", "cloud_over_trees")


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run([FFMPEG, "-loglevel", "error", "-nostdin", "-y", *map(str, arguments)], check=True)


def make_video(path: Path, *options: str, size: str = "96x64", seconds: float = 2) -> Path:
    source = f"testsrc2=size={size}:rate=24:duration={seconds}"
    ffmpeg("-f", "lavfi", "-i", source, "-c:v", "libx264", "-pix_fmt", "yuv444p", *options, path)
    return path


def damage(path: Path) -> Path:
    """Flip bytes in the middle of a video: its index and its first frame stay whole."""
    data = bytearray(path.read_bytes())
    middle = (data.index(b"mdat") + len(data)) // 2
    data[middle : middle + 100] = bytes(byte ^ 0xFF for byte in data[middle : middle + 100])
    path.write_bytes(data)
    return path


@dataclass
class Outcome:
    """What a stage did, and what a person saw of it."""

    code: int
    stdout: str
    stderr: str

    @property
    def computed(self) -> dict[str, int]:
        return {kind: int(computed) for kind, _, computed, _ in CELLS.findall(self.stdout)}

    def error(self) -> str:
        """The last line, which must be the only final error of a clean end with code 1."""
        lines = self.stderr.splitlines()
        assert self.code == 1, (self.stdout, self.stderr)
        assert "Traceback" not in self.stdout + self.stderr
        assert lines[-1].startswith("error: ")
        assert "; mend" in lines[-1] or ": " in lines[-1][len("error: ") :], lines[-1]
        return lines[-1].removeprefix("error: ")


@dataclass
class Bench:
    """A small project in which stages run inside this process."""

    project: Project
    monkeypatch: pytest.MonkeyPatch

    @property
    def data(self) -> Path:
        return self.project.root / "data/demo"

    def invoke(self, app: typer.Typer, *arguments: str) -> Outcome:
        self.monkeypatch.chdir(self.project.root)
        result = CliRunner().invoke(app, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    def stage(self, name: str, *arguments: str) -> Outcome:
        app = typer.Typer(add_completion=False)
        app.command()(command(STAGES[name].main))
        return self.invoke(app, *arguments)

    def good(self, *names: str) -> list[Outcome]:
        outcomes = []
        for name in names:
            outcomes.append(self.stage(name))
            assert outcomes[-1].code == 0, outcomes[-1].stderr
        return outcomes

    def doctor(self, *arguments: str) -> Outcome:
        return self.invoke(framelora, "doctor", *arguments)

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.project.root / f"data/{name}.parquet")

    def issues(self) -> pd.DataFrame:
        """The gate's report; its two forms must agree."""
        folder = self.project.root / "reports/captions"
        table = pd.read_csv(folder / "issues.csv", keep_default_na=False)
        assert json.loads((folder / "issues.json").read_text()) == table.to_dict("records")
        named = {name for name in table.picture if name}
        assert named == {path.relative_to(folder).as_posix() for path in folder.glob("pictures/*")}
        return table

    def skipped(self) -> dict[str, str]:
        table = pd.read_csv(self.project.root / "reports/extract/skipped.csv", keep_default_na=False)
        return dict(zip(table.path, table.reason, strict=True))

    def frames_of(self, name: str) -> pd.DataFrame:
        """Rows of the index of frames for one source."""
        sources, frames = self.table("sources"), self.table("frames")
        (content_id,) = sources.content_id[sources.name == name]
        return frames[frames.content_id == content_id]


@pytest.fixture(scope="module")
def template(make_project: Callable[..., Project]) -> Project:
    return make_project(clips=GOOD, pairs=(), extract__buckets=["96x64", "64x96", "64x64"])


@pytest.fixture
def bench(template: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A fresh copy of a project with two good clips."""
    root = tmp_path / "project"
    (root / "data").mkdir(parents=True)
    shutil.copytree(template.root / "data/demo", root / "data/demo")
    shutil.copytree(template.root / "bases/tiny-framer", root / "bases/tiny-framer")
    shutil.copytree(template.root / "models/start", root / "models/start")
    shutil.copy(template.root / "params.yaml", root / "params.yaml")
    (root / "data/demo/metadata.json").unlink()
    monkeypatch.delenv("FRAMELORA_CELLS", raising=False)
    return Bench(Project(root), monkeypatch)


# the data folder


def test_a_missing_data_folder(bench: Bench) -> None:
    bench.project.set(data__root="data/mine")
    for outcome in (bench.stage("captions"), bench.doctor()):
        assert outcome.error() == ("data.root: data/mine does not exist: create the folder and put clips into it")


def test_an_empty_data_folder(bench: Bench) -> None:
    (bench.project.root / "data/mine").mkdir()
    (bench.project.root / "data/mine/notes.txt").write_text("nothing")
    bench.project.set(data__root="data/mine")
    assert bench.stage("captions").error().startswith("data.root: data/mine holds no clip (.mp4 .mov")
    assert bench.doctor().error() == "data.root: data/mine holds no clip and no image pair: put some into it"


def test_a_folder_of_which_nothing_can_be_read(bench: Bench) -> None:
    shutil.rmtree(bench.data / "clips")
    (bench.data / "a.mp4").write_text("text")
    bench.project.set(extract__on_error="skip")
    message = bench.stage("captions").error()
    assert message == "data.root: none of the files in data/demo can be read: see reports/captions/issues.csv"


# unreadable files


def make_bad(folder: Path) -> dict[str, str]:
    """Files that can't be used, with a part of the reason for each."""
    whole = make_video(folder / "whole.mp4", "-movflags", "+faststart").read_bytes()
    late = make_video(folder / "late.mp4").read_bytes()
    (folder / "whole.mp4").unlink()
    (folder / "late.mp4").unlink()
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", folder / "sound.mp4")
    (folder / "cut late.mp4").write_bytes(late[: len(late) // 2])
    (folder / "empty.mov").touch()
    (folder / "text.webm").write_text("text")
    (folder / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:2,\n{folder / 'clips/bunny_wakes.mp4'}\n#EXT-X-ENDLIST\n")
    (folder / "really_matroska.mp4").write_bytes(b"\x1a\x45\xdf\xa3" + whole)
    Image.new("RGB", (64, 64)).save(folder / "a_start.png")
    (folder / "a_end.png").write_bytes((folder / "a_start.png").read_bytes()[:60])
    return {
        "sound.mp4": "has no video stream",
        "cut late.mp4": "can't be opened as video",
        "empty.mov": "is empty (0 bytes)",
        "text.webm": "is not a .webm file, whatever its name says",
        "list.mp4": "is not a .mp4 file, whatever its name says",
        "really_matroska.mp4": "is not a .mp4 file, whatever its name says",
        "a_end.png": "can't be decoded",
    }


def test_files_that_can_not_be_opened_stop_the_gate_or_are_skipped(bench: Bench) -> None:
    bad = make_bad(bench.data)
    outcome = bench.stage("captions")
    first = min(bad)
    assert outcome.error() == (
        f"{first}: {outcome.error().split(': ', 1)[1].split(' (and')[0]} (and {len(bad) - 1} more)"
        "; mend the data (reports/captions/issues.csv lists all)"
    )
    issues = bench.issues()
    errors = issues[issues.severity == "error"]
    assert dict(zip(errors["where"], errors.rule, strict=True)) == dict.fromkeys(bad, "unreadable")
    assert all(bad[row["where"]] in row.message for _, row in errors.iterrows())
    assert not (bench.project.root / "data/sources.parquet").exists()  # nothing goes on from a bad folder

    bench.project.set(extract__on_error="skip")
    (outcome,) = bench.good("captions")
    assert outcome.computed == {"captions/facts": 0}  # what could be read was probed in the first run
    issues = bench.issues()
    assert set(issues["where"][issues.severity == "warning"]) == set(bad)
    assert set(bench.table("sources").name) == {f"clips/{name}.mp4" for name in GOOD}
    bench.good("extract")
    assert set(bench.table("frames").content_id) == set(bench.table("sources").content_id)


def test_removing_the_bad_files_mends_it(bench: Bench) -> None:
    for name in make_bad(bench.data):
        (bench.data / name).unlink()
    (bench.data / "a_start.png").unlink()
    (outcome,) = bench.good("captions")
    assert "captions: 2 clips, 0 image pairs, 2 contents" in outcome.stdout


# damage that only decoding finds


def test_damage_inside_stops_extract_and_keeps_what_is_done(bench: Bench) -> None:
    bad = damage(make_video(bench.data / "bad.mp4", "-g", "12"))
    bench.good("captions")
    outcome = bench.stage("extract")
    assert re.fullmatch(
        r"bad.mp4 is damaged or cut off \(.+\): replace or remove it, or set extract.on_error: skip", outcome.error()
    )
    assert outcome.computed["extract/frames"] >= 2
    assert not (bench.project.root / "data/frames.parquet").exists()
    bad.unlink()
    _, outcome = bench.good("captions", "extract")
    assert outcome.computed == {"extract/frames": 0, "extract/shots": 0}


def test_damage_inside_is_skipped_and_listed(bench: Bench) -> None:
    damage(make_video(bench.data / "bad.mp4", "-g", "12"))
    bench.project.set(extract__on_error="skip")
    _, outcome = bench.good("captions", "extract")
    assert "warning: bad.mp4 is damaged or cut off" in outcome.stderr
    assert list(bench.skipped()) == ["bad.mp4"]
    assert "0x" not in bench.skipped()["bad.mp4"]
    assert bench.frames_of("bad.mp4").empty
    assert len(bench.frames_of("clips/bunny_wakes.mp4"))
    first = (bench.project.root / "reports/extract/skipped.csv").read_bytes()
    (again,) = bench.good("extract")
    assert "2 sources" in again.stdout
    assert (bench.project.root / "reports/extract/skipped.csv").read_bytes() == first


def test_nothing_skipped_is_an_empty_list(bench: Bench) -> None:
    bench.good("captions", "extract")
    assert bench.skipped() == {}


# unusual but sound videos


def test_unusual_videos_go_through(bench: Bench) -> None:
    """One frame, odd sides, a quarter turn, a variable rate, no time stamps, names that need care."""
    shutil.rmtree(bench.data / "clips")
    make_video(bench.data / "one frame.mp4", "-frames:v", "1")
    make_video(bench.data / "odd.mp4", "-vf", "scale=321:181,setsar=1")
    stored = make_video(bench.data / "stored.mp4", size="192x128")
    ffmpeg("-display_rotation", "90", "-i", stored, "-c", "copy", bench.data / 'türn\'d & "quoted".MP4')
    stored.unlink()
    make_video(
        bench.data / "variable.mp4", "-vf", "select=lt(n\\,12)+not(mod(n\\,3))", "-fps_mode", "vfr", size="64x64"
    )
    make_video(bench.data / "bare.avi", size="160x90")
    make_video(bench.data / "rounded.mkv", size="90x160")
    bench.good("captions", "extract")
    sources = bench.table("sources").set_index("name")
    assert (sources.width["odd.mp4"], sources.height["odd.mp4"]) == (321, 181)
    expected = {
        "one frame.mp4": (1, 96, 64),
        "odd.mp4": (16, 96, 64),
        'türn\'d & "quoted".MP4': (16, 64, 96),
        "variable.mp4": (16, 64, 64),
        "bare.avi": (16, 96, 64),
        "rounded.mkv": (16, 64, 96),
    }
    for name, wanted in expected.items():
        frames = bench.frames_of(name)
        assert (frames.num_frames.sum(), frames.width.iloc[0], frames.height.iloc[0]) == wanted, name
    assert bench.skipped() == {}


# image pairs


def test_a_half_pair_and_a_pair_of_two_sizes(bench: Bench) -> None:
    Image.new("RGB", (96, 64)).save(bench.data / "a_start.png")
    assert bench.stage("captions").error().startswith("a_start.png: has no other half")
    Image.new("RGB", (64, 96)).save(bench.data / "a_end.png")
    message = bench.stage("captions").error()
    assert message.startswith("a: start and end differ: 96x64 and 64x96; mend the data")
    Image.new("RGB", (96, 64)).save(bench.data / "a_end.png")
    Image.new("RGB", (96, 64)).save(bench.data / "portrait.png")
    bench.good("captions")
    issues = bench.issues()
    assert set(issues["where"][issues.rule == "single-image"]) == {"portrait.png"}


def test_image_pairs_alone_are_nothing_to_train_on(bench: Bench) -> None:
    shutil.rmtree(bench.data / "clips")
    for half, colour in (("start", "red"), ("end", "blue")):
        Image.new("RGB", (96, 64), colour).save(bench.data / f"a_{half}.png")
    bench.good("captions", "extract")
    message = bench.stage("pair").error()
    assert message.startswith(
        "no shot has pair.num_frames (5) frames, so there is nothing to train on: add longer clips"
    )
    assert "image pairs have no middles" in message
    assert not (bench.project.root / "data/pairs_train.parquet").exists()


# captions


def test_mistakes_in_metadata_are_listed_with_their_rows(bench: Bench) -> None:
    rows = [
        {"file_path": "../../etc/passwd", "text": "x"},
        {"file_path": "clips/bunny_wakes.mp4", "text": "x"},
        {"file_path": "clips/bunny_wakes.mp4", "text": "y"},
        {"text": "no path"},
    ]
    (bench.data / "metadata.json").write_text(json.dumps(rows))
    outcome = bench.stage("captions")
    assert outcome.error().endswith("(and 2 more); mend the data (reports/captions/issues.csv lists all)")
    issues = bench.issues()
    found = set(zip(issues.rule, issues["where"], strict=True))
    assert found >= {
        ("path-outside", "metadata.json row 0"),
        ("conflicting-captions", "metadata.json row 1 and metadata.json row 2"),
        ("metadata-row", "metadata.json row 3"),
        ("duplicate-row", "metadata.json row 2"),
    }


# windows and splits


def test_short_shots_are_counted(bench: Bench) -> None:
    make_video(bench.data / "short.mp4", seconds=0.3)
    bench.project.set(pair__val_fraction=0.0, pair__test_fraction=0.0)
    outcome = bench.good("captions", "extract", "pair")[-1]
    assert "pair: 1 shots are shorter than pair.num_frames (5) and give no window" in outcome.stdout
    assert not set(bench.frames_of("short.mp4").content_id) & set(bench.table("pairs_train").content_id)


def test_the_advice_for_an_empty_split_works(bench: Bench) -> None:
    make_video(bench.data / "third.mp4")
    make_video(bench.data / "short.mp4", seconds=0.3)  # its split gets no window by it
    bench.good("captions", "extract")
    advised = 0
    for seed in range(12):
        bench.project.set(pair__split_seed=seed)
        outcome = bench.stage("pair")
        if outcome.code == 0:
            continue
        message = outcome.error()
        found = re.fullmatch(r"no window of 3 clips fell into (train|val|test): set pair.split_seed to (\d+)", message)
        assert found, message
        bench.project.set(pair__split_seed=int(found[2]))
        bench.good("pair")
        advised += 1
    assert advised >= 3


def test_too_few_clips_for_the_splits(bench: Bench) -> None:
    bench.good("captions", "extract")
    message = bench.stage("pair").error()
    assert message.endswith(": add clips, or set pair.val_fraction or pair.test_fraction to 0")


# parameters and the base model


@pytest.mark.parametrize("stage", ["captions", "extract", "pair"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.learning_rat": 1}, "params.yaml: train.learning_rat is unknown: check its spelling, or remove it"),
        ({"extract.fps": "8"}, "params.yaml: extract.fps = '8': input should be a valid number"),
        ({"extract.size": 8}, "params.yaml: extract.size has a reserved name"),
    ],
)
def test_a_mistake_in_the_parameters_stops_every_stage(
    bench: Bench, stage: str, change: dict[str, object], message: str
) -> None:
    bench.project.set_all(change)
    assert bench.stage(stage).error().startswith(message)
    assert bench.doctor().error().startswith(message)


def test_the_doctor_finds_that_a_folder_of_the_graph_is_gone(bench: Bench) -> None:
    """`rm -rf models` takes more than outs; DVC would say [Errno 2]."""
    shutil.rmtree(bench.project.root / "models")
    assert bench.doctor().error().startswith("models/start does not exist: `git checkout models/start`")


def test_the_doctor_finds_a_missing_or_changed_base(bench: Bench) -> None:
    assert bench.doctor().code == 0
    base = bench.project.root / "bases/tiny-framer"
    weights = base / "vae/diffusion_pytorch_model.safetensors"
    original = weights.read_bytes()
    middle = len(original) // 2
    weights.write_bytes(original[:middle] + bytes([original[middle] ^ 1]) + original[middle + 1 :])
    assert bench.doctor().code == 0  # one bit: only reading every byte tells
    message = "bases/tiny-framer/vae/diffusion_pytorch_model.safetensors differs from base.lock.json"
    assert bench.doctor("--full").error().startswith(message)
    weights.write_bytes(original + b"x")
    assert bench.doctor().error().startswith("the files in bases/tiny-framer are not those of its base.lock.json")
    weights.unlink()
    assert bench.doctor().error().startswith("the files in bases/tiny-framer are not those of its base.lock.json")
    weights.write_bytes(original)
    (base / "base.lock.json").unlink()
    assert bench.doctor().error() == (
        "bases/tiny-framer/base.lock.json is missing: `framelora lock bases/tiny-framer` writes it"
    )
    bench.project.set(model__base="bases/other")
    assert bench.doctor().error().startswith("model.base: bases/other does not exist: put the base model there")


def test_a_stage_without_its_input_says_what_makes_it(bench: Bench) -> None:
    for stage, table in (("extract", "sources"), ("pair", "frames")):
        assert bench.stage(stage).error() == f"data/{table}.parquet is missing: run `dvc repro`, which makes it"


# processes


def test_processes_end_with_code_1_and_one_line(make_project: Callable[..., Project]) -> None:
    project = make_project(clips=GOOD, pairs=())
    data = project.root / "data/demo"

    def check(name: str, *expected: str) -> None:
        run = project.stage(name, check=False)
        outcome = Outcome(run.returncode, run.stdout, run.stderr)
        message = outcome.error()
        for part in expected:
            assert part in message
        finals = [line for line in run.stderr.splitlines() if line == f"error: {message}"]
        assert len(finals) == 1

    (data / "clips/broken.mp4").write_bytes(np.random.default_rng(0).bytes(1000))
    check("captions", "clips/broken.mp4: is not a .mp4 file", "mend the data")
    (data / "clips/broken.mp4").unlink()
    damage(make_video(data / "clips/broken.mp4", "-g", "12"))
    project.stage("captions")
    check("extract", "clips/broken.mp4 is damaged", "replace or remove it, or set extract.on_error: skip")
    project.set(extract__on_error="skip", model__base="bases/other", pair__val_fraction=0.0, pair__test_fraction=0.0)
    project.stage("extract")
    project.stage("pair")
    check("encode", "model.base: bases/other does not exist: put the base model there, or name its folder")
    project.set(train__seed="x")
    check("train", "params.yaml: train.seed = 'x': input should be a valid integer")


def test_debug_shows_the_traceback(make_project: Callable[..., Project]) -> None:
    project = make_project(clips=GOOD, pairs=(), data__root="data/none")
    run = project.stage("captions", "--debug", check=False)
    assert run.returncode == 1
    assert "Traceback" in run.stderr
