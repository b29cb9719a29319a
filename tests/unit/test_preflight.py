"""What this machine or its packages can't do is refused before anything is loaded, by the parameter's name."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from torch import nn

from framelora.console import UserError
from framelora.params import Params, load_params
from framelora.schema.training import Adapter, Train
from framelora.training import preflight
from framelora.training.optimizer import Stepper


def with_values(**values: Any) -> Params:
    """The shipped parameters, some of `train` and `adapter` changed: `section__leaf=value`."""
    params = load_params(REPOSITORY / "params.yaml")
    sections: dict[str, dict[str, Any]] = {"train": params.train.model_dump(), "adapter": params.adapter.model_dump()}
    for name, value in values.items():
        section, leaf = name.split("__")
        sections[section][leaf] = value
    made = {"train": Train.model_validate(sections["train"]), "adapter": Adapter.model_validate(sections["adapter"])}
    return params.model_copy(update=made)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The packages that are found; a test takes some away, or adds some."""
    found = {"bitsandbytes", "prodigyopt"}
    real = preflight.importlib.util.find_spec
    optional = set(found)

    def find(name: str) -> Any:
        return (SimpleNamespace() if name in found else None) if name in optional else real(name)

    monkeypatch.setattr(preflight.importlib.util, "find_spec", find)
    return found


@pytest.mark.parametrize(
    ("values", "missing", "gpu", "told"),
    [
        (
            {"train__mixed_precision": "fp16"},
            None,
            False,
            "train.mixed_precision: fp16 needs a GPU: set it to bf16 or no",
        ),
        ({"train__optimizer": "adamw_8bit"}, None, False, "train.optimizer: adamw_8bit needs a GPU: set it to adamw"),
        ({"train__optimizer": "adamw_8bit"}, "bitsandbytes", True, "train.optimizer: adamw_8bit needs bitsandbytes"),
        (
            {"train__optimizer": "adamw_8bit", "train__offload_optimizer": True},
            None,
            True,
            "train.offload_optimizer: adamw_8bit steps on the GPU",
        ),
        ({"train__optimizer": "prodigy"}, "prodigyopt", False, "train.optimizer: prodigy needs prodigyopt"),
        ({"train__base_int8": True}, "bitsandbytes", False, "train.base_int8 needs bitsandbytes"),
        (
            {"train__base_int8": True, "adapter__init": "pissa"},
            None,
            False,
            "train.base_int8: PiSSA and DoRA need the base's exact weights",
        ),
        (
            {"train__base_fp8": True, "train__gradient_checkpointing": True, "adapter__use_dora": True},
            None,
            False,
            "train.base_fp8: PiSSA and DoRA need the base's exact weights",
        ),
        ({"train__single_files": True, "adapter__use_dora": True}, None, False, "train.single_files: only a LoRA"),
        ({"train__single_files": True, "train__unet": "full"}, None, False, "train.single_files: only a LoRA"),
    ],
)
def test_what_can_not_be_is_refused(
    values: dict[str, Any],
    missing: str | None,
    gpu: bool,
    told: str,
    packages: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    packages.discard(missing or "")
    with pytest.raises(UserError) as refused:
        preflight.check_parameters(with_values(**values))
    assert str(refused.value).startswith(told)
    assert "\n" not in str(refused.value)


def test_what_can_be_is_not(packages: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    preflight.check_parameters(with_values())
    preflight.check_parameters(with_values(train__optimizer="prodigy", train__base_int8=True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    preflight.check_parameters(with_values(train__optimizer="adamw_8bit", train__mixed_precision="fp16"))


def test_8_bit_states_are_the_packages_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the package's boundary: it needs a GPU, so its arithmetic was never run here."""
    made: list[dict[str, Any]] = []

    class AdamW8bit(torch.optim.AdamW):
        def __init__(self, parameters: Any, **options: Any) -> None:
            made.append(options)
            super().__init__(parameters, **options)

    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["bitsandbytes.optim"], "AdamW8bit", AdamW8bit, raising=False)
    layer = nn.Linear(4, 4)
    train = with_values(train__optimizer="adamw_8bit", train__adam_beta2=0.9).train
    stepper = Stepper({"unet.weight": layer.weight}, {"unet": 1e-2}, train)
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 4)).sum().backward()
    stepper.step(None)
    assert made[0]["betas"] == (train.adam_beta1, 0.9)
    assert not torch.equal(layer.weight, before)
