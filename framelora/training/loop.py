"""The training loop: one function, top to bottom.

Batch order, noise, dropout of captions and of LoRA inputs are functions of the seed and the step, so a run that is
killed and started again ends in the same bytes (fp32 on a CPU, same torch and threads).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from tqdm import tqdm

from framelora.dataset.sampler import BatchSampler
from framelora.digest import draw_seed
from framelora.training.checkpoint import Checkpoint, Checkpoints, load_optimizer_tensors, optimizer_tensors

if TYPE_CHECKING:
    from framelora.schema.training import Train

Batch = dict[str, Tensor]


class Diverged(Exception):
    """The loss is NaN or infinite; the text says at which step and on which items."""


@dataclass(frozen=True)
class Items:
    """Training or validation items, read when they are needed."""

    ids: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    read: Callable[[int], Batch]  # one item, without batch dimension

    def batch(self, numbers: Sequence[int], device: torch.device) -> Batch:
        """Items stacked to `[B, ...]`."""
        items = [self.read(number) for number in numbers]
        return {name: torch.stack([item[name] for item in items]).to(device) for name in items[0]}


def train(
    model: nn.Module,
    items: Items,
    validation: Items,
    loss: Callable[[nn.Module, Batch, Sequence[int]], Tensor],
    params: Train,
    checkpoints: Checkpoints,
) -> list[dict[str, float]]:
    """Train the parameters of a model that require gradients, in place.

    Args:
        model: denoiser with its adapter.
        items: what it learns from.
        validation: what the validation loss is measured on; may be empty.
        loss: `(model, batch, seeds) -> [B]`; all draws of an item are functions of its seed.
        params: the `train` section.
        checkpoints: where the run goes on from if it was killed.

    Returns:
        One row for each optimizer step: `step` (from 1), `loss`, `learning_rate`, `grad_norm`, and `validation_loss`
        where it was measured. A row of step 0 has the validation loss of the untrained model.

    Raises:
        Diverged: the loss became NaN or infinite.
    """
    accelerator = Accelerator(
        mixed_precision=params.mixed_precision,
        gradient_accumulation_steps=params.gradient_accumulation_steps,
        cpu=not torch.cuda.is_available(),
    )
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = list(trained)
    optimizer = torch.optim.AdamW(
        trained.values(),
        lr=params.learning_rate,
        betas=(params.adam_beta1, params.adam_beta2),
        weight_decay=params.adam_weight_decay,
        eps=params.adam_epsilon,
    )
    schedule = get_scheduler(
        params.lr_scheduler,
        optimizer,
        num_warmup_steps=params.lr_warmup_steps,
        num_training_steps=params.max_train_steps,
    ).lr_lambdas[0]
    model, prepared = accelerator.prepare(model, optimizer)
    sampler = BatchSampler(items.shapes, params.train_batch_size, params.seed)

    history: list[dict[str, float]] = []
    first_step = 1
    if (resumed := checkpoints.latest()) is not None:
        for name, parameter in trained.items():
            parameter.data.copy_(resumed.parameters[name])
        load_optimizer_tensors(optimizer, resumed.optimizer, names)
        if accelerator.scaler is not None and resumed.scalars["scaler"]:
            accelerator.scaler.load_state_dict(resumed.scalars["scaler"])
        history = resumed.scalars["history"]
        first_step = resumed.step + 1
        tqdm.write(f"train: going on from step {resumed.step}", file=sys.stderr)
    else:
        history.append({"step": 0} | validation_row(model, validation, loss, params, accelerator))

    model.train()
    bar = tqdm(
        range(first_step, params.max_train_steps + 1),
        desc="train",
        initial=first_step - 1,
        total=params.max_train_steps,
        disable=None,
    )
    for step in bar:
        losses: list[Tensor] = []
        learning_rate = params.learning_rate * schedule(step - 1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        for part in range(params.gradient_accumulation_steps):
            number = (step - 1) * params.gradient_accumulation_steps + part
            chosen = sampler.batch(number)
            seeds = [draw_seed(params.seed, "train", number, place) for place in range(len(chosen))]
            torch.manual_seed(draw_seed(params.seed, "dropout", number))
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    mean_loss = loss(model, items.batch(chosen, accelerator.device), seeds).mean()
                if not torch.isfinite(mean_loss):
                    ids = ", ".join(items.ids[item] for item in chosen)
                    raise Diverged(f"the loss is {mean_loss.item()} at step {step} (items {ids})")
                accelerator.backward(mean_loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(trained.values(), params.max_grad_norm)
                prepared.step()
                prepared.zero_grad()
            losses.append(mean_loss.detach())
        row = {
            "step": step,
            "loss": torch.stack(losses).mean().item(),
            "learning_rate": learning_rate,
            "grad_norm": float(grad_norm),
        }
        if step % params.validation_steps == 0 or step == params.max_train_steps:
            row |= validation_row(model, validation, loss, params, accelerator)
        history.append(row)
        bar.set_postfix(loss=f"{row['loss']:.4f}", lr=f"{learning_rate:.1e}")
        if step % params.checkpointing_steps == 0 and step < params.max_train_steps:
            scalars: dict[str, Any] = {
                "history": history,
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            }
            parameters = {name: parameter.detach().cpu() for name, parameter in trained.items()}
            checkpoints.save(Checkpoint(step, parameters, optimizer_tensors(optimizer, names), scalars))
    return history


@torch.no_grad()
def validation_row(
    model: nn.Module,
    validation: Items,
    loss: Callable[[nn.Module, Batch, Sequence[int]], Tensor],
    params: Train,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Mean loss over the validation items, with the same draws each time; nothing where there are no items."""
    if not validation.ids:
        return {}
    was_training = model.training
    model.eval()
    losses = []
    for number, name in enumerate(validation.ids):
        seeds = [draw_seed(params.seed, "validation", name, draw) for draw in range(params.validation_draws)]
        with accelerator.autocast():
            batch = validation.batch([number] * len(seeds), accelerator.device)
            losses.append(loss(model, batch, seeds).mean().item())
    model.train(was_training)
    mean = math.fsum(losses) / len(losses)
    if not math.isfinite(mean):
        raise Diverged(f"the validation loss is {mean}")
    return {"validation_loss": mean}
