"""Our pipeline against numbers that the original one gave for the same weights and inputs.

`tests/data/framer_golden.safetensors` holds the latents that Framer's own pipeline (aim-uofa/Framer at d0ba81f,
`StableVideoDiffusionInterpControlPipeline`) returned on a CPU in fp32 for the small model below, with one change to its
code: the temporal cross-attention context in the order (batch, pixels), as diffusers has it since 0.31.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from framelora.families.framer.networks.controlnet import TrajectoryControlNet
from framelora.families.framer.networks.tracks import interpolate_tracks
from framelora.families.framer.networks.unet import FramerUNet
from framelora.families.framer.pipeline import FramerPipeline

GOLDEN = Path(__file__).resolve().parents[1] / "data/framer_golden.safetensors"
UNET = {
    "sample_size": 32,
    "block_out_channels": (32, 64),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "cross_attention_dim": 32,
    "num_attention_heads": (4, 8),
    "projection_class_embeddings_input_dim": 96,
    "addition_time_embed_dim": 32,
    "num_frames": 5,
}
VAE = {"block_out_channels": [32] * 4, "down_block_types": ["DownEncoderBlock2D"] * 4, "layers_per_block": 1}
CLIP = {
    "hidden_size": 32,
    "projection_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 224,
    "intermediate_size": 37,
    "patch_size": 32,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
WIDTH, HEIGHT, FRAMES = 128, 64, 7
TRACKS = [[(20.0, 30.0), (60.0, 50.0), (100.0, 20.0)], [(3.0, 60.0), (120.0, 62.0)]]
CASES: dict[str, dict[str, Any]] = {
    "steered": {},
    "middle_max": {"middle_max_guidance": True},
    "part_of_the_steps": {"controlnet_step_range": (0.3, 0.8), "controlnet_cond_scale": 0.5},
    "other_conditions": {"min_guidance_scale": 2.0, "max_guidance_scale": 4.0, "motion_bucket_id": 100, "fps": 9},
    "more_noise_on_the_ends": {"noise_aug_strength": 0.1},
    "unsteered": {"point_tracks": None},
}


def fill(module: nn.Module, scale: float = 0.08) -> nn.Module:
    """Give every parameter values that need no random generator: sines that look like noise, others for each name."""
    for name, parameter in module.named_parameters():
        steps = torch.arange(parameter.numel(), dtype=torch.float64)
        phase = sum(map(ord, name))
        values = scale * torch.sin(0.37 * steps.square() + phase) * (1 if parameter.ndim > 1 else 0.5)
        if name.endswith("weight") and parameter.ndim == 1:
            values += 1.0  # norms
        parameter.data = values.reshape(parameter.shape).to(parameter.dtype)
    return module.eval()


def wave(*shape: int, speed: float = 1.3) -> Tensor:
    """Numbers of about unit size that look like noise, `shape`."""
    count = torch.tensor(shape).prod()
    return torch.sin(speed * torch.arange(float(count), dtype=torch.float64).square()).float().reshape(shape) * 1.4


def picture(shift: int) -> Image.Image:
    """Smooth colours, 420x300 pixels."""
    y, x = torch.meshgrid(torch.arange(300.0), torch.arange(420.0), indexing="ij")
    planes = [torch.sin((x + shift * 9) / 23 + k) + torch.cos(y / (17 + 3 * k) - shift) for k in range(3)]
    return Image.fromarray(((torch.stack(planes, dim=2) + 2) * 63).to(torch.uint8).numpy())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    parts = {
        "unet": fill(FramerUNet(**UNET)),
        "controlnet": fill(TrajectoryControlNet(**UNET, conditioning_embedding_out_channels=(16, 32, 96, 256))),
        "vae": fill(AutoencoderKLTemporalDecoder(**VAE)),
        "image_encoder": fill(CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP))),
        "feature_extractor": CLIPImageProcessor(),
        "scheduler": EulerDiscreteScheduler(**SCHEDULER),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def pipeline(base: Path) -> FramerPipeline:
    return FramerPipeline(base, controlnet=True)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", CASES)
def test_latents_equal_those_of_the_original_pipeline(pipeline: FramerPipeline, case: str) -> None:
    golden = load_file(GOLDEN)[case]
    options = {"point_tracks": interpolate_tracks(TRACKS, FRAMES), "noise_aug_strength": 0.0} | CASES[case]
    generator = torch.Generator().manual_seed(3)
    latents = pipeline(
        picture(0),
        picture(1),
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=4,
        latents=wave(1, FRAMES, 4, HEIGHT // 8, WIDTH // 8),
        generator=generator,
        output_type="latent",
        **options,
    )
    assert float(golden.std()) > 0.1
    torch.testing.assert_close(latents, golden, rtol=0, atol=5e-5)


def test_the_cases_differ_by_far_more_than_the_tolerance() -> None:
    golden = load_file(GOLDEN)
    names = sorted(golden)
    distances = [
        float((golden[one] - golden[other]).abs().max())
        for index, one in enumerate(names)
        for other in names[index + 1 :]
    ]
    assert min(distances) > 5e-3
