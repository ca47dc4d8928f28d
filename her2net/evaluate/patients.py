"""One prediction per patient, where patients own several cases: the mean over their lesions or views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from her2net.predictions import Predictions, make_predictions

OF_PATIENTS = {"oof": "oof-patients", "test": "test-patients"}
"""Cohort of cases -> cohort of patients."""


def pool_patients(table: Predictions) -> Predictions | None:
    """Average the probabilities of each patient's cases; `None` where every patient has one.

    Returns:
        One row per patient, named after the patient. The label is that of all its labelled cases, -1 where they differ or
        none is labelled; the fold that of the cases, empty where they differ.
    """
    names, place = np.unique(np.array(table.patient_ids, dtype=str), return_inverse=True)
    if len(names) == len(table):
        return None
    probs = np.stack([np.bincount(place, weights=p) for p in table.probs.T], axis=1) / np.bincount(place)[:, None]
    labels: list[int | None] = []
    folds = []
    for patient in range(len(names)):
        own = np.flatnonzero(place == patient)
        known = {int(table.labels[i]) for i in own if table.labels[i] >= 0}
        labels.append(known.pop() if len(known) == 1 else None)
        of = {table.folds[i] for i in own}
        folds.append(of.pop() if len(of) == 1 else "")
    return make_predictions(names.tolist(), names.tolist(), probs, labels=labels, folds=folds)


def patient_columns(n_classes: int) -> list[str]:
    """Return the columns of `patients.csv`."""
    return ["model", "cohort", "patient_id", "n_cases", "label", *(f"prob_{c}" for c in range(n_classes))]


def patient_rows(tables: Mapping[tuple[str, str], Predictions]) -> Iterator[dict[str, Any]]:
    """Yield the rows of `patients.csv`: every model and cohort in which some patient has several cases."""
    for (model, cohort), table in tables.items():
        pooled = pool_patients(table) if cohort in OF_PATIENTS else None
        if pooled is None:
            continue
        n_cases = dict(zip(*np.unique(np.array(table.patient_ids, dtype=str), return_counts=True), strict=True))
        for i, patient in enumerate(pooled.case_ids):
            yield {
                "model": model, "cohort": OF_PATIENTS[cohort], "patient_id": patient, "n_cases": int(n_cases[patient]),
                "label": None if pooled.labels[i] < 0 else int(pooled.labels[i]),
                **{f"prob_{c}": float(p) for c, p in enumerate(pooled.probs[i])},
            }  # fmt: skip
