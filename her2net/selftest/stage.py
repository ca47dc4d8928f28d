"""The self-test: does something other than the lesion tell the classes apart, and does the pipeline leak?

Each probe is trained by `train_fold`, in the plan's own folds, on other inputs: nothing here trains by itself, so
what permuted labels find out about leaks holds for the real training too. Only the network is a quick one, on
images averaged down, which makes every probe's AUC a lower bound of what a larger network would find.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

from her2net.artefact import digest_json, write_csv
from her2net.errors import MissingArtefactError
from her2net.predictions import Predictions
from her2net.project import Project
from her2net.selftest.probes import MIN_VOX, OUTLINE_MIN_VOX, ProbedModality, prepare_modality, probe_modality
from her2net.selftest.record import COLUMNS, ProbeResult, SelfTest, csv_rows, is_leak
from her2net.train.fold import TrainOptions

SELFTEST_VERSION = 3  # raise when the same inputs give other figures


def run_selftest(
    project: Project, real: dict[str, Predictions], *, n_permutations: int, device: str, quiet: bool
) -> SelfTest:
    """Run every probe on every modality and write `selftest/`; what is fresh is read, what was interrupted continues.

    Args:
        real: modality -> out-of-fold predictions of the plan's trained model, where there is one.
        n_permutations: trainings on permuted labels.

    Raises:
        MissingArtefactError: no cache; names the command that makes it.
    """
    paths = project.paths
    options = TrainOptions(device=device, quiet=quiet)
    modalities = [prepare_modality(project, name, options, MIN_VOX) for name in project.plan.modalities]
    outlines = [prepare_modality(project, name, options, OUTLINE_MIN_VOX) for name in project.plan.modalities]
    made_from = selftest_inputs([*modalities, *outlines], real, n_permutations)
    try:
        known = SelfTest.load(paths.selftest / "selftest.json")
        if known.made_from == made_from:
            return known
    except MissingArtefactError:
        pass
    work = paths.selftest / f"work_{digest_json(made_from)}"
    for other in set(paths.selftest.glob("work_*")) - {work}:
        shutil.rmtree(other)
    results: list[ProbeResult] = []
    skipped: dict[str, str] = {}
    for modality, outline in zip(modalities, outlines, strict=True):
        name = modality.name
        rows, absent = probe_modality(replace(modality, work=work), replace(outline, work=work), real.get(name), n_permutations)
        results += rows
        skipped |= {f"{name} {probe}": why for probe, why in absent.items()}
    leak = any(row.probe == "permuted labels" and is_leak(row.ci_low) for row in results)
    record = SelfTest(made_from=made_from, n_permutations=n_permutations, results=results, skipped=skipped, leak=leak)
    write_csv(paths.selftest / "selftest.csv", COLUMNS, csv_rows(results))
    record.save(paths.selftest / "selftest.json")
    shutil.rmtree(work)
    return record


def selftest_inputs(
    modalities: Sequence[ProbedModality], real: dict[str, Predictions], n_permutations: int
) -> dict[str, str]:
    """Digests of images, labels, folds, the probes' training and the real predictions."""
    project = modalities[0].project
    plan = project.plan
    return {
        "version": str(SELFTEST_VERSION),
        "cases": digest_json({name: project.part_digest(name, project.training(name)) for name in plan.modalities}),
        "folds": digest_json([list(fold) for fold in project.splits.folds(plan.splits)]),
        "training": digest_json([[m.name, m.quick_section.model_dump(mode="json")] for m in modalities]),
        "sites": digest_json([case.site for case in project.dataset.train]),
        "real": digest_json({name: table.probs.tolist() for name, table in real.items()}),
        "n_permutations": str(n_permutations),
    }
