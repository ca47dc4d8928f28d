"""Training: an epoch against its floor, and against a plain loop with the paper's data path.

    python benchmarks/training.py [--rounds 3] [--cases 32] [--modality US]

Three ways of training the same network on as many cases, and of predicting as many held-out cases:

- her2net: one epoch of its training run, validation included, on the real cache;
- floor: forward, backward and update on random tensors that lie in memory in the layout the network likes, and forward
  of the held-out batches; nothing else. Same optimizer, same precision;
- plain: float32 eager PyTorch in the default layout, every item decoded, cropped, normalised, resized and augmented by
  MONAI's dictionary transforms as it is needed; AdamW as it comes.

The networks are those of `cohorts.SETTINGS`. What `her2net_plan` plans by default for so few cases is a network that is
solved, not stepped; for it, beside that:

- floor: the wavelet coefficients of every view of the training cases and of every held-out case, from tensors that lie
  in memory, and the solution of the classifier; nothing else;
- all folds, each of which describes its cases anew, against the folds as they are, which share what is known of a case.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cohorts import SETTINGS, make_large_images, make_paths, plan_cohort
from harness import Row, compare, finish, refuse, take_turns
from monai import transforms as t
from torch import nn

from her2net import pipeline
from her2net.networks import scattering
from her2net.paths import DatasetPaths, Roots
from her2net.plan.stage import PlanOptions
from her2net.project import Project, load_project
from her2net.raw.dataset import Case
from her2net.train.augment import center_crop
from her2net.train.data import load_part, select_fold
from her2net.train.loop import AUTOCAST_TYPES, make_scaler
from her2net.train.run import Task, TrainingRun
from her2net.train.solve import solve_classifier


def start_run(
    project: Project, modality: str, folder: Path, fold: int = 0, *, device: str = "cpu"
) -> tuple[TrainingRun, dict[str, tuple[Case, ...]]]:
    """Return a training run of a fold, ready for its first epoch, and who is in it."""
    plan, section = project.plan, project.plan.modalities[modality]
    cases = select_fold(project.dataset.train, modality, fold, plan, project.splits)
    who = {"training": cases.training, "held_out": cases.held_out}
    parts = {name: load_part(project.paths, modality, section, members) for name, members in who.items()}
    training = section.training.model_copy(update={"epochs": 1000})
    return TrainingRun(Task(
        plan=plan, modality=modality, fold=fold, training=training, made_from={}, parts=parts, folder=folder, device=device,
        pretrained="none", epochs_from="plan", check=lambda: None, quiet=True,
    )), who  # fmt: skip


class _Silent:
    def set_postfix_str(self, text: str) -> None:
        """Stand in for a progress bar."""


def her2net_epoch(run: TrainingRun) -> Callable[[], object]:
    """Return a function that trains one epoch of the run and validates."""
    part = run.task.parts["training"]
    images, labels = torch.from_numpy(part.cache.image), torch.from_numpy(part.labels)
    return lambda: run._one_epoch(run.epochs_done, images, labels, _Silent())


def floor_epoch(run: TrainingRun, n_training: int, n_held_out: int) -> Callable[[], object]:
    """The same network on random tensors where it is, nothing else."""
    model, device, scaler = copy.deepcopy(run.model), run.device, make_scaler(run.task.training.precision, run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    section, plan = run.task.section, run.task.training
    layout = torch.channels_last if section.ndim == 2 else torch.channels_last_3d
    n_steps = -(-n_training // plan.batch_size)
    sizes = [len(rows) for rows in torch.arange(n_training).tensor_split(n_steps)]
    make = lambda n: torch.randn(n, section.n_inputs, *section.preprocessing.input_vox, device=device).contiguous(memory_format=layout)
    batches = [(make(n), torch.randint(2, (n,), device=device)) for n in sizes]
    held_out = [make(len(rows)) for rows in torch.arange(n_held_out).split(section.inference.batch_size)]
    dtype = AUTOCAST_TYPES.get(plan.precision)

    def epoch() -> None:
        model.train()
        for x, y in batches:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                logits = model(x)
            loss = nn.functional.cross_entropy(logits.float(), y)
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        model.eval()
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            for x in held_out:
                model(x)

    return epoch


def plain_epoch(project: Project, run: TrainingRun, modality: str, who: dict[str, tuple[Case, ...]]) -> Callable[[], object]:
    """The loop that papers run: MONAI transforms per item, float32, default layout and optimizer."""
    section, plan = run.task.section, run.task.training
    model = copy.deepcopy(run.model).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, foreach=True)
    size, augmentation = section.preprocessing.input_vox, plan.augmentation
    base = [
        t.LoadImaged(["image", "mask"]), t.EnsureChannelFirstd(["image", "mask"]),
        t.CropForegroundd(["image", "mask"], source_key="mask", margin=50, allow_smaller=True),
        t.NormalizeIntensityd("image"), t.Resized("image", size, mode="bilinear" if section.ndim == 2 else "trilinear"),
    ]  # fmt: skip
    lowest, highest = 1 / augmentation.scale[1] - 1, 1 / augmentation.scale[0] - 1
    shift = [augmentation.shift * n for n in size]
    augmented = t.Compose([
        *base,
        *(t.RandFlipd("image", augmentation.flip_probability, k) for k, flips in enumerate(augmentation.flip_axes) if flips),
        t.RandAffined("image", prob=0.36, translate_range=shift, scale_range=((lowest, highest),) * section.ndim,
                      padding_mode="border"),
        t.RandGaussianSmoothd("image", *((0.5, 1.0),) * 3, prob=augmentation.blur_probability),
        t.RandScaleIntensityFixedMeand("image", factors=0.25, prob=augmentation.contrast_probability),
        t.RandShiftIntensityd("image", 0.25, prob=augmentation.brightness_probability),
        t.RandGaussianNoised("image", prob=augmentation.noise_probability, std=0.3),
    ])  # fmt: skip
    plain = t.Compose(base)

    def load(members: tuple[Case, ...], chain: t.Compose) -> torch.Tensor:
        items = [chain({"image": str(c.images[modality][0]), "mask": str(c.masks[modality])})["image"] for c in members]
        return torch.stack([item.as_tensor()[: section.n_inputs].float() for item in items])

    training, held_out = who["training"], who["held_out"]
    labels = np.array([case.label for case in training])

    def epoch() -> None:
        model.train()
        order = np.random.permutation(len(training))
        for rows in np.array_split(order, -(-len(order) // plan.batch_size)):
            x, y = load(tuple(training[i] for i in rows), augmented), torch.from_numpy(labels[rows])
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for k in range(0, len(held_out), section.inference.batch_size):
                model(load(held_out[k : k + section.inference.batch_size], plain))

    return epoch


def solved_epoch(run: TrainingRun, *, forget: bool = True) -> Callable[[], object]:
    """Return a function that solves the run's classifier and validates, as if no case had been seen before."""
    part = run.task.parts["training"]
    images, labels = torch.from_numpy(part.cache.image), torch.from_numpy(part.labels)

    def epoch() -> None:
        if forget:
            scattering._described.clear()
        run.history.clear()
        run._one_epoch(0, images, labels, _Silent())

    return epoch


def solved_floor(run: TrainingRun) -> Callable[[], object]:
    """The same network on tensors in memory, nothing else."""
    model, task = copy.deepcopy(run.model).eval(), run.task
    size, part = task.section.preprocessing.input_vox, task.parts["training"]
    x = {name: center_crop(torch.from_numpy(p.cache.image), size) for name, p in task.parts.items()}
    mirrored = [(), *((axis - len(size),) for axis, flips in enumerate(task.training.augmentation.flip_axes) if flips)]
    views, patients = [x["training"].flip(axes) for axes in mirrored], [case.patient_id for case in part.cases]

    @torch.inference_mode()
    def epoch() -> None:
        scattering._described.clear()
        described = torch.stack([model.coefficients(view) for view in views], dim=1)
        solve_classifier(model, described, part.labels, patients, task.training)
        model(x["held_out"])

    return epoch


def solved_rows(paths: DatasetPaths, modalities: list[str], root: Path, rounds: int) -> list[Row]:
    """Plan as `her2net_plan` does by default, and time what it planned."""
    own = replace(paths, roots=Roots(paths.roots.raw, root / "preprocessed", root / "results"))
    pipeline.plan(own, PlanOptions(preset="auto", n_workers=1, quiet=True))
    project, rows = load_project(own), []
    for modality in modalities:
        section = project.plan.modalities[modality]
        folds = range(project.plan.splits.n_folds)
        runs = [start_run(project, modality, root / f"{modality}_{fold}", fold)[0] for fold in folds]
        if not runs[0].solved:
            refuse(f"{section.training.network} is not solved")
        anew = [solved_epoch(run) for run in runs]
        shared = [solved_epoch(runs[0]), *(solved_epoch(run, forget=False) for run in runs[1:])]
        first, second = _weights(anew, runs), _weights(shared, runs)
        if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
            refuse("folds that share coefficients end with other weights")
        cost = take_turns({"ours": anew[0], "floor": solved_floor(runs[0])}, rounds)
        n = {name: len(p.labels) for name, p in runs[0].task.parts.items()}
        what = f"{section.training.network} {'x'.join(map(str, section.preprocessing.input_vox))}, " + \
            f"{n['training']} + {n['held_out']} cases"  # fmt: skip
        rows.append(compare(f"epoch {modality}, solved network: the network alone", cost["ours"], cost["floor"],
                            target=1.05, at_least=False, note=what))  # fmt: skip
        cost = take_turns({"ours": partial(_each, shared), "anew": partial(_each, anew)}, rounds, warm_up=False)
        rows.append(compare(f"{len(folds)} folds {modality}, solved network: every fold by itself", cost["ours"],
                            cost["anew"], target=2, note=f"{what}; the weights are the same to the bit"))  # fmt: skip
    return rows


def _weights(epochs: list[Callable[[], object]], runs: list[TrainingRun]) -> list[torch.Tensor]:
    _each(epochs)
    return [run.model.classifier.weight.detach().clone() for run in runs]


def _each(epochs: list[Callable[[], object]]) -> None:
    for epoch in epochs:
        epoch()


def check(run: TrainingRun) -> None:
    """The same weights give the same logits in both layouts, and the same gradient."""
    section = run.task.section
    x = torch.randn(2, section.n_inputs, *section.preprocessing.input_vox)
    layout = torch.channels_last if section.ndim == 2 else torch.channels_last_3d
    other = copy.deepcopy(run.model).to(memory_format=torch.contiguous_format).eval()
    run.model.eval()
    with torch.no_grad():
        apart = float((run.model(x.contiguous(memory_format=layout)) - other(x)).abs().max())
    if apart > 1e-3:
        refuse(f"the two layouts of {run.task.training.network} differ by {apart:.2g}")
    print(f"  {run.task.training.network}: both layouts agree to {apart:.1e}")


def main(modalities: list[str], n_cases: int, rounds: int) -> list[Row]:
    """Time the three ways in turns."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        paths = make_paths(Path(name))
        make_large_images(paths, n_cases, 4)
        project = plan_cohort(paths)
        for modality in modalities:
            run, who = start_run(project, modality, Path(name) / modality)
            if any(case.masks.get(modality) is None for members in who.values() for case in members):
                refuse("a case has no mask")
            check(run)
            n = {key: len(members) for key, members in who.items()}
            cost = take_turns({
                "ours": her2net_epoch(run), "floor": floor_epoch(run, n["training"], n["held_out"]),
                "plain": plain_epoch(project, run, modality, who),
            }, rounds)  # fmt: skip
            spent = run.timeline.seconds
            what = f"{SETTINGS[modality][0]} {'x'.join(map(str, SETTINGS[modality][1]))}, {n['training']} + {n['held_out']} cases"
            note = f"{what}, {run.task.training.precision}; timeline of her2net in s: " + \
                ", ".join(f"{key} {value:.1f}" for key, value in spent.items())  # fmt: skip
            rows += [
                compare(f"epoch {modality}: the network alone", cost["ours"], cost["floor"], target=1.05, at_least=False,
                        note=note),
                compare(f"epoch {modality}: plain float32 loop with MONAI per item", cost["ours"], cost["plain"],
                        target=2.2, note=what),
            ]  # fmt: skip
        return rows + solved_rows(paths, modalities, Path(name) / "solved", rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--modality", nargs="+", default=["US", "MRI"], choices=("US", "MRI"))
    args = parser.parse_args()
    raise SystemExit(finish(main(args.modality, args.cases, args.rounds)))
