"""VBench's metrics against its formulas written out, with small seeded networks that keep the same contract."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

from framelora.evaluation.catalogue import PER_SAMPLE
from framelora.evaluation.vbench import BY_WEIGHTS, WrongNetwork, clip_pixels, consistency, dino_pixels

CPU = torch.device("cpu")
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
DINO_COLOUR = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_COLOUR = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP_FRAMES = np.random.default_rng(0).integers(0, 256, (5, 40, 72, 3), dtype=np.uint8)


def value(name: str, path: Path, frames: NDArray[np.uint8], fps: float = 8.0) -> float | None:
    return BY_WEIGHTS[name](path, CPU, fps)(frames)


def written_out(features: NDArray[np.floating]) -> float:
    """Per frame from the second, the mean of max(0, cos) to the one before and to the first; then the mean."""

    def cosine(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
        return max(0.0, float(one @ other / math.sqrt(one @ one) / math.sqrt(other @ other)))

    rows = range(1, len(features))
    return float(np.mean([(cosine(features[t], features[t - 1]) + cosine(features[t], features[0])) / 2 for t in rows]))


def by_pillow(
    resample: Image.Resampling, height: int, width: int, frames: NDArray[np.uint8] = CLIP_FRAMES
) -> NDArray[np.float64]:
    """The frames in [0, 1], resized channel by channel by another library: `[F, H, W, 3]`."""
    return np.stack(
        [
            np.stack(
                [
                    np.asarray(Image.fromarray(frame[..., c].astype(np.float32)).resize((width, height), resample))
                    for c in range(3)
                ],
                axis=-1,
            )
            for frame in frames
        ]
    ) / np.float64(255)


def as_input(pixels: NDArray[np.floating], mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    return torch.from_numpy(((pixels - mean) / deviation).transpose(0, 3, 1, 2)).float()


@pytest.fixture
def dino(tmp_path: Path) -> tuple[Path, ViTModel]:
    torch.manual_seed(0)
    network = ViTModel(ViTConfig(**SMALL), add_pooling_layer=False).eval()
    network.save_pretrained(tmp_path / "dino")
    return tmp_path / "dino", network


def test_larger_frames_are_anti_aliased() -> None:
    large = np.random.default_rng(1).integers(0, 256, (2, 320, 576, 3), dtype=np.uint8)
    pixels = by_pillow(Image.Resampling.BILINEAR, 224, 403, large)
    assert torch.allclose(dino_pixels(large), as_input(pixels, *DINO_COLOUR), atol=2e-3)
    pixels = by_pillow(Image.Resampling.BICUBIC, 224, 403, large)[:, :, 90:314]
    assert torch.allclose(clip_pixels(large), as_input(pixels, *CLIP_COLOUR), atol=2e-3)


def test_subject_consistency_is_that_of_the_class_token_of_whole_frames(dino: tuple[Path, ViTModel]) -> None:
    path, network = dino
    pixels = as_input(by_pillow(Image.Resampling.BILINEAR, 224, 403), *DINO_COLOUR)  # 72 * 224 / 40 = 403.2
    assert torch.allclose(dino_pixels(CLIP_FRAMES), pixels, atol=2e-3)
    with torch.inference_mode():
        features = network(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0].numpy()
    assert value("subject_consistency", path, CLIP_FRAMES) == pytest.approx(written_out(features), abs=1e-4)
    still = np.repeat(CLIP_FRAMES[:1], 4, axis=0)
    assert value("subject_consistency", path, still) == pytest.approx(1)


def test_background_consistency_is_that_of_clips_embedding_of_the_middle_square(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = CLIPVisionConfig(**SMALL, projection_dim=8, image_size=224, patch_size=32)
    network = CLIPVisionModelWithProjection(config).eval()
    network.save_pretrained(tmp_path / "clip")
    wide = by_pillow(Image.Resampling.BICUBIC, 224, 403)[:, :, 90:314]  # (403 - 224) / 2 = 89.5, to the even side
    pixels = as_input(wide, *CLIP_COLOUR)
    assert torch.allclose(clip_pixels(CLIP_FRAMES), pixels, atol=2e-3)
    with torch.inference_mode():
        features = network(pixel_values=pixels).image_embeds.numpy()
    found = value("background_consistency", tmp_path / "clip", CLIP_FRAMES)
    assert found == pytest.approx(written_out(features), abs=1e-4)


def test_opposite_features_count_as_zero() -> None:
    features = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [3.0, 3.0]])
    root = math.sqrt(0.5)
    assert consistency(features) == pytest.approx((0 + 0 + (root + root) / 2) / 3)


class Halfway(nn.Module):
    """An interpolation that is a little too bright."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        assert one.shape[2] % 16 == 0 and one.shape[3] % 16 == 0
        assert float(one.max()) <= 1
        return (one + other) / 2 + 0.02


class Shift(nn.Module):
    """A flow whose length is the brightness of the other frame's pixel, 3 : 4 in x and y."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        assert one.shape[2] % 8 == 0 and one.shape[3] % 8 == 0
        brightness = other.mean(dim=1, keepdim=True)
        return torch.cat([0.6 * brightness, 0.8 * brightness], dim=1)


def script(network: nn.Module, path: Path) -> Path:
    torch.jit.script(network).save(str(path))
    return path


@pytest.mark.parametrize("count", [3, 5, 6])
def test_motion_smoothness_compares_every_second_frame_with_its_neighbours_interpolation(
    tmp_path: Path, count: int
) -> None:
    frames = np.concatenate([CLIP_FRAMES, CLIP_FRAMES[:1]])[:count]
    path = script(Halfway(), tmp_path / "amt.pt")
    differences = []
    for at in range(1, count - 1, 2):
        made = (frames[at - 1] / 255 + frames[at + 1] / 255) / 2 + 0.02
        levels = np.floor(np.clip(made * 255, 0, 255))
        differences.append(np.abs(levels - frames[at]).mean())
    found = value("motion_smoothness", path, frames)
    assert found == pytest.approx((255 - np.mean(differences)) / 255, abs=2e-5)  # a level here and there, in float32
    assert value("motion_smoothness", path, frames[:2]) is None


def moving(lengths: list[float], share: float = 0.05) -> NDArray[np.uint8]:
    """Frames of 40 by 80 pixels in which a share of the pixels moves so far from the frame before."""
    frames = np.zeros((len(lengths) + 1, 40, 80, 3), np.uint8)
    for number, length in enumerate(lengths, start=1):
        frames[number].reshape(-1, 3)[: int(40 * 80 * share)] = round(length)
    return frames


@pytest.mark.parametrize(
    ("lengths", "fps", "expected"),
    [
        ([1, 0, 0, 0, 0, 0, 0], 8.0, 0.0),  # 6 / 256 of 40 pixels is 0.94; two of eight frames are needed
        ([1, 0, 0, 0, 0, 1, 0], 8.0, 1.0),
        ([0, 0, 0, 0, 0, 0, 0], 8.0, 0.0),
        ([0], 8.0, 0.0),  # round(2 / 4) is none, but something has to move
        ([1], 8.0, 1.0),
        ([9, 0, 9, 0, 9, 0, 9], 16.0, 0.0),  # every second frame: only the still ones are compared
    ],
)
def test_a_clip_moves_when_enough_of_its_frames_do(
    tmp_path: Path, lengths: list[float], fps: float, expected: float
) -> None:
    assert value("dynamic_degree", script(Shift(), tmp_path / "raft.pt"), moving(lengths), fps) == expected


def test_the_motion_that_counts_is_the_mean_of_the_fastest_twentieth(tmp_path: Path) -> None:
    path = script(Shift(), tmp_path / "raft.pt")
    assert value("dynamic_degree", path, moving([2.0], share=0.025)) == 1.0  # a mean of 1 over the twentieth
    assert value("dynamic_degree", path, moving([2.0], share=0.02)) == 0.0  # of 0.8


class TestWhatIsGiven:
    def test_another_network_is_refused_by_its_type(self, tmp_path: Path) -> None:
        Dinov2Model(Dinov2Config(**{**SMALL, "mlp_ratio": 1})).save_pretrained(tmp_path / "dinov2")
        with pytest.raises(WrongNetwork, match="of type dinov2: give one of type vit"):
            value("subject_consistency", tmp_path / "dinov2", CLIP_FRAMES)

    def test_a_folder_without_all_weights_is_refused(self, dino: tuple[Path, ViTModel]) -> None:
        from safetensors.torch import load_file, save_file

        path = dino[0] / "model.safetensors"
        weights = load_file(path)
        save_file({name: tensor for name, tensor in weights.items() if "layernorm." not in name}, path)
        with pytest.raises(WrongNetwork, match="lacks weights, for example layernorm"):
            value("subject_consistency", dino[0], CLIP_FRAMES)
        path.unlink()
        with pytest.raises(WrongNetwork, match=r"needs config\.json and model\.safetensors"):
            value("subject_consistency", dino[0], CLIP_FRAMES)

    def test_a_pickled_network_is_not_opened(self, dino: tuple[Path, ViTModel], tmp_path: Path) -> None:
        path, network = dino
        (path / "model.safetensors").unlink()
        torch.save(network.state_dict(), path / "pytorch_model.bin")
        with pytest.raises(WrongNetwork, match=r"needs config\.json and model\.safetensors"):
            value("subject_consistency", path, CLIP_FRAMES)
        torch.save(network.state_dict(), tmp_path / "raft.pth")
        with pytest.raises(WrongNetwork, match="no TorchScript file"):
            value("dynamic_degree", tmp_path / "raft.pth", CLIP_FRAMES)

    def test_an_output_of_another_shape_is_told(self, tmp_path: Path) -> None:
        path = script(Shift(), tmp_path / "raft.pt")
        with pytest.raises(WrongNetwork, match=r"makes \(1, 2, 48, 80\) of two frames of \(1, 3, 48, 80\)"):
            value("motion_smoothness", path, CLIP_FRAMES)


def test_the_catalogue_says_which_metrics_need_weights() -> None:
    assert [name for name, metric in PER_SAMPLE.items() if metric.needs_weights] == list(BY_WEIGHTS)
