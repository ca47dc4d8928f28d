"""Everything that a report is made from, read once and checked: artefacts, prediction tables, openings of the labels.

The report trains nothing and predicts nothing. It reads what the stages before it left, and refuses a mixture:
figures of one state of the test labels beside tables of another.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from her2net.artefact import digest_json, read_text
from her2net.ensemble import EnsembleRecord
from her2net.errors import StaleArtefactError
from her2net.evaluate.patients import OF_PATIENTS
from her2net.evaluate.record import RESEMBLING, Evaluation, Metric
from her2net.evaluate.thresholds import Threshold, Thresholds
from her2net.fingerprint import Fingerprint
from her2net.fuse.stage import FUSION, FusionRecord
from her2net.plan.schema import Plan
from her2net.predictions import Predictions, read_predictions
from her2net.project import Project
from her2net.pseudonyms import pseudonymise
from her2net.raw.problems import Problem
from her2net.raw.verify import verify
from her2net.tabular.added import JSON_NAME, AddedValue, AddedValues
from her2net.tabular.record import TableExplanation
from her2net.tabular.stage import EXPLANATION
from her2net.train.record import RunRecord

OWN_PURPOSE = "report"
"""What the record of openings says where the report itself opened the labels."""
History = tuple[dict[str, float | None], ...]


@dataclass(frozen=True)
class Material:
    """What a report is made from.

    Attributes:
        tables: (model, cohort) -> predictions of all its cases; `labels` is -1 where unknown.
        thresholds: model -> operating point; two classes only.
        runs: modality -> what each fold says about itself, in the order of the folds.
        histories: modality -> rows of each fold's `history.csv`.
        tta: modality -> whether predictions are averages over flips.
        openings: of the test labels, oldest first, that of this report included.
        labels: case id -> class, of every case whose label is known.
        problems: warnings about the raw data.
        paper: whether the published study is to be compared with.
        explained: table model -> what it goes by.
        added: what radiomics and covariates add to the images, and the reverse.
        pseudonyms: case id -> keyed hash to show in its place; `None` shows the ids.
    """

    project: Project
    fingerprint: Fingerprint
    evaluation: Evaluation
    thresholds: dict[str, Threshold]
    fusion: FusionRecord | None
    tables: dict[tuple[str, str], Predictions]
    runs: dict[str, tuple[RunRecord, ...]]
    histories: dict[str, tuple[History, ...]]
    tta: dict[str, bool]
    openings: list[dict[str, Any]]
    labels: dict[str, int]
    problems: list[Problem]
    paper: bool
    explained: dict[str, TableExplanation] = field(default_factory=dict)
    added: list[AddedValue] = field(default_factory=list)
    pseudonyms: dict[str, str] | None = None

    def shown_name(self, case_id: str) -> str:
        """Return what the report calls a case."""
        return case_id if self.pseudonyms is None else self.pseudonyms[case_id]

    @property
    def plan(self) -> Plan:
        return self.project.plan

    @property
    def class_names(self) -> list[str]:
        return self.plan.class_names

    @property
    def counted(self) -> str:
        """What n_positive counts, in words."""
        return "positive" if self.binary else f"not {self.class_names[0]}"

    @property
    def binary(self) -> bool:
        return len(self.class_names) == 2

    @property
    def models(self) -> list[str]:
        """The modalities, the tables, then the fusion."""
        return list(dict.fromkeys(model for model, _ in self.tables))

    @property
    def fused(self) -> list[str]:
        """The models that the fusion of all models is offered; some may have no weight in it."""
        return max((m.modalities for m in self.fusion.models), key=len) if self.fusion else []

    @property
    def weighed(self) -> list[str]:
        """Those of `fused` that have a weight."""
        if self.fusion is None:
            return []
        model = max(self.fusion.models, key=lambda m: len(m.modalities))
        weights = np.abs(model.weights).reshape(len(model.weights), len(model.modalities), -1).sum(axis=(0, 2))
        return [name for name, weight in zip(model.modalities, weights, strict=True) if weight > 0]

    @property
    def silent(self) -> list[str]:
        """Those of `fused` that have none."""
        return [name for name in self.fused if name not in self.weighed]

    @property
    def cohorts(self) -> list[str]:
        """Cohorts with figures, the one that answers the question first."""
        found = {metric.cohort for metric in self.evaluation.metrics}
        return [cohort for cohort in ("test", RESEMBLING, "oof") if cohort in found]

    @property
    def patient_cohorts(self) -> list[str]:
        """Cohorts whose figures are of patients instead of cases; none where every patient has one case."""
        found = {metric.cohort for metric in self.evaluation.metrics}
        return [cohort for cohort in (OF_PATIENTS["test"], OF_PATIENTS["oof"]) if cohort in found]

    @property
    def headline(self) -> tuple[str, str]:
        """Model and cohort of the answer: fixed beforehand, never the best of several."""
        return (FUSION if FUSION in self.models else self.models[0]), self.cohorts[0]

    def known(self, model: str, cohort: str) -> Predictions:
        """Return the predictions of the cases whose label is known."""
        table = self.tables[model, cohort]
        return table.take(table.labels >= 0)

    def metric(self, model: str, cohort: str, name: str) -> Metric | None:
        """Return one figure of the evaluation, `None` where there is no such row."""
        rows = self.evaluation.metrics
        return next((m for m in rows if (m.model, m.cohort, m.metric) == (model, cohort, name)), None)

    def remark(self, model: str, cohort: str) -> str:
        """Return what the figures of a model in a cohort have to be read with; empty if nothing."""
        auc = self.metric(model, cohort, "auc")
        return auc.remark if auc is not None else ""

    def drawn_models(self, cohort: str) -> list[str]:
        """Return the models that have curves in a cohort: those with cases of more than one class."""
        models = [m for m in self.models if (m, cohort) in self.tables]
        return [m for m in models if len(np.unique(self.known(m, cohort).labels)) > 1]


def collect(
    project: Project, names: list[str], *, test_labels: Callable[[], Mapping[str, int]], paper: bool,
    pseudonym_key: bytes | None = None,
) -> Material:  # fmt: skip
    """Read everything.

    Args:
        names: models, as the evaluation has them.
        test_labels: opens the sealed labels; called once, and only where the evaluation opened them too.
        paper: whether the published study is to be compared with.
        pseudonym_key: gives every case a keyed hash for its name.

    Raises:
        MissingArtefactError: something was not made yet; names the command.
        StaleArtefactError: the test labels are not those that were evaluated.
    """
    paths = project.paths
    evaluation = Evaluation.load(paths.evaluation / "metrics.json")
    labels = {case.case_id: case.label for case in project.dataset.train if case.label is not None}
    if "test_labels" in evaluation.made_from:
        opened = dict(test_labels())
        if digest_json(opened) != evaluation.made_from["test_labels"]:
            raise StaleArtefactError(
                f"{paths.evaluation}: made with other test labels than {paths.raw / 'cases.csv'} holds now. "
                f"Run her2net_evaluate {paths.options} again, then her2net_report {paths.options}."
            )
        labels |= opened
    tables = {
        (name, part): read_predictions(paths.model(name) / f"{part}.csv").with_labels(labels)
        for name in names
        for part in ("oof", "test")
        if f"{name}/{part}.csv" in evaluation.made_from
    }
    tables |= _without_resembling(tables, set(project.splits.resembling_test_cases))
    folds = range(project.plan.splits.n_folds)
    modalities = list(project.plan.modalities)
    fusion = paths.model(FUSION) / "fusion.json"
    return Material(
        project=project, fingerprint=Fingerprint.load(paths.fingerprint), evaluation=evaluation,
        thresholds=Thresholds.load(paths.evaluation / "thresholds.json").models,
        fusion=FusionRecord.load(fusion) if FUSION in names else None, tables=tables,
        runs={m: tuple(RunRecord.load(paths.fold(m, k) / "run.json") for k in folds) for m in modalities},
        histories={m: tuple(_read_history(project, m, k) for k in folds) for m in modalities},
        tta={m: EnsembleRecord.load(paths.model(m) / "ensemble.json").tta for m in modalities},
        openings=read_openings(project), labels=labels, paper=paper,
        explained={t: TableExplanation.load(paths.model(t) / EXPLANATION) for t in project.plan.tables},
        added=AddedValues.load(paths.evaluation / JSON_NAME).rows if project.plan.tables else [],
        pseudonyms=None if pseudonym_key is None else pseudonymise((c.case_id for c in project.dataset.cases), pseudonym_key),
        problems=[p for p in verify(project.dataset, project.scan).problems if p.severity == "warning"],
    )  # fmt: skip


def _without_resembling(
    tables: Mapping[tuple[str, str], Predictions], left_out: set[str]
) -> dict[tuple[str, str], Predictions]:
    return {
        (model, RESEMBLING): table.take(np.array([case_id not in left_out for case_id in table.case_ids]))
        for (model, cohort), table in tables.items()
        if cohort == "test" and left_out
    }


def _read_history(project: Project, modality: str, fold: int) -> History:
    path = project.paths.fold(modality, fold) / "history.csv"
    rows = csv.DictReader(io.StringIO(read_text(path, made_by=f"her2net_train {modality} {fold}")))
    return tuple({name: float(cell) if cell else None for name, cell in row.items()} for row in rows)


def read_openings(project: Project) -> list[dict[str, Any]]:
    """Return the record of openings of the test labels, oldest first; empty if they were never opened.

    A line that a power cut or a full disk has mutilated counts as an opening for an unknown purpose.
    """
    path = project.paths.test_openings
    if not path.exists():
        return []
    return [_read_opening(line) for line in read_text(path).splitlines() if line.strip()]


def _read_opening(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"purpose": "unknown"}
