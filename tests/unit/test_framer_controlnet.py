"""Framer's trajectory ControlNet, its residuals in the UNet, and checkpoints of other origins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from diffusers import UNetSpatioTemporalConditionModel
from torch.nn import functional

from framelora.families.framer.networks.controlnet import (
    SteeredUNet,
    TrajectoryControlNet,
    load_controlnet,
    new_controlnet,
)
from framelora.families.framer.networks.unet import FramerUNet, added_time_ids, load_unet

BASE = REPOSITORY / "bases/tiny-framer"
SMALL = {
    "sample_size": 8,
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "layers_per_block": 1,
    "num_attention_heads": (2, 4),
    "cross_attention_dim": 32,
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 96,
}


@pytest.fixture(scope="module")
def unet() -> FramerUNet:
    return load_unet(BASE).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def controlnet(unet: FramerUNet) -> TrajectoryControlNet:
    """As if it had been trained: nothing in it is zero."""
    network = new_controlnet(unet, vae_factor=4, seed=0).eval().requires_grad_(False)
    torch.manual_seed(1)
    for name, parameter in network.named_parameters():
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def inputs(size: int = 1, frames: int = 4) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Sample, timestep, conditions, heatmaps."""
    generator = torch.Generator().manual_seed(2)
    conditions = {
        "encoder_hidden_states": torch.randn(size, 2, 32, generator=generator),
        "added_time_ids": added_time_ids(size, 7, 127, 0.02),
    }
    sample = torch.randn(size, frames, 17, 8, 12, generator=generator)
    return sample, torch.tensor(0.3), conditions, 255 * torch.rand(size, frames, 3, 32, 48, generator=generator)


class TestPublishedCheckpoint:
    @pytest.fixture
    def published(self) -> dict[str, Any]:
        keys: dict[str, Any] = json.loads((REPOSITORY / "tests/data/framer_controlnet_keys.json").read_text())
        return keys

    def test_names_and_shapes_at_full_size_are_those_of_the_checkpoint(self, published: dict[str, Any]) -> None:
        with torch.device("meta"):
            full = TrajectoryControlNet(**published["config"])
        assert {name: list(tensor.shape) for name, tensor in full.state_dict().items()} == published["shapes"]
        assert sum(parameter.numel() for parameter in full.parameters()) == 682_024_417

    def test_a_published_folder_loads_with_its_own_configuration(self, unet: FramerUNet, tmp_path: Path) -> None:
        """Published configurations carry another class name and the switches of point embeddings."""
        network = new_controlnet(unet, vae_factor=4, seed=3)
        network.save_pretrained(tmp_path / "controlnet")
        path = tmp_path / "controlnet/config.json"
        config = json.loads(path.read_text()) | {"_class_name": "ControlNetSVDModel", "with_id_feature": False}
        path.write_text(json.dumps(config))
        loaded = load_controlnet(tmp_path)
        assert loaded.state_dict().keys() == network.state_dict().keys()
        assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in network.state_dict().items())
        path.write_text(json.dumps(config | {"with_id_feature": True}))
        with pytest.raises(ValueError, match="with_id_feature"):
            load_controlnet(tmp_path)

    def test_a_base_without_controlnet_is_told_by_its_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="controlnet"):
            load_controlnet(tmp_path)


class TestStockUNet:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        torch.manual_seed(4)
        UNetSpatioTemporalConditionModel(**SMALL).save_pretrained(tmp_path / "unet")
        return tmp_path

    def test_it_is_widened_on_loading_the_same_way_each_time(self, folder: Path) -> None:
        stock = UNetSpatioTemporalConditionModel.from_pretrained(folder / "unet")
        first, second = load_unet(folder), load_unet(folder)
        assert first.config.in_channels == 9
        assert first.conv_in.weight.shape == (32, 9, 3, 3)
        assert first.mask_token.shape == (1, 1, 4, 1, 1)
        kept = {name: tensor for name, tensor in stock.state_dict().items() if name != "conv_in.weight"}
        assert all(torch.equal(first.state_dict()[name], tensor) for name, tensor in kept.items())
        assert torch.equal(first.conv_in.weight[:, :8], stock.conv_in.weight)
        assert first.conv_in.weight[:, 8:].std().item() == pytest.approx(1, abs=0.2)
        assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
        assert all(parameter.device.type == "cpu" and parameter.requires_grad for parameter in first.parameters())

    def test_it_runs_and_comes_back_from_disk_as_a_framer_unet(self, folder: Path, tmp_path: Path) -> None:
        unet = load_unet(folder).eval()
        unet.save_pretrained(tmp_path / "again/unet")
        again = load_unet(tmp_path / "again").eval()
        sample, timestep, conditions, _ = inputs()
        with torch.no_grad():
            sample = sample[:, :, : unet.config.in_channels]
            got = unet(sample, timestep, **conditions).sample
            assert got.isfinite().all()
            assert torch.equal(again(sample, timestep, **conditions).sample, got)


class TestResiduals:
    def test_without_residuals_the_unet_is_diffusers_own_bit_for_bit(self, unet: FramerUNet) -> None:
        sample, timestep, conditions, _ = inputs(2)
        expected = UNetSpatioTemporalConditionModel.forward(unet, sample, timestep, **conditions).sample
        assert torch.equal(unet(sample, timestep, **conditions).sample, expected)

    def test_a_new_controlnet_changes_nothing(self, unet: FramerUNet) -> None:
        sample, timestep, conditions, hints = inputs(2)
        steered = SteeredUNet(unet, new_controlnet(unet, vae_factor=4, seed=5).eval())
        plain = unet(sample, timestep, **conditions).sample
        assert torch.equal(steered(sample, timestep, **conditions, hints=hints).sample, plain)
        assert torch.equal(steered(sample, timestep, **conditions).sample, plain)

    def test_residuals_join_the_skip_connections_and_the_middle(
        self, unet: FramerUNet, controlnet: TrajectoryControlNet
    ) -> None:
        """The UNet written out block by block, with the residuals added where Framer adds them."""
        sample, timestep, conditions, hints = inputs(2)
        scale, frames = 0.7, sample.shape[1]
        got = SteeredUNet(unet, controlnet)(sample, timestep, **conditions, hints=hints, conditioning_scale=scale)

        def encode(
            network: Any, extra: torch.Tensor | float
        ) -> tuple[list[torch.Tensor], torch.Tensor, dict[str, Any]]:
            time = network.time_embedding(network.time_proj(timestep[None].expand(2)))
            ids = network.add_time_proj(conditions["added_time_ids"].flatten()).reshape(2, -1)
            more = {
                "temb": (time + network.add_embedding(ids)).repeat_interleave(frames, 0),
                "image_only_indicator": torch.zeros(2, frames),
            }
            context = {"encoder_hidden_states": conditions["encoder_hidden_states"].repeat_interleave(frames, 0)}
            hidden = network.conv_in(sample.flatten(0, 1)) + extra
            skips = [hidden]
            for block in network.down_blocks:
                crosses = context if hasattr(block, "attentions") else {}
                hidden, made = block(hidden, **more, **crosses)
                skips += made
            return skips, network.mid_block(hidden, **more, **context), {"more": more, "context": context}

        features = controlnet.controlnet_cond_embedding.conv_in(hints.flatten(0, 1))
        for layer in controlnet.controlnet_cond_embedding.blocks:
            features = layer(functional.silu(features))
        features = controlnet.controlnet_cond_embedding.conv_out(functional.silu(features))
        steering, middle, _ = encode(controlnet, features)
        skips, hidden, state = encode(unet, 0.0)
        skips = [
            skip + scale * layer(own)
            for skip, layer, own in zip(skips, controlnet.controlnet_down_blocks, steering, strict=True)
        ]
        hidden = hidden + scale * controlnet.controlnet_mid_block(middle)
        for block in unet.up_blocks:
            taken = tuple(skips.pop() for _ in block.resnets)[::-1]
            crosses = state["context"] if hasattr(block, "attentions") else {}
            hidden = block(hidden_states=hidden, res_hidden_states_tuple=taken, **state["more"], **crosses)
        expected = unet.conv_out(functional.silu(unet.conv_norm_out(hidden))).unflatten(0, (2, frames))
        torch.testing.assert_close(got.sample, expected, rtol=1e-4, atol=1e-5)
        assert (got.sample - unet(sample, timestep, **conditions).sample).abs().max() > 0.1

    def test_a_wrong_number_of_residuals_is_refused(self, unet: FramerUNet) -> None:
        sample, timestep, conditions, _ = inputs()
        with pytest.raises(ValueError, match="skip connections"):
            unet(
                sample,
                timestep,
                **conditions,
                down_block_additional_residuals=[torch.zeros(1)],
                mid_block_additional_residual=torch.zeros(1),
            )

    def test_gradients_reach_the_controlnet_through_the_frozen_unet(self, unet: FramerUNet) -> None:
        """The guide's code never runs its ControlNet in training, so its weights could not change."""
        controlnet = new_controlnet(unet, vae_factor=4, seed=6)
        steered = SteeredUNet(unet, controlnet)
        steered.enable_gradient_checkpointing()
        sample, timestep, conditions, hints = inputs()
        steered.train()(sample, timestep, **conditions, hints=hints).sample.square().mean().backward()
        steered.eval()
        first_to_learn = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
        assert all(layer.weight.grad is not None and layer.weight.grad.abs().max() > 0 for layer in first_to_learn)
        assert all(parameter.grad is None for parameter in unet.parameters())
