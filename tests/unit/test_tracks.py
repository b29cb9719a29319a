"""Tracks that come with a video, and tracks by CoTracker."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from framelora.dataset import tracks
from framelora.dataset.checks import check_names
from framelora.dataset.sources import Source
from framelora.dataset.window_tracks import in_window
from framelora.digest import canonical_json
from framelora.families.base import EncodeUnit
from framelora.families.framer import units
from framelora.families.framer.encode import cotracker_points, given_points, load_predictor
from framelora.media.buckets import centre_crop, cover
from framelora.media.probe import Facts
from framelora.params import load_params
from framelora.schema.framer import Framer


def facts(**changes: Any) -> Facts:
    known = {"width": 320, "height": 180, "num_frames": 48, "fps": 24.0, "duration": 2.0, "codec": "h264"}
    known |= {"rotation": 0, "pixel_format": "yuv420p", "transfer": "", "interlaced": False}
    names = set(Facts.__dataclass_fields__)
    return Facts(**{name: value for name, value in (known | changes).items() if name in names})


def written(*tracks: list[dict[str, Any]]) -> str:
    return json.dumps({"tracks": list(tracks)})


NUMBERS = st.integers() | st.integers(-400, 400).map(lambda power: 10 ** abs(power)) | st.floats() | st.booleans()
VALUES = NUMBERS | st.integers(0, 100) | st.none() | st.text(max_size=3)
PLACES = st.fixed_dictionaries(
    {"x": VALUES, "y": VALUES}, optional={"frame": VALUES, "time": VALUES}
) | st.fixed_dictionaries({"time": st.integers(0, 9), "x": st.floats(0, 319), "y": st.floats(0, 179)})
DOCUMENTS = (
    st.lists(st.lists(PLACES, max_size=3) | VALUES, max_size=3).map(lambda found: {"tracks": found}) | VALUES
).map(json.dumps)


class TestParse:
    def test_frames_become_seconds_by_the_videos_rate(self) -> None:
        text = written(
            [{"frame": 0, "x": 1, "y": 2}, {"frame": 12, "x": 3.5, "y": 4}], [{"time": 0.25, "x": 5, "y": 6}]
        )
        assert tracks.parse(text, facts()) == [[(0.0, 1.0, 2.0), (0.5, 3.5, 4.0)], [(0.25, 5.0, 6.0)]]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "is not JSON"),
            pytest.param("[" * 100_000, "is nested too deeply", id="brackets"),
            pytest.param(
                written([{"frame": 10**400, "x": 1, "y": 2}]),
                "track 0, place 0 has a value that is no number",
                id="400 digits",
            ),
            pytest.param('{"tracks": ' + "9" * 5000 + "}", "is not JSON (Exceeds the limit", id="5000 digits"),
            ("[]", 'must hold {"tracks"'),
            ('{"tracks": {}}', 'must hold {"tracks"'),
            (written([]), "track 0 has no place"),
            (written([{"x": 1, "y": 2}]), "track 0, place 0 must have x, y, and frame or time"),
            (written([{"frame": 0, "time": 0, "x": 1, "y": 2}]), "track 0, place 0 must have x, y, and frame or time"),
            (written([{"frame": 0, "x": "1", "y": 2}]), "track 0, place 0 has a value that is no number"),
            ('{"tracks": [[{"time": NaN, "x": 1, "y": 2}]]}', "track 0, place 0 has a value that is no number"),
            (written([{"frame": 0, "x": 320, "y": 2}]), "track 0, place 0 lies outside the picture (320x180)"),
            (written([{"frame": -1, "x": 1, "y": 2}]), "track 0, place 0: times must rise from 0"),
            (written([{"frame": 3, "x": 1, "y": 2}] * 2), "track 0, place 1: times must rise from 0"),
        ],
    )
    def test_what_is_wrong_is_named_in_one_line(self, text: str, message: str) -> None:
        with pytest.raises(tracks.BadTracks) as error:
            tracks.parse(text, facts())
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)

    def test_a_frame_beyond_all_times_is_named(self) -> None:
        with pytest.raises(tracks.BadTracks, match="track 0, place 0 lies beyond all times"):
            tracks.parse(written([{"frame": 1e308, "x": 1, "y": 2}]), facts(fps=0.01))

    @settings(max_examples=200)
    @given(DOCUMENTS | st.text(st.characters()), st.sampled_from([0.0, 1e-3, 24.0]))
    def test_no_document_raises_anything_else(self, document: str, fps: float) -> None:
        """What is read can be written to the table of tracks."""
        try:
            read = tracks.parse(document, facts(fps=fps))
        except tracks.BadTracks as reason:
            assert str(reason)
            return
        assert all(0 <= x < 320 and 0 <= y < 180 for track in read for _, x, y in track)
        assert json.loads(canonical_json(read)) == [[list(place) for place in track] for track in read]

    def test_a_video_without_a_rate_needs_times(self) -> None:
        with pytest.raises(tracks.BadTracks, match="give times"):
            tracks.parse(written([{"frame": 0, "x": 1, "y": 2}]), facts(fps=0.0))


class TestFind:
    VIDEOS = (Source("a/one.mp4", "video", "a/one.mp4"), Source("b/two.mkv", "video", "b/two.mkv"))

    def test_by_the_videos_name_or_alone_in_its_folder(self) -> None:
        names = ["a/one.tracks.json", "b/tracks.json", "one.tracks.json", "tracks.json"]
        found, findings = tracks.find(names, self.VIDEOS)
        assert {name: video.path for name, video in found.items()} == {
            "a/one.tracks.json": "a/one.mp4",
            "b/tracks.json": "b/two.mkv",
        }
        assert [(finding.rule, finding.where) for finding in findings] == [
            ("stray-tracks", "one.tracks.json"),
            ("stray-tracks", "tracks.json"),
        ]
        assert list(check_names(names)) == []

    def test_by_a_name_in_another_unicode_form_or_in_upper_case(self) -> None:
        composed, decomposed = (unicodedata.normalize(form, "ü") for form in ("NFC", "NFD"))
        video = Source(f"{decomposed}/{decomposed}.mp4", "video", f"{decomposed}/{decomposed}.mp4")
        for name in (f"{composed}/{composed}.tracks.json", f"{decomposed}/{decomposed}.Tracks.JSON"):
            assert tracks.find([name], [video]) == ({name: video}, [])
            assert list(check_names([name])) == []
        other = Source(f"{decomposed}/{composed}.mp4", "video", f"{decomposed}/{composed}.mp4")
        name = f"{decomposed}/{composed}.tracks.json"
        assert tracks.find([name], [other, video]) == tracks.find([name], [video, other]) == ({name: other}, [])
        assert tracks.find([f"{decomposed}/TRACKS.json"], [video])[0] == {f"{decomposed}/TRACKS.json": video}

    def test_a_folder_of_several_videos_has_none_of_its_own(self) -> None:
        videos = [Source(name, "video", name) for name in ("a/one.mp4", "a/two.mp4")]
        found, (finding,) = tracks.find(["a/tracks.json"], videos)
        assert not found
        assert finding.message.startswith("lies beside 2 videos")

    def test_a_byte_order_mark_is_allowed(self, tmp_path: Path) -> None:
        (tmp_path / "one.tracks.json").write_text("\ufeff" + written([{"frame": 0, "x": 1, "y": 2}]), encoding="utf-8")
        video = Source("one.mp4", "video", "one.mp4")
        known, findings = tracks.read(tmp_path, {"one.tracks.json": video}, {video.path: facts()})
        assert (json.loads(known["one.mp4"]), findings) == ([[[0.0, 1.0, 2.0]]], [])

    def test_a_broken_file_is_an_error_and_the_videos_own_file_goes_first(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/one.tracks.json").write_text(written([{"frame": 0, "x": 1, "y": 2}]))
        (tmp_path / "a/tracks.json").write_text(written([{"frame": 0, "x": 9, "y": 9}]))
        (tmp_path / "b").mkdir()
        (tmp_path / "b/tracks.json").write_bytes(b"\xff")
        found, _ = tracks.find(["a/one.tracks.json", "a/tracks.json", "b/tracks.json"], self.VIDEOS)
        known, findings = tracks.read(tmp_path, found, {video.path: facts() for video in self.VIDEOS})
        assert {video: json.loads(text) for video, text in known.items()} == {"a/one.mp4": [[[0.0, 1.0, 2.0]]]}
        assert sorted((finding.rule, finding.where) for finding in findings) == [
            ("stray-tracks", "a/tracks.json"),
            ("tracks-unreadable", "b/tracks.json"),
        ]


class TestInWindow:
    def test_a_marked_pixel_lands_where_scaling_and_cropping_put_it(self) -> None:
        """Independently: the same scaling and crop done to a picture with a mark in it."""
        size, bucket = (320, 180), (64, 64)
        x, y = 200, 90
        picture = np.zeros((180, 320, 3), np.float32)
        picture[y - 3 : y + 3, x - 3 : x + 3] = 1.0
        wide, high = cover(*size, bucket)
        rows, columns = (np.arange(n) + 0.5 for n in (high, wide))
        scaled = picture[(rows * 180 / high).astype(int)][:, (columns * 320 / wide).astype(int)]
        cropped = centre_crop(scaled[None], bucket)[0, ..., 0]  # type: ignore[arg-type]
        down, across = ((axis + 0.5).mean() for axis in cropped.nonzero())
        ((place,),) = in_window([[(0.0, x, y)]], size, [0.0], bucket)
        assert place == pytest.approx([across, down], abs=0.6)

    def test_places_between_are_on_the_straight_line_and_hidden_outside_of_the_time(self) -> None:
        track = [(0.5, 10.0, 20.0), (1.5, 30.0, 60.0)]
        ((before, first, half, last, after),) = in_window([track], (64, 64), [0, 0.5, 1.0, 1.5, 2.1], (64, 64))
        assert (before, after) == (None, None)
        assert (first, half, last) == ([10, 20], [20, 40], [30, 60])

    def test_what_the_crop_cuts_off_is_hidden_and_what_is_never_seen_is_left_out(self) -> None:
        seen, outside = [(0.0, 64.0, 32.0), (1.0, 2.0, 32.0)], [(0.0, 2.0, 32.0)]
        found = in_window([seen, outside], (128, 64), [0.0, 1.0], (64, 64))
        assert found == [[[32.0, 32.0], None]]

    def test_they_become_the_tensors_that_training_reads(self) -> None:
        tensors = given_points([[[1.5, 2.0], None], [[3.0, 4.0], [5.0, 6.0]], [[9.0, 9.0]] * 2], 2, 2)
        assert tensors["tracks"][:, 1].tolist() == [[3, 4], [5, 6]]
        assert tensors["visible"].tolist() == [[1, 1], [0, 1]]
        assert given_points([], 2, 3)["tracks"].shape == (2, 3, 2)  # items of one batch have one shape


def framer(**encode: Any) -> Framer:
    params = load_params(REPOSITORY / "params.yaml").framer
    assert params is not None
    return params.model_copy(update={"encode": params.encode.model_copy(update=encode)})


class TestKeys:
    def test_given_tracks_are_in_the_key_and_the_tracker_is_not(self) -> None:
        given = EncodeUnit("tracks", "w", "s", (0, 1), detail="[[[1,2],null]]")
        params = framer(tracks="lucas_kanade")
        assert units.unit_inputs(given, params) == {"points": params.encode.track_points}
        assert units.unit_inputs(EncodeUnit("tracks", "w", "s", (0, 1)), params)["method"] == "lucas_kanade"

    def test_cotracker_is_asked_for_only_when_it_is_there(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        assert units.check_encode(framer(tracks="lucas_kanade")) is None
        problem = units.check_encode(framer(tracks="cotracker"))
        assert problem is not None and problem.startswith("framer.encode.tracks: cotracker needs the package cotracker")
        monkeypatch.setattr(units, "installed", lambda _: True)
        problem = units.check_encode(framer(tracks="cotracker"))
        assert problem is not None and problem.startswith("framer.encode.cotracker_weights: is null")
        (tmp_path / "w.pth").touch()
        assert units.check_encode(framer(tracks="cotracker", cotracker_weights=str(tmp_path / "w.pth"))) is None


class TestCoTracker:
    """The boundary to the package: what it is given, and what becomes of what it gives."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
        made: list[tuple[Tensor, Tensor]] = []

        class CoTrackerPredictor(torch.nn.Module):
            def __init__(self, checkpoint: str, offline: bool, window_len: int) -> None:
                super().__init__()
                assert (checkpoint, offline, window_len) == ("w.pth", True, 60)

            def forward(self, video: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
                made.append((video, queries))
                steps = torch.arange(video.shape[1]).view(1, -1, 1, 1)
                found = queries[:, None, :, 1:] + steps * torch.tensor([20.0, 0.0])  # 20 pixels a frame to the right
                return found, torch.ones(found.shape[:3], dtype=torch.bool)

        package, predictor = ModuleType("cotracker"), ModuleType("cotracker.predictor")
        predictor.CoTrackerPredictor = CoTrackerPredictor  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cotracker", package)
        monkeypatch.setitem(sys.modules, "cotracker.predictor", predictor)
        load_predictor.cache_clear()
        return made

    def test_it_gets_the_clip_and_corners_of_the_first_frame(self, calls: list[tuple[Tensor, Tensor]]) -> None:
        frames = np.zeros((4, 32, 48, 3), np.uint8)
        frames[:, 8:16, 8:16] = 255
        tensors = cotracker_points(frames, 6, Path("w.pth"), torch.device("cpu"))
        ((video, queries),) = calls
        assert video.shape == (1, 4, 3, 32, 48)
        assert (video.dtype, float(video.max())) == (torch.float32, 255.0)
        assert queries.shape[0] == 1 and queries.shape[2] == 3
        assert (queries[0, :, 0] == 0).all()  # all are asked for in the first frame
        assert ((queries[0, :, 1:] >= 7) & (queries[0, :, 1:] <= 16)).all()
        found = queries.shape[1]
        assert 1 <= found <= 6
        assert tensors["tracks"].shape == (4, 6, 2) and tensors["tracks"].dtype == torch.float32
        assert tensors["visible"].shape == (4, 6) and tensors["visible"].dtype == torch.uint8
        assert torch.equal(tensors["tracks"][0, :found], queries[0, :, 1:])
        assert tensors["visible"][0, :found].all()
        assert not tensors["visible"][3, :found].any()  # 20 pixels a frame: they have left the picture of 48
        assert not tensors["visible"][:, found:].any()

    def test_a_clip_without_corners_needs_no_tracker(self, calls: list[tuple[Tensor, Tensor]]) -> None:
        tensors = cotracker_points(np.zeros((3, 32, 32, 3), np.uint8), 4, Path("w.pth"), torch.device("cpu"))
        assert not calls
        assert not tensors["visible"].any()
