"""The training step and the epoch: the inner half of training, without any file.

All randomness of an epoch comes from one generator seeded by (seed, fold, epoch), so
epoch 17 is the same whether the run reached it in one go or was resumed five times.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from her2net.artefact import digest_json
from her2net.errors import TrainingError
from her2net.networks.depth import layer_scales
from her2net.plan.schema import TrainingPlan
from her2net.train.augment import augment, center_crop, draw_parameters, mixup
from her2net.train.batches import augmented_batches
from her2net.train.timeline import Timeline

T = TypeVar("T")
AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def epoch_seed(*parts: Any) -> int:
    """Return a 63-bit seed that depends on every part."""
    return int(digest_json(list(parts)), 16) >> 1


def channels_last(model: nn.Module, ndim: int) -> nn.Module:
    """Lay the weights out as convolutions like them best (1.1 to 1.4 times faster on the CPU)."""
    return model.to(memory_format=torch.channels_last if ndim == 2 else torch.channels_last_3d)  # type: ignore[call-overload]


def make_optimizer(
    model: nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> torch.optim.Optimizer:  # fmt: skip
    """AdamW in fused kernels; biases and normalisation weights are not decayed.

    Args:
        layer_decay: the learning rate of each block is this share of that of the next; each group of parameters
            knows its share of the whole as `lr_scale`.
    """
    scales = layer_scales(model, layer_decay) if layer_decay < 1 else {}
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for decayed in (True, False):
        for name, parameter in model.named_parameters():
            if (parameter.ndim > 1) == decayed:
                scale = scales.get(name, 1.0)
                group = {"params": [], "weight_decay": weight_decay * decayed, "lr": learning_rate * scale, "lr_scale": scale}
                groups.setdefault((scale, decayed), group)["params"].append(parameter)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(list(groups.values()), lr=learning_rate, fused=fused)


def learning_rate_at(step: int, steps_per_epoch: int, plan: TrainingPlan) -> float:
    """Linear warm-up, then half a cosine to 0 at the last step."""
    warmup, total = plan.warmup_epochs * steps_per_epoch, plan.epochs * steps_per_epoch
    if step < warmup:
        return plan.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total - warmup, 1)
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, targets: Tensor, *,
    precision: str, gradient_clip: float, scaler: torch.amp.GradScaler | None,
    loss_weights: Tensor | None = None, label_smoothing: float = 0.0, n_parts: int = 1, timeline: Timeline | None = None,
) -> tuple[Tensor, int]:  # fmt: skip
    """One forward, backward and update.

    A batch that the device has no memory for is halved and its gradients are added up; it stays that way.

    Args:
        x: (N, C, [D,] H, W) float32.
        targets: (N, n_classes) float32, rows sum to 1.
        n_parts: parts in which the batch goes through the network.
        timeline: where forward, backward and optimizer are counted.

    Returns:
        The loss, a scalar on the device, which nobody need wait for; and the number of parts that fitted.

    Raises:
        TrainingError: not even one case at a time fits.
    """
    lap = (lambda phase: None) if timeline is None else timeline.lap

    def forward_backward(n: int) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=x.device)
        for part, wanted in zip(x.tensor_split(n), targets.tensor_split(n), strict=True):
            loss = _loss(model, part, wanted, precision, loss_weights, label_smoothing) * (len(part) / len(x))
            lap("forward")
            (loss if scaler is None else scaler.scale(loss)).backward()
            total += loss.detach()
            lap("backward")
        return total

    loss, n_parts = within_memory(forward_backward, n_parts, len(x), "training batch")
    if scaler is None:
        nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
        optimizer.step()
    else:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
        scaler.step(optimizer)
        scaler.update()
    lap("optimizer")
    return loss, n_parts


def _loss(
    model: nn.Module, x: Tensor, targets: Tensor, precision: str, weights: Tensor | None, smoothing: float
) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    dtype = AUTOCAST_TYPES.get(precision)
    with torch.autocast(x.device.type, dtype=dtype) if dtype else nullcontext():
        logits = model(x)
    return nn.functional.cross_entropy(logits.float(), targets, weight=weights, label_smoothing=smoothing)


def within_memory(work: Callable[[int], T], n_parts: int, n_cases: int, what: str) -> tuple[T, int]:
    """Call `work(n_parts)`; where the graphics memory does not suffice, say so and try with twice as many parts.

    Raises:
        TrainingError: not even one case at a time fits.
    """
    while True:
        try:
            return work(n_parts), n_parts
        except torch.cuda.OutOfMemoryError as error:
            if n_parts >= n_cases:
                reason = str(error).split(". ")[0]
                raise TrainingError(f"out of graphics memory with one case at a time ({reason}). Choose a smaller input_vox.") from None
        n_parts = min(2 * n_parts, n_cases)  # outside of the handler, which keeps the failed tensors alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"Note: out of graphics memory; each {what} of {n_cases} goes in {n_parts} parts from now on.", file=sys.stderr)


def make_average(model: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel | None:
    """Running average of weights and buffers, `None` if the plan has none."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay > 0 else None


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """Dynamic loss scaling, which float16 needs on a graphics card; `None` otherwise."""
    return torch.amp.GradScaler("cuda") if precision == "fp16" and device.type == "cuda" else None


def balanced_batches(n_cases: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffle all cases into batches of nearly equal size, none of a single case unless `batch_size` is 1."""
    order = torch.randperm(n_cases, generator=generator)
    yield from torch.tensor_split(order, count_batches(n_cases, batch_size))


def count_batches(n_cases: int, batch_size: int) -> int:
    """Return how many batches of at most `batch_size`; of batches of 2 one has 3 if a case would be alone, which has no variance."""
    n = math.ceil(n_cases / batch_size)
    return max(1, min(n, n_cases // 2) if batch_size > 1 else n)


def train_epoch(
    model: nn.Module, average: torch.optim.swa_utils.AveragedModel | None, optimizer: torch.optim.Optimizer,
    images: Tensor, labels: Tensor, case_ids: Sequence[str], plan: TrainingPlan, *,
    input_vox: Sequence[int], epoch: int, seed: int, timeline: Timeline, scaler: torch.amp.GradScaler | None = None,
    n_parts: int = 1,
) -> tuple[float, int]:  # fmt: skip
    """Train one epoch.

    Args:
        images: (N, C, *stored_vox) float16, on the device or in the memory of the machine.
        labels: (N,) int64, in the same place.
        timeline: where the phases are counted.
        n_parts: parts in which a batch goes through the network, see `training_step`.

    Returns:
        The mean loss per case, and the number of parts that fitted.

    Raises:
        TrainingError: the loss is not finite; names the epoch and the cases of the batch. A graphics card is asked at the
            end of the epoch, for it would stand still while every step waits for the answer of the last.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout and stochastic depth draw from the global generator
    device, n_classes = next(model.parameters()).device, len(plan.loss_weights)
    weights = torch.tensor(plan.loss_weights, device=device)
    steps = count_batches(len(labels), plan.batch_size)
    losses: list[Tensor] = []
    model.train()
    timeline.start()
    batches = list(balanced_batches(len(labels), plan.batch_size, generator))
    made = None
    if plan.augmentation.engine == "batchgenerators":
        made = augmented_batches(images, batches, input_vox, plan.augmentation, generator)
    for step, rows in enumerate(batches):
        there = rows.to(images.device)
        targets = nn.functional.one_hot(labels[there].to(device), n_classes).float()
        if made is None:
            parameters = draw_parameters(len(rows), len(input_vox), plan.augmentation, generator)
            stored = images[there].to(device)
            timeline.lap("data")
            x = augment(stored, input_vox, parameters, dtype=AUTOCAST_TYPES.get(plan.precision, torch.float32))
        else:
            x = next(made).to(device)
        x, targets = mixup(x, targets, plan.augmentation.mixup_alpha, generator)
        for group in optimizer.param_groups:
            scale = group.get("lr_scale", 1.0)  # a checkpoint of before there was one has none
            group["lr"] = learning_rate_at(epoch * steps + step, steps, plan) * scale
        timeline.lap("augment")
        loss, n_parts = training_step(
            model, optimizer, x, targets, precision=plan.precision, gradient_clip=plan.gradient_clip, scaler=scaler,
            loss_weights=weights, label_smoothing=plan.label_smoothing, n_parts=n_parts,
            timeline=timeline,
        )  # fmt: skip
        losses.append(loss)
        if device.type == "cpu":
            _refuse_infinite(losses[-1:], batches[step : step + 1], case_ids, epoch, step)
        if average is not None:
            average.update_parameters(model)
            timeline.lap("optimizer")
    _refuse_infinite(losses, batches, case_ids, epoch, 0)
    total = sum(loss * len(rows) for loss, rows in zip(torch.stack(losses).tolist(), batches, strict=True))
    return total / len(labels), n_parts


def _refuse_infinite(losses: list[Tensor], batches: list[Tensor], case_ids: Sequence[str], epoch: int, first_step: int) -> None:
    for step, (loss, rows) in enumerate(zip(torch.stack(losses).tolist(), batches, strict=True), start=first_step):
        if not math.isfinite(loss):
            raise TrainingError(
                f"epoch {epoch}, step {step}: the loss is {loss}. Cases of the batch: "
                f"{', '.join(case_ids[i] for i in rows.tolist())}. Check these images with her2net_verify, "
                "or lower training.learning_rate in the plan."
            )


def exact_convolutions() -> AbstractContextManager[None]:
    """float32 means float32: graphics cards would round to 10 bits (TF32), and predict otherwise than a processor does."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


@torch.inference_mode()
def predict_probs(
    model: nn.Module, images: Tensor, input_vox: Sequence[int], *, batch_size: int,
    flip_axes: Sequence[int] = (), precision: str = "fp32",
) -> np.ndarray:  # fmt: skip
    """Return (N, n_classes) float64 probabilities; with `flip_axes`, the mean over all their combinations.

    Args:
        images: (N, C, *stored_vox), on the model's device or in the memory of the machine.
        flip_axes: spatial axes, 0 the first after the channels.
    """
    model.eval()
    device, dtype = next(model.parameters()).device, AUTOCAST_TYPES.get(precision)
    flips = [[a for bit, a in enumerate(flip_axes) if mask >> bit & 1] for mask in range(2 ** len(flip_axes))]

    def predict(batch: Tensor) -> Tensor:
        x = center_crop(batch, input_vox).to(device).float()
        memory_format = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        views = (x.flip([a + 2 for a in axes]) if axes else x for axes in flips)
        with torch.autocast(x.device.type, dtype=dtype) if dtype else exact_convolutions():
            logits = [model(view.contiguous(memory_format=memory_format)) for view in views]
        return torch.stack([z.double().softmax(1) for z in logits]).mean(0).cpu()

    def predict_parts(batch: Tensor, n: int) -> Tensor:
        return torch.cat([predict(part) for part in batch.tensor_split(n)])

    probs, n_parts = [], 1
    for batch in images.split(batch_size) if len(images) else ():
        found, n_parts = within_memory(partial(predict_parts, batch), min(n_parts, len(batch)), len(batch), "batch")
        probs.append(found)
    return torch.cat(probs).numpy() if probs else np.zeros((0, 0))
