"""Augmented batches of the `batchgenerators` engine: drawn here, computed in worker processes, yielded in order.

All that is random is drawn before the first batch, from the generator of the epoch, so neither the number of workers
nor the order in which they finish changes a voxel. Workers are started anew each epoch, which takes them a second or two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from her2net.plan.augmentation import AugmentationPlan
from her2net.progress import choose_workers, map_in_processes
from her2net.train.augment import Parameters, draw_parameters
from her2net.train.batchgenerators_engine import Draw, Job, augment_job


class _Jobs(Sequence[Job]):
    """Batches that are cut out of the images when they are asked for, not all at once."""

    def __init__(self, images: Tensor, rows: Sequence[Tensor], draws: Sequence[tuple[Draw, ...]], input_vox: Sequence[int]) -> None:
        self.images, self.rows, self.draws, self.input_vox = images, rows, draws, tuple(input_vox)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Job:  # type: ignore[override]
        there = self.rows[index].to(self.images.device)
        return Job(self.images[there].cpu().numpy(), self.input_vox, self.draws[index])


def augmented_batches(
    images: Tensor, rows: Sequence[Tensor], input_vox: Sequence[int], settings: AugmentationPlan, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield the augmented batches in order.

    Args:
        images: (N, C, *stored_vox) float16.
        rows: the cases of each batch.
        input_vox: output size per spatial axis.
        settings: ranges and probabilities.
        generator: of the epoch; advanced before the first batch is yielded.

    Yields:
        (n, C, *input_vox) float32, in the memory of the machine.
    """
    draws = [draw_samples(len(part), settings, generator) for part in rows]
    jobs = _Jobs(images, rows, draws, input_vox)
    return _in_order(jobs, 8 * images[0].numel() * max(map(len, rows)))


def _in_order(jobs: _Jobs, batch_bytes: int) -> Iterator[Tensor]:
    waiting: dict[int, Tensor] = {}
    upcoming = 0
    for index, batch in map_in_processes(
        augment_job, jobs, n_workers=choose_workers(None, batch_bytes), description="Augment", quiet=True, worth=2,
        name_of=lambda job: f"a batch of {len(job.draws)} cases",
    ):  # fmt: skip
        waiting[index] = torch.from_numpy(batch)
        while upcoming in waiting:
            yield waiting.pop(upcoming)
            upcoming += 1


def draw_samples(n: int, settings: AugmentationPlan, generator: torch.Generator) -> tuple[Draw, ...]:
    """Draw the parameters of n samples: those of the separable engine, and those that it cannot express."""
    shared = draw_parameters(n, settings.ndim, settings, generator)
    columns = torch.rand(8, n, dtype=torch.float64, generator=generator).T.tolist()
    return tuple(_draw(shared, k, column, settings) for k, column in enumerate(columns))


def _draw(shared: Parameters, k: int, column: list[float], settings: AugmentationPlan) -> Draw:
    rotated, angles, (deformed, alpha, sigma), changed = column[0], column[1:4], column[4:7], column[7]
    limit = math.radians(settings.rotation_deg) if rotated < settings.rotation_probability else 0.0
    between = lambda limits, where: limits[0] + (limits[1] - limits[0]) * where
    return Draw(
        flip=tuple(shared.flip[k].tolist()), scale=float(shared.scale[k]), shift=tuple(shared.shift[k].tolist()),
        blur_sigma_vox=float(shared.blur_sigma_vox[k]), contrast=float(shared.contrast[k]),
        brightness=float(shared.brightness[k]), noise_std=float(shared.noise_std[k]), seed=int(shared.noise_seed[k]),
        angles_rad=tuple(limit * (2 * where - 1) for where in angles[: 1 if settings.ndim == 2 else 3]),
        elastic_alpha=between(settings.elastic_alpha, alpha) if deformed < settings.elastic_probability else 0.0,
        elastic_sigma_vox=between(settings.elastic_sigma_vox, sigma),
        gamma=settings.gamma if changed < settings.gamma_probability else None,
    )  # fmt: skip
