"""What is known of each case besides its prediction: patient, part of the cohort, site and declared covariates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from her2net.artefact import digest_json
from her2net.evaluate.subgroups import numeric_levels
from her2net.raw.dataset import RawDataset
from her2net.raw.rows import CaseRow
from her2net.raw.spec import CovariateKind, DatasetSpec

Part = Literal["training", "test"]


@dataclass(frozen=True)
class CaseFacts:
    """One case.

    Attributes:
        part: of the dataset; `test` for every case of a table from elsewhere.
        label: class number; `None` if unknown or sealed.
        values: covariate -> cell; empty where missing.
    """

    case_id: str
    patient_id: str
    part: Part
    label: int | None
    values: dict[str, str]


@dataclass(frozen=True)
class Facts:
    """The facts of all cases, and the kind of each covariate; the site is one of them."""

    kinds: dict[str, CovariateKind]
    cases: tuple[CaseFacts, ...]

    def with_labels(self, labels: Mapping[str, int]) -> Facts:
        """Return the facts with the labels of `case_id -> label` put in."""
        known = (replace(c, label=labels[c.case_id]) if labels.get(c.case_id, -1) >= 0 else c for c in self.cases)
        return replace(self, cases=tuple(known))


def facts_of_dataset(dataset: RawDataset) -> Facts:
    """Return the facts of a dataset; the labels of its test cases stay sealed."""
    parts: dict[str, Part] = {"train": "training", "test": "test"}
    return Facts(_kinds(dataset.spec), tuple(
        CaseFacts(case.case_id, case.patient_id, parts[case.part], case.label,
                  _values(case.covariates, case.site, dataset.spec))
        for case in dataset.cases
    ))  # fmt: skip


def facts_of_rows(rows: Iterable[CaseRow], labels: Mapping[str, int], spec: DatasetSpec) -> Facts:
    """Return the facts of the rows of a table of cases that no dataset stands behind."""
    return Facts(_kinds(spec), tuple(
        CaseFacts(row.case_id, row.patient_id, "test", label if (label := labels.get(row.case_id, -1)) >= 0 else None,
                  _values(row.covariates, row.site, spec))
        for row in rows
    ))  # fmt: skip


def facts_digest(facts: Facts) -> str:
    """Digest of everything but the labels of test cases, which are not looked at before the evaluation."""
    cases = [[c.case_id, c.patient_id, c.part, c.label if c.part == "training" else None, c.values] for c in facts.cases]
    return digest_json([facts.kinds, cases])


def _kinds(spec: DatasetSpec) -> dict[str, CovariateKind]:
    site: dict[str, CovariateKind] = {} if spec.site is None else {spec.site: "categorical"}
    return {**spec.covariates, **{name: kind for name, kind in site.items() if name not in spec.covariates}}


def _values(covariates: Mapping[str, str], site: str | None, spec: DatasetSpec) -> dict[str, str]:
    extra = {} if spec.site is None or spec.site in spec.covariates else {spec.site: site or ""}
    return {**covariates, **extra}


def subgroup_levels(facts: Facts) -> dict[str, dict[str, str]]:
    """Return covariate -> case id -> level, "" where missing.

    A continuous covariate is cut at the median of the training cases (of all, in a table from elsewhere), so that the
    test cases have no say in it.
    """
    return {name: _levels(facts, name, kind) for name, kind in facts.kinds.items()}


def _levels(facts: Facts, name: str, kind: CovariateKind) -> dict[str, str]:
    cells = {case.case_id: case.values.get(name, "").strip() for case in facts.cases}
    if kind == "ordinal":
        return {case_id: f"{float(cell):g}" if cell else "" for case_id, cell in cells.items()}
    if kind != "continuous":
        return cells
    values = np.array([float(cell) if cell else np.nan for cell in cells.values()])
    training = np.array([case.part == "training" for case in facts.cases])
    known = values[(training if training.any() else ~training) & np.isfinite(values)]
    cut = float(np.median(known)) if len(known) else None
    return dict(zip(cells, numeric_levels(values, cut).tolist(), strict=True))
