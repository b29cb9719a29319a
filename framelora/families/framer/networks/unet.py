"""Framer's denoiser: Stable Video Diffusion's UNet given a first and a last frame.

Names and shapes follow the published checkpoint (aim-uofa/Framer, `models_diffusers/`): a stock
spatio-temporal UNet whose `conv_in` takes 2C+1 channels instead of 2C, plus one learned `mask_token`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionOutput
from torch import Tensor, nn

from framelora.families.framer.networks.residuals import added_residuals

# The Linear layers that the FramerTurbo guide adapts (attention, projections and feed-forward, spatial and temporal).
DEFAULT_LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")

CONVERSION_SEED = 20241024  # of what a stock SVD UNet lacks


class FramerUNet(UNetSpatioTemporalConditionModel):
    """SVD's UNet with a learned token that stands for the unknown latents of the middle frames.

    Input per frame: C noisy latents, C condition latents (mask token on the middles), 1 mask channel.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 9,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "DownBlockSpatioTemporal",
        ),
        up_block_types: tuple[str, ...] = (
            "UpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
        ),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        addition_time_embed_dim: int = 256,
        projection_class_embeddings_input_dim: int = 768,
        layers_per_block: int | tuple[int, ...] = 2,
        cross_attention_dim: int | tuple[int, ...] = 1024,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        num_attention_heads: int | tuple[int, ...] = (5, 10, 20, 20),
        num_frames: int = 25,
    ) -> None:
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            addition_time_embed_dim=addition_time_embed_dim,
            projection_class_embeddings_input_dim=projection_class_embeddings_input_dim,
            layers_per_block=layers_per_block,
            cross_attention_dim=cross_attention_dim,
            transformer_layers_per_block=transformer_layers_per_block,
            num_attention_heads=num_attention_heads,
            num_frames=num_frames,
        )
        self.mask_token = nn.Parameter(torch.randn(1, 1, out_channels, 1, 1))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        added_time_ids: Tensor,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNetSpatioTemporalConditionOutput | tuple[Tensor]:
        """diffusers' forward pass, to which a ControlNet's residuals are added where they are given.

        Args:
            sample: noisy latents and condition channels `[B, F, 2C+1, h, w]`.
            timestep: log(sigma) / 4, one value or `[B]`.
            encoder_hidden_states: CLIP embeddings of the first and the last frame `[B, 2, D]`.
            added_time_ids: `[B, 3]` of `added_time_ids`.
            down_block_additional_residuals: one for each skip connection `[B*F, C, h, w]`, with:
            mid_block_additional_residual: one for the middle block's output. Either both or neither.
            return_dict: False gives a tuple, as everywhere in diffusers.

        Returns:
            `sample` `[B, F, C, h, w]`: the network's raw output.
        """
        inputs: dict[str, Any] = {
            "encoder_hidden_states": encoder_hidden_states,
            "added_time_ids": added_time_ids,
            "return_dict": return_dict,
        }
        if down_block_additional_residuals is None or mid_block_additional_residual is None:
            return super().forward(sample, timestep, **inputs)
        with added_residuals(self, down_block_additional_residuals, mid_block_additional_residual):
            return super().forward(sample, timestep, **inputs)

    def condition(self, first: Tensor, last: Tensor, num_frames: int) -> Tensor:
        """Lay the condition channels of a clip: first and last latents at the ends, the mask token between.

        Args:
            first: condition latents of the first frame, unscaled, `[B, C, h, w]`.
            last: the same of the last frame.
            num_frames: F, at least 3.

        Returns:
            `[B, F, C+1, h, w]`: C condition channels and the mask (0 on both ends, 1 elsewhere).
        """
        batch_size, channels, height, width = first.shape
        middle = self.mask_token.to(first.dtype).expand(batch_size, num_frames - 2, channels, height, width)
        latents = torch.cat([first[:, None], middle, last[:, None]], dim=1)
        mask = torch.ones_like(latents[:, :, :1])
        mask[:, 0] = 0
        mask[:, -1] = 0
        return torch.cat([latents, mask], dim=2)


def load_unet(base: Path, dtype: torch.dtype = torch.float32) -> FramerUNet:
    """Load the denoiser of a base model folder (`base/unet`): a published Framer UNet, or a stock SVD UNet.

    A stock UNet has 2C input channels and no mask token: it is widened on loading, with the new parts random normal (as
    Framer's own training began) from a fixed seed.
    """
    folder = base / "unet"
    config: dict[str, Any] = UNetSpatioTemporalConditionModel.load_config(folder, local_files_only=True)
    if not is_stock(config):
        return FramerUNet.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    stock = UNetSpatioTemporalConditionModel.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    return widen(stock)


def is_stock(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is a stock SVD UNet's, with 2C input channels (what it leaves out is as Framer's)."""
    return bool(config.get("in_channels", 9) == 2 * config.get("out_channels", 4))


def widen(stock: UNetSpatioTemporalConditionModel) -> FramerUNet:
    """A FramerUNet with the weights of a stock SVD UNet; the stock UNet's tensors are shared, not copied."""
    config = {name: value for name, value in stock.config.items() if not name.startswith("_")}
    with torch.device("meta"):
        unet = FramerUNet(**config | {"in_channels": stock.config.in_channels + 1})
    weights = stock.state_dict()
    kernel = weights["conv_in.weight"]
    generator = torch.Generator().manual_seed(CONVERSION_SEED)
    mask_channel = torch.randn(kernel[:, :1].shape, generator=generator).to(kernel)
    mask_token = torch.randn(unet.mask_token.shape, generator=generator).to(kernel)
    weights |= {"conv_in.weight": torch.cat([kernel, mask_channel], dim=1), "mask_token": mask_token}
    unet.load_state_dict(weights, assign=True)
    return unet.train(stock.training)


def added_time_ids(batch_size: int, fps: int, motion_bucket_id: int, noise_aug_strength: float | Tensor) -> Tensor:
    """SVD's micro-conditioning `[B, 3]`: (fps - 1, motion bucket, noise augmentation of the condition images).

    SVD was trained on fps - 1 (Framer's pipeline passes the same); training and rendering use this one function.

    Args:
        batch_size: B.
        fps: frame rate as people say it.
        motion_bucket_id: SVD's motion bucket.
        noise_aug_strength: standard deviation of the pixel noise on the condition images, one for all or `[B]`.
    """
    ids = torch.tensor([[fps - 1, motion_bucket_id, 0.0]], dtype=torch.float32).repeat(batch_size, 1)
    ids[:, 2] = torch.as_tensor(noise_aug_strength, dtype=torch.float32)
    return ids


def bare_unet(unet: nn.Module) -> FramerUNet:
    """The UNet inside the wrappers of peft and accelerate."""
    return next(module for module in unet.modules() if isinstance(module, FramerUNet))
