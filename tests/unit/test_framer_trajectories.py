"""Heatmaps and tracks, against Framer's procedure written out point by point."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from framelora.families.framer.networks.heatmap import gaussian_template, heatmaps
from framelora.families.framer.networks.tracks import interpolate_track, interpolate_tracks


def reference_heatmap(points: list[tuple[float, float]], visible: list[bool], width: int, height: int) -> np.ndarray:
    """One frame: each visible point inside stamps a template, scaled into the part of its box in the picture."""
    disc = cv2.circle(np.zeros((200, 200), np.float32), (100, 100), 100, 1, -1)
    template = np.zeros((200, 200), np.float32)
    for i in range(200):
        for j in range(200):
            template[i, j] = math.exp(-((i - 100) ** 2 + (j - 100) ** 2) / 2 / 40**2) / 2 / math.pi / 40**2
    template = template * disc
    template = (template / template.max() * 255).astype(np.uint8)
    picture = np.zeros((height, width), np.float32)
    for (x, y), seen in zip(points, visible, strict=True):
        if not seen or x < 0 or y < 0 or x >= width or y >= height:
            continue
        x1, x2 = int(max(x - 20, 1)), int(min(x + 20, width - 1))
        y1, y2 = int(max(y - 20, 1)), int(min(y + 20, height - 1))
        if x2 > x1 and y2 > y1:
            picture[y1:y2, x1:x2] = cv2.resize(template, (x2 - x1, y2 - y1))
    return picture


class TestHeatmaps:
    def test_they_equal_the_procedure_written_out(self) -> None:
        random = np.random.default_rng(0)
        tracks = random.uniform(-30, 150, (3, 12, 2))
        tracks[0, 0], tracks[1, 1], tracks[2, 2] = (3.5, 2.25), (127.9, 79.9), (0, 0)  # at the borders
        visible = random.random((3, 12)) < 0.7
        got = heatmaps(tracks, visible, width=128, height=80)
        assert got.shape == (3, 3, 80, 128)
        assert got.dtype == torch.float32
        for frame in range(3):
            expected = reference_heatmap([tuple(p) for p in tracks[frame]], list(visible[frame]), 128, 80)
            for channel in range(3):
                np.testing.assert_array_equal(got[frame, channel].numpy(), expected)

    def test_the_highest_value_is_254(self) -> None:
        assert gaussian_template().max() == 255
        assert heatmaps(np.array([[[100.0, 60.0]]]), width=200, height=120).max() == 254

    def test_at_a_border_the_template_is_squeezed_and_not_cut(self) -> None:
        """The peak of a point in the corner lies in the middle of what is left of its box."""
        corner = heatmaps(np.array([[[1.0, 1.0]]]), width=100, height=100)[0, 0]
        assert corner.max() > 250
        assert np.unravel_index(int(corner.argmax()), corner.shape)[0] in range(8, 13)

    def test_a_later_point_overwrites_an_earlier_one(self) -> None:
        both = heatmaps(np.array([[[50.0, 50.0], [60.0, 50.0]]]), width=120, height=100)
        later = heatmaps(np.array([[[60.0, 50.0]]]), width=120, height=100)
        assert torch.equal(both[..., 30:70, 40:80], later[..., 30:70, 40:80])

    def test_the_box_can_be_smaller(self) -> None:
        small = heatmaps(np.array([[[48.0, 32.0]]]), width=96, height=64, side=6)[0, 0]
        assert small.nonzero().min(0).values.tolist() >= [26, 42]
        assert small.nonzero().max(0).values.tolist() <= [38, 54]


class TestTracks:
    def test_two_anchors_give_a_straight_even_motion(self) -> None:
        track = interpolate_track([(10, 20), (50, 0)], 5)
        np.testing.assert_allclose(track, [[10, 20], [20, 15], [30, 10], [40, 5], [50, 0]])

    def test_anchors_are_met_and_never_overshot(self) -> None:
        """Against PCHIP written out: harmonic mean of the slopes inside, zero at an extremum (Fritsch-Butland)."""
        values = [0.0, 10.0, 12.0, 12.0, 2.0]
        track = interpolate_track([(value, -value) for value in values], 17)
        np.testing.assert_allclose(track[::4, 0], values, atol=1e-12)
        assert track[:, 0].max() <= 12
        np.testing.assert_allclose(track[:, 1], -track[:, 0], atol=1e-12)
        slope = 2 / (1 / 10 + 1 / 2)  # at the second anchor, in values per interval
        s, before, after = 0.5, values[1], values[2]
        hermite = before * (1 + 2 * s) * (1 - s) ** 2 + after * s**2 * (3 - 2 * s) + slope * s * (1 - s) ** 2
        assert track[6, 0] == pytest.approx(hermite)  # at the third anchor the slope is zero: the next interval is flat

    def test_a_single_point_moves_by_one_pixel(self) -> None:
        np.testing.assert_allclose(interpolate_track([(3, 4)], 3), [[3, 4], [3.5, 4.5], [4, 5]])

    def test_tracks_of_different_lengths_stack(self) -> None:
        tracks = interpolate_tracks([[(0, 0)], [(0, 0), (10, 10)], [(0, 0), (5, 5), (1, 1)]], 7)
        assert tracks.shape == (7, 3, 2)
        assert tracks[-1].tolist() == [[1, 1], [10, 10], [1, 1]]

    def test_times_place_the_anchors_and_outside_them_the_point_stays(self) -> None:
        track = interpolate_track([(0, 0), (8, 0)], 5, times=[0.25, 0.75])
        assert track[:, 0].tolist() == [0, 0, 4, 8, 8]

    @pytest.mark.parametrize("anchors", [[], [(0, 0), (1, 1)]])
    def test_no_anchor_and_falling_times_are_refused(self, anchors: list[tuple[float, float]]) -> None:
        with pytest.raises(ValueError, match="track"):
            interpolate_track(anchors, 3, times=[1.0, 0.0])
