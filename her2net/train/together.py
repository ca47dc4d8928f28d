"""Folds one after the other; on a graphics card as many at once as its memory holds.

A fold of a flat network leaves a large card idle between its many small kernels, and every fold does while it validates,
plots and writes. Each fold is a process of its own, so what it computes does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from her2net.memory import available_cores
from her2net.paths import DatasetPaths
from her2net.plan.schema import ModalityPlan
from her2net.progress import map_in_processes
from her2net.project import Project, load_project
from her2net.train.data import select_fold
from her2net.train.fold import RunRecord, TrainOptions, train_fold

SHARE_OF_CARD = 0.9  # of its free memory; estimates are of what a fold asks for, not of what the allocator keeps
HALF_PRECISION = 0.5  # of the estimate, which is of float32; 0.36 and 0.42 measured
CONTEXT_BYTES = 2**30  # what a process takes of a card before it has trained anything, with workspaces of the libraries


@dataclass(frozen=True)
class FoldJob:
    """One fold to be trained; `options.device` is resolved."""

    paths: DatasetPaths
    modality: str
    fold: int | str
    options: TrainOptions

    def __str__(self) -> str:
        return f"{self.modality} fold {self.fold}"


def train_jobs(project: Project, jobs: Sequence[FoldJob]) -> Iterator[tuple[FoldJob, RunRecord]]:
    """Train all, and yield each with its record when it is done, in any order.

    Raises:
        WorkerError: the process of a fold died.
        Her2netError: whatever `train_fold` raises. The folds that are under way end, too, and the same command continues them.
    """
    n = _count_at_once(project, jobs)
    if n == 1:
        for job in jobs:
            yield job, train_job(job, project)
        return
    quiet = all(job.options.quiet for job in jobs)
    for index, record in map_in_processes(
        train_alone, jobs, n_workers=n, description=f"Train, {n} folds at once", quiet=quiet, worth=2
    ):
        yield jobs[index], record


def train_job(job: FoldJob, project: Project) -> RunRecord:
    """Train one fold here."""
    cases = select_fold(project.dataset.train, job.modality, job.fold, project.plan, project.splits)
    return train_fold(project.paths, project.plan, job.modality, job.fold, cases, job.options)


def train_alone(job: FoldJob) -> RunRecord:
    """Train one fold in a process of its own."""
    return train_job(job, load_project(job.paths))


def _count_at_once(project: Project, jobs: Sequence[FoldJob]) -> int:
    if len(jobs) < 2 or jobs[0].options.device != "cuda":
        return 1
    import torch

    needs = [_need(project.plan.modalities[job.modality], len(project.training(job.modality))) for job in jobs]
    return count_that_fit(needs, int(SHARE_OF_CARD * torch.cuda.mem_get_info()[0]), available_cores())


def count_that_fit(needs: Sequence[int], free: int, n_cores: int) -> int:
    """Return how many jobs may run at once, whichever they are: the largest of them fit together; at least 1.

    Args:
        needs: bytes of each.
        free: bytes.
        n_cores: each job keeps a processor busy.
    """
    largest = sorted(needs, reverse=True)
    fitting = [n for n in range(1, min(len(needs), n_cores) + 1) if sum(largest[:n]) <= free]
    return max(fitting, default=1)


def _need(plan: ModalityPlan, n_cases: int) -> int:
    from her2net.train.footprint import footprint_of, images_bytes, n_views

    training, footprint = plan.training, footprint_of(plan, plan.training)
    images = images_bytes(plan.preprocessing.stored_vox, plan.n_inputs, n_cases)
    factor = 1.0 if training.precision == "fp32" else HALF_PRECISION
    solving = footprint.solving(n_cases * n_views(training))
    return CONTEXT_BYTES + images + solving + int(factor * footprint.total(min(training.batch_size, n_cases)))
