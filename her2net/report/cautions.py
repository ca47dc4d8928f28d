"""What the figures have to be read with: every remark of the evaluation, and what the material itself gives away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from her2net.evaluate.estimate import is_clustered
from her2net.evaluate.record import RESEMBLING, warn_of_folds
from her2net.report.cohort import Group
from her2net.report.material import OWN_PURPOSE, Material
from her2net.report.words import cohort_name, count, estimate, listed, number
from her2net.splits import find_parted

FEW_OF_A_CLASS = 100
"""Vergouwe et al. 2005, doi:10.1016/j.jclinepi.2004.06.017: a validation needs at least 100 cases of each class."""


@dataclass(frozen=True)
class Caution:
    """One thing to know before a figure is quoted; `serious` ones change what may be claimed."""

    level: Literal["serious", "note"]
    text: str


def find_cautions(material: Material, groups: list[Group]) -> list[Caution]:
    """Return all cautions, the serious ones first."""
    found = [*_optimism(material), *_test_set(material), *_size(material), *_answer(material), *_folds(material), *_fusion(material),
             *_data(material, groups), *_plan(material)]  # fmt: skip
    return sorted(found, key=lambda caution: caution.level != "serious")


def _optimism(material: Material) -> Iterator[Caution]:
    """DESIGN rule 4: what was made with knowledge it should not have had says so wherever it goes."""
    marked: dict[tuple[str, str], list[str]] = {}
    for metric in material.evaluation.metrics:
        for remark in [part for part in metric.remark.split("; ") if part]:
            models = marked.setdefault((remark, metric.cohort), [])
            models += [metric.model] if metric.model not in models else []
    for (remark, cohort), models in marked.items():
        yield Caution("serious", f"{listed(models)}, {cohort_name(cohort)}: {remark}.")


def _test_set(material: Material) -> Iterator[Caution]:
    if "test" not in material.cohorts:
        yield Caution("serious", "There are no labelled test cases. All figures come from cross-validation in the training "
                                 "cases; they do not show how the model does in other patients.")  # fmt: skip
    untested = [m for m in material.plan.modalities if material.metric(m, "test", "auc") is None]
    if "test" in material.cohorts and untested:
        yield Caution("serious", f"No labelled test case has {listed(untested)}: the test figures say nothing about "
                                 f"{'it' if len(untested) == 1 else 'them'}.")  # fmt: skip
    looks = [entry for entry in material.openings if entry.get("purpose") != OWN_PURPOSE]
    if len(looks) > 1:
        yield Caution("serious", f"The test labels have been opened {len(looks)} times before this report, not counting "
                                 "reports. If anything was changed after one of these looks, the test figures "
                                 "are optimistic.")  # fmt: skip
    if RESEMBLING in material.cohorts:
        n = len(material.project.splits.resembling_test_cases)
        yield Caution("serious", f"{count(n, 'test case')} nearly equal{'s' if n == 1 else ''} a training case. Figures are "
                                 "given with and without them; trust the latter.")  # fmt: skip


def _size(material: Material) -> Iterator[Caution]:
    model, cohort = material.headline
    auc = material.metric(model, cohort, "auc")
    if auc is None:
        return
    table = material.known(model, cohort)
    owners = np.array(table.patient_ids)
    unit = "patients" if is_clustered(owners) else "cases"  # several cases of a patient say less than their number
    smallest, n = min(len(np.unique(owners[table.labels == c])) for c in range(len(material.class_names))), len(np.unique(owners))
    if smallest < FEW_OF_A_CLASS:
        advice = next((c.advice for c in material.evaluation.certainty if (c.model, c.cohort) == (model, cohort)), "")
        least = "smaller" if material.binary else "smallest"
        text = (
            f"Few {unit}: the {least} class has {smallest} of {n}; at least {FEW_OF_A_CLASS} of each are advised to "
            f"validate a model (doi:10.1016/j.jclinepi.2004.06.017). {advice}"
        )
        yield Caution("serious", text.strip())
    lost = len({r.n for r in material.evaluation.metrics if r.cohort == cohort and r.metric == "auc"}) > 1
    if lost:
        yield Caution("note", "Models differ in n because cases lack a modality. Compare models only in the table of "
                              "comparisons, which takes the cases they share.")  # fmt: skip


def _answer(material: Material) -> Iterator[Caution]:
    model, cohort = material.headline
    slope, intercept = (material.metric(model, cohort, f"calibration_{part}") for part in ("slope", "intercept"))
    off = [
        f"{name} {estimate(metric, 2)}, ideal {ideal:g}"
        for name, metric, ideal in (("slope", slope, 1.0), ("intercept", intercept, 0.0))
        if metric and metric.ci_low is not None and metric.ci_high is not None
        and not metric.ci_low <= ideal <= metric.ci_high
    ]  # fmt: skip
    if off:
        yield Caution("serious", f"Probabilities of {model} are off ({'; '.join(off)}): do not read them as risks.")
    p = next((c.permutation_p for c in material.evaluation.certainty if (c.model, c.cohort) == (model, cohort)), None)
    if p is not None and p > 0.05:
        yield Caution("serious", f"Shuffled labels reach the AUC of {model} with p = {number(p)}: chance is not ruled out.")


def _folds(material: Material) -> Iterator[Caution]:
    """Out-of-fold figures of cases that several models predicted, and that these models give other probabilities."""
    for model, text in warn_of_folds(material.evaluation).items():
        yield Caution("serious" if model == material.headline[0] else "note", text)


def _fusion(material: Material) -> Iterator[Caution]:
    """What has no weight in the fusion is named in the question, and has no part in the answer."""
    silent, heard = [name for name in material.plan.modalities if name in material.silent], material.weighed
    if silent:
        says = f"what it says is what {listed(heard)} {'say' if len(heard) > 1 else 'says'}" if heard else "nor has anything else"
        yield Caution("serious", f"{listed(silent)} {'have' if len(silent) > 1 else 'has'} no weight in the fusion that was fitted on "
                                 f"all cases and predicts new ones: {says}.")  # fmt: skip


def _data(material: Material, groups: list[Group]) -> Iterator[Caution]:
    for group in groups:
        for m, n in group.unmasked.items():
            if n:
                yield Caution("note", f"{group.name}: {n} of {group.n_cases - group.lacking[m]} {m} images have no mask and are "
                                      "shown whole.")  # fmt: skip
    splits = material.project.splits
    linked = splits.linked_patients
    parted = find_parted(splits.partitions[material.plan.splits.name], linked)
    if parted:
        yield Caution("serious", f"Patients with nearly the same image ({count(len(parted), 'group')}) stand in different folds of "
                                 "those that were brought with --splits: out-of-fold figures are too good.")  # fmt: skip
    elif linked:
        yield Caution("note", "Patients with nearly the same image were kept in one fold "
                              f"({count(len(linked), 'group')}).")  # fmt: skip
    if material.fingerprint.n_sites > 1 and material.plan.splits.scheme != "leave-one-site-out":
        yield Caution("note", f"Patients come from {material.fingerprint.n_sites} sites, and each site is on both sides of a fold: "
                              "how the model does at a new site is not known. her2net_plan --splits leave-one-site-out "
                              "asks that.")  # fmt: skip
    if material.problems:
        yield Caution("note", f"her2net_verify has {count(len(material.problems), 'warning')} about the data, listed "
                              "under Patients.")  # fmt: skip


def _plan(material: Material) -> Iterator[Caution]:
    shown = {name: "uses the shape of the outline (morphology)" for name, table in material.plan.tables.items()
             if table.radiomics is not None and "morphology" in table.radiomics.families}  # fmt: skip
    shown |= {name: "is shown the outline as a channel (mask)" for name, section in material.plan.modalities.items()
              if "mask" in section.preprocessing.derived_channels}  # fmt: skip
    for name, what in shown.items():
        yield Caution("serious", f"{name} {what}. Where outlines were drawn by someone who knew the class, they give it "
                                 "away, and figures show the drawing, not the disease: her2net_selftest tells what they "
                                 "reach alone.")  # fmt: skip
    if material.plan.edited:
        yield Caution("note", f"The plan was edited by hand: {', '.join(material.plan.edited)}.")
    if any(threshold.chosen_on == "oof" for threshold in material.thresholds.values()):
        elsewhere = ", not in the test cases" if "test" in material.cohorts else ""
        yield Caution("note", "Thresholds were chosen on the out-of-fold predictions; sensitivity, specificity and what follows "
                              f"from them are a little favourable there{elsewhere}.")  # fmt: skip
