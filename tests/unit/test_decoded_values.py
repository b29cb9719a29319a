"""Light and bit depth: values that come out of the decoder, beside the standards' formulas."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from framelora.media.frames import read_frames
from framelora.media.probe import NO_FILE_BEYOND, probe_video

pytestmark = pytest.mark.slow
HDR = {"pq": "smpte2084", "hlg": "arib-std-b67"}


def decoded(path: Path, luma: np.ndarray, setting: str, *codec: str) -> np.ndarray:
    """The first frame of a grey 10-bit clip with this luma `[64, 96]` (64 black, 940 white), stored without loss."""
    chroma = np.full((32, 48), 512, np.uint16).tobytes()
    raw = (luma.astype(np.uint16).tobytes() + chroma * 2) * 3
    reading = ["-f", "rawvideo", "-pix_fmt", "yuv420p10le", "-s", "96x64", "-r", "24", "-i", "pipe:"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *reading, "-vf", f"setparams={setting}", *codec]
    subprocess.run([*command, path], input=raw, check=True)
    facts = probe_video(path)
    assert facts.pixel_format == "yuv420p10le"
    return next(frame for _, frame in read_frames(path, facts, (96, 64), NO_FILE_BEYOND))


def signal(transfer: str, light: float) -> float:
    """The signal, 0..1, that shows a light in cd/m2 on a display of 1000 cd/m2 (ITU-R BT.2100, inverse EOTFs)."""
    if transfer == "pq":
        power = (light / 10_000) ** (2610 / 16384)
        return float(((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32))
    scene = (light / 1000) ** (1 / 1.2)
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return float(np.sqrt(3 * scene) if scene <= 1 / 12 else a * np.log(12 * scene - b) + c)


@pytest.mark.parametrize("transfer", HDR)
@pytest.mark.parametrize(
    ("light", "value"),
    # Up to 30 % of reference white as it is, by the gamma of 2.4 of a display (BT.1886); beyond, the curve's shoulder.
    [(light, 255 * (light / 203) ** (1 / 2.4)) for light in (2, 5, 20, 50)] + [(203, 216), (1000, 250)],
)
def test_one_light_has_one_value_whatever_transfer_it_was_stored_with(
    tmp_path: Path, transfer: str, light: float, value: float
) -> None:
    luma = np.full((64, 96), round(64 + 876 * signal(transfer, light)))
    setting = f"color_trc={HDR[transfer]}:color_primaries=bt2020:colorspace=bt2020nc:range=tv"
    path = tmp_path / "a.mp4"
    codec = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:lossless=1")
    frame = decoded(path, luma, setting, *codec)
    assert probe_video(path).transfer == transfer
    np.testing.assert_allclose(frame, value, atol=2)


def test_ten_bits_are_rounded_to_eight(tmp_path: Path) -> None:
    """A ramp from black to white: each to the nearest level of the formula."""
    luma = np.tile(np.linspace(64, 940, 96).round(), (64, 1))
    setting = "color_trc=bt709:color_primaries=bt709:colorspace=bt709:range=tv"
    frame = decoded(tmp_path / "a.mkv", luma, setting, "-c:v", "ffv1")
    error = frame - (255 * (luma - 64) / 876)[..., None]
    assert np.abs(error).max() < 0.6
    assert abs(error.mean()) < 0.1
    assert (frame.min(), frame.max()) == (0, 255)
