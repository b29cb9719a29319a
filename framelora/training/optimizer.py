"""Optimizers, their schedules, and their states as tensors and JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

if TYPE_CHECKING:
    from framelora.schema.training import Train


CHOSEN = ("lr", "weight_decay", "eps")  # a group's numbers that come of the parameters


class Stepper:
    """An optimizer over named parameters, or over copies of them in the CPU's memory.

    Args:
        parameters: what is trained; the part of a name before the first dot is its network.
        rates: learning rate of each network.
        params: the `train` section.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float], params: Train) -> None:
        self.parameters = dict(parameters)
        self.offloaded = params.offload_optimizer
        self.stepped = {
            name: nn.Parameter(parameter.detach().cpu().clone()) if self.offloaded else parameter
            for name, parameter in self.parameters.items()
        }
        self.rates = {name: rate for name, rate in rates.items() if any(network(key) == name for key in parameters)}
        groups = [
            {"params": [value for name, value in self.stepped.items() if network(name) == part], "lr": rate}
            for part, rate in self.rates.items()
        ]
        self.names = [name for part in self.rates for name in self.parameters if network(name) == part]
        self.name = params.optimizer
        self.optimizer = build(groups, params)

    def set_factor(self, factor: float) -> None:
        """Set each learning rate to a share of its own (the schedule's value at this step)."""
        for group, rate in zip(self.optimizer.param_groups, self.rates.values(), strict=True):
            group["lr"] = rate * factor

    def clip(self, max_norm: float, scaler: Any) -> float:
        """Take the gradients over, undo the loss scaling, clip them; gives their norm before."""
        if self.offloaded:
            for name, parameter in self.parameters.items():
                self.stepped[name].grad = None if parameter.grad is None else parameter.grad.to("cpu", torch.float32)
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        return float(torch.nn.utils.clip_grad_norm_(self.stepped.values(), max_norm))

    @torch.no_grad()
    def step(self, scaler: Any) -> None:
        """One optimizer step; with a loss scaler an overflow skips it."""
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        if self.offloaded:
            for name, parameter in self.parameters.items():
                parameter.copy_(self.stepped[name])
        for parameter in (*self.parameters.values(), *self.stepped.values()):
            parameter.grad = None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimizer's state: tensors named `parameter|part`; its name, and numbers of groups and parameters."""
        whole = self.optimizer.state_dict()
        tensors, numbers = {}, {}
        for index, parts in whole["state"].items():
            for part, value in parts.items():
                name = f"{self.names[index]}|{part}"
                if isinstance(value, Tensor):
                    tensors[name] = value.detach().cpu().clone()
                else:
                    numbers[name] = value
        groups = [changing(group) for group in whole["param_groups"]]
        return tensors, {"name": self.name, "groups": groups, "numbers": numbers}

    def load_state(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Put back what `state` gave, once the parameters have their values."""
        state: dict[int, dict[str, Any]] = {}
        for name, value in {**tensors, **scalars["numbers"]}.items():
            parameter, _, part = name.rpartition("|")
            state.setdefault(self.names.index(parameter), {})[part] = value
        groups = self.optimizer.state_dict()["param_groups"]
        groups = [group | saved for group, saved in zip(groups, scalars["groups"], strict=True)]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self.offloaded:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    self.stepped[name].copy_(parameter)


def network(name: str) -> str:
    """The network of a parameter's name."""
    return name.partition(".")[0]


def changing(group: Mapping[str, Any]) -> dict[str, int | float]:
    """The numbers of an optimizer's group that a step may change: Prodigy's estimate of the step size.

    Those that the parameters choose are not among them: a run that goes on under others steps by the new ones.
    """
    numbers = {name: value for name, value in group.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if type(value) is not bool and name not in CHOSEN}


def learning_rates(networks: Iterable[str], params: Train) -> dict[str, float]:
    """Learning rate of each network."""
    own = {"controlnet": params.controlnet_learning_rate}
    rates = {name: own.get(name) for name in networks}
    return {name: params.learning_rate if rate is None else rate for name, rate in rates.items()}


def build(groups: list[dict[str, Any]], params: Train) -> torch.optim.Optimizer:
    """The optimizer that `train.optimizer` names."""
    shared: dict[str, Any] = {
        "betas": (params.adam_beta1, params.adam_beta2),
        "weight_decay": params.adam_weight_decay,
        "eps": params.adam_epsilon,
    }
    if params.optimizer == "prodigy":
        from prodigyopt import Prodigy

        # Bias correction and the safeguard are what its authors advise for fine-tuning diffusion models.
        return Prodigy(groups, use_bias_correction=True, safeguard_warmup=True, **shared)
    if params.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **shared)
    return torch.optim.AdamW(groups, **shared)


def learning_rate_factor(params: Train, steps: int) -> Callable[[int], float]:
    """The schedule: a factor on the learning rate for a step counted from 0; warm-up is in optimizer steps.

    diffusers' warm-up begins at 0, so its first step learns nothing and a run of one step saves an untrained adapter.
    Ours rises from 1 / warm-up at the first step to 1 at the last of the warm-up; what follows is diffusers'.
    """
    probe = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup = 0 if params.lr_scheduler == "constant" else params.lr_warmup_steps
    schedule = get_scheduler(params.lr_scheduler, probe, num_warmup_steps=warmup, num_training_steps=steps)
    after: Callable[[int], float] = schedule.lr_lambdas[0]
    return lambda step: (step + 1) / warmup if step < warmup else after(step)
