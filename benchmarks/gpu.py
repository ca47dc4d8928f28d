"""On a graphics card: the networks of the published protocol, epoch by epoch and all folds at once.

    python benchmarks/gpu.py [--cases 149] [--epochs 8] [--rounds 3]

Needs a CUDA device. ConvNeXt V2 tiny at 256x256 and a 3D ResNet-18 at 96x96x96, batches of 16, four folds:

- an epoch of her2net, validation included, against forward, backward and update on random tensors that lie on the card,
  and forward of the held-out batches (the floor), in turns;
- the share of an epoch in which the card computes (kernel time of the profiler over the wall clock), and its peak memory
  beside the estimate that decides how many folds run at once;
- all folds of both modalities at once, and one after the other: how busy the card is meanwhile (nvidia-smi), and the hours
  that 300 epochs of all eight folds take at that rate, without the start.

Wall clock with the card synchronised: processor time says nothing here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from cohorts import make_large_images, make_paths
from harness import RESULTS, refuse
from training import _Silent, floor_epoch, start_run

from her2net import pipeline
from her2net.plan.stage import PlanOptions
from her2net.project import Project, load_project
from her2net.train.fold import TrainOptions
from her2net.train.footprint import footprint_of
from her2net.train.together import FoldJob, train_job, train_jobs

EPOCHS_OF_THE_PAPER = 300
CARD = "cuda"


def time_on_card(call: Callable[[], object]) -> float:
    """Return seconds until the card has done what was asked."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def busy_share(call: Callable[[], object]) -> float:
    """Return the share of the wall clock in which a kernel ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds = time_on_card(call)
    kernels = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    return kernels / seconds


def measure_modality(project: Project, modality: str, folder: Path, rounds: int) -> dict[str, float]:
    """Time epochs of one fold and of the floor in turns."""
    run, who = start_run(project, modality, folder, device=CARD)
    n = {name: len(cases) for name, cases in who.items()}
    part = run.task.parts["training"]
    images, labels = run._place(torch.from_numpy(part.cache.image), torch.from_numpy(part.labels))
    epoch = lambda: run._one_epoch(run.epochs_done, images, labels, _Silent())
    epoch()  # algorithms of convolutions are chosen in the first one
    torch.cuda.reset_peak_memory_stats()
    epoch()
    peak = torch.cuda.max_memory_allocated()
    floor = floor_epoch(run, n["training"], n["held_out"])
    floor()
    times = [(time_on_card(epoch), time_on_card(floor)) for _ in range(rounds)]
    section = project.plan.modalities[modality]
    footprint = footprint_of(section, section.training)
    ours, bare = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "training_cases": n["training"], "held_out_cases": n["held_out"], "precision": section.training.precision,
        "epoch_s": ours, "floor_s": bare, "ratio": statistics.median(a / b for a, b in times),
        "lowest": min(a / b for a, b in times), "highest": max(a / b for a, b in times),
        "training_cases_per_s": n["training"] / ours, "busy": busy_share(epoch), "busy_floor": busy_share(floor),
        "peak_gib": peak / 2**30, "estimate_gib": footprint.total(section.training.batch_size) / 2**30,
    }  # fmt: skip


@contextmanager
def watch_card() -> Iterator[list[tuple[float, float]]]:
    """Collect (utilisation in per cent, memory used in MiB), five times a second."""
    seen: list[tuple[float, float]] = []
    command = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            seen.append(tuple(float(x) for x in line.split(",")))  # type: ignore[arg-type]

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        process.kill()
        thread.join(5)


def measure_all_folds(project: Project, epochs: int, *, at_once: bool) -> dict[str, float]:
    """Train all folds twice: what the second, longer training takes more is epochs, not the start."""
    short, _ = train_all(project, 2, at_once=at_once)
    long, seen = train_all(project, 4 + epochs, at_once=at_once)
    epoch_s = (long - short) / epochs
    return {
        "first_2_epochs_s": short, f"next_{2 + epochs}_epochs_s": long, "epoch_of_all_folds_s": epoch_s,
        "hours_of_300_epochs": EPOCHS_OF_THE_PAPER * epoch_s / 3600,
        "mean_utilisation": statistics.fmean(row[0] for row in seen),
        "utilisation_without_start": statistics.fmean(row[0] for row in seen[len(seen) // 2 :]),
        "most_memory_gib": max(row[1] for row in seen) / 1024,
    }  # fmt: skip


def train_all(project: Project, epochs: int, *, at_once: bool) -> tuple[float, list[tuple[float, float]]]:
    """Bring every fold to so many epochs; return seconds and what the card said meanwhile."""
    options = TrainOptions(device=CARD, epochs=epochs, quiet=True)
    jobs = [FoldJob(project.paths, name, fold, options)
            for name in project.plan.modalities for fold in range(project.plan.splits.n_folds)]  # fmt: skip
    with watch_card() as seen:
        start = time.perf_counter()
        done = list(train_jobs(project, jobs)) if at_once else [(job, train_job(job, project)) for job in jobs]
        seconds = time.perf_counter() - start
    if any(record.epochs_done != epochs for _, record in done):
        refuse("a fold was not trained to the end")
    return seconds, seen


def main(n_cases: int, epochs: int, rounds: int) -> None:
    """Measure, print, and keep the figures."""
    card = torch.cuda.get_device_properties(0)
    found: dict[str, object] = {"card": card.name, "gib": round(card.total_memory / 2**30), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as name:
        paths = make_paths(Path(name))
        make_large_images(paths, n_cases, 4, us_size=(160, 200), mri_size=(20, 60, 60))
        pipeline.plan(paths, PlanOptions(preset="paper", device=CARD, quiet=True))
        project = load_project(paths)
        for modality in project.plan.modalities:
            found[modality] = measure_modality(project, modality, Path(name) / modality, rounds)
            torch.cuda.empty_cache()
            print(modality, json.dumps(found[modality], indent=1), flush=True)
        for way, at_once in (("at once", True), ("one after the other", False)):
            own = load_project(replace(paths, roots=replace(paths.roots, results=Path(name) / way)))
            found[way] = measure_all_folds(own, epochs, at_once=at_once)
            print(way, json.dumps(found[way], indent=1), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gpu.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=149)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    main(args.cases, args.epochs, args.rounds)
