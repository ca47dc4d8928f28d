"""The report stage: everything a dataset has under a plan → one HTML file, with its figures and tables beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from her2net.artefact import Artefact, digest_file, digest_json, write_text
from her2net.ensemble import EnsembleRecord
from her2net.explain.record import RECORD as EXPLAIN_RECORD
from her2net.fuse.stage import FUSION
from her2net.project import Project
from her2net.report.material import OWN_PURPOSE, collect, read_openings
from her2net.tabular.added import JSON_NAME
from her2net.tabular.stage import EXPLANATION
from her2net.train.fold import read_record

REPORT_VERSION = 8  # raise when the same inputs give another report
RECORD = "report.json"


class ReportRecord(Artefact):
    """`report.json`: what the report was made from.

    Attributes:
        paper: whether it compares with the published study.
        pseudonymised: whether cases have keyed hashes for names.
    """

    MADE_BY: ClassVar[str] = "her2net_report"

    paper: bool
    pseudonymised: bool = False


def report_inputs(project: Project, names: Sequence[str], *, paper: bool, pseudonymised: bool) -> dict[str, str]:
    """Digests of what a report is made from.

    Labels of test cases enter through the evaluation alone, so that asking whether a report is fresh opens nothing.

    Raises:
        MissingArtefactError: there is no evaluation yet.
    """
    paths = project.paths
    openings = [entry for entry in read_openings(project) if entry.get("purpose") != OWN_PURPOSE]
    cases = [
        [case.case_id, case.patient_id, case.part, case.label, case.site, case.covariates]
        for case in project.dataset.cases
    ]
    images = [[c.case_id, m, image.source_digest] for c in project.scan.cases for m, image in c.images.items()]
    made_from = {
        "version": str(REPORT_VERSION),
        "paper": str(paper),
        "pseudonymised": str(pseudonymised),
        "cases": digest_json([project.dataset.spec.model_dump(mode="json"), cases, images]),
        "plan": digest_json(project.plan),
        "splits": digest_json(project.splits),
        "openings": digest_json(openings),
    }
    for name in ("metrics.json", "thresholds.json"):
        path = paths.evaluation / name
        made_from[f"evaluation/{name}"] = digest_file(path) if path.exists() else ""
    for name in project.plan.modalities:
        records = [read_record(paths.fold(name, k)) for k in range(project.plan.splits.n_folds)]
        made_from[f"{name}/folds"] = digest_json([r.identity for r in records if r is not None])
        ensemble = paths.model(name) / "ensemble.json"
        made_from[f"{name}/tta"] = str(EnsembleRecord.load(ensemble).tta) if ensemble.exists() else ""
        explained = [*paths.explain(name).glob(f"*/{EXPLAIN_RECORD}"), *paths.explain(name).glob("*-contours*.json")]
        for path in sorted(explained):
            made_from[f"explain/{path.relative_to(paths.results / 'explain').as_posix()}"] = digest_file(path)
    for name in project.plan.tables:
        path = paths.model(name) / EXPLANATION
        made_from[f"{name}/{EXPLANATION}"] = digest_file(path) if path.exists() else ""
    if project.plan.tables:
        path = paths.evaluation / JSON_NAME
        made_from[f"evaluation/{JSON_NAME}"] = digest_file(path) if path.exists() else ""
    if FUSION in names:
        fusion = paths.model(FUSION) / "fusion.json"
        made_from["fusion/fusion.json"] = digest_file(fusion) if fusion.exists() else ""
    return made_from


def recorded_report(project: Project) -> ReportRecord:
    """Return the record of the report on disk.

    Raises:
        MissingArtefactError: there is none.
    """
    return ReportRecord.load(project.paths.report.parent / RECORD)


def write_report(
    project: Project, names: Sequence[str], *, test_labels: Callable[[], Mapping[str, int]], paper: bool,
    pseudonym_key: bytes | None = None,
) -> Path:  # fmt: skip
    """Write `report/`: the page, its figures and its tables; `report.json` last, which says that the rest is whole.

    Args:
        names: models, as the evaluation has them.
        test_labels: opens the sealed labels; called once, and only if the evaluation opened them.
        paper: whether to compare with the published study.
        pseudonym_key: gives every case a keyed hash for its name; `None` shows the names.

    Raises:
        MissingArtefactError: something was not made yet.
        StaleArtefactError: the test labels are not those that were evaluated.
        RawDataError: an image of a wrongly decided case cannot be read.
    """
    from her2net.report.page import make_page  # what draws; who asks whether a report is fresh needs none of it
    from her2net.report.pictures import make_pictures
    from her2net.report.render import render_page, render_table

    path = project.paths.report
    folder = path.parent
    hidden = pseudonym_key is not None
    material = collect(project, list(names), test_labels=test_labels, paper=paper, pseudonym_key=pseudonym_key)
    made_from = report_inputs(project, names, paper=paper, pseudonymised=hidden)
    pictures = make_pictures(material, folder / "figures")
    page = make_page(material, made_from, pictures)
    for table in page.tables:
        write_text(folder / "tables" / f"{table.key}.csv", table.to_csv())
        write_text(folder / "tables" / f"{table.key}.html", render_table(table, project.dataset.spec.name))
    write_text(path, render_page(page.context))
    _remove_others(folder / "tables", {table.key for table in page.tables})
    _remove_others(folder / "figures", {picture.key for picture in pictures})
    ReportRecord(made_from=made_from, paper=paper, pseudonymised=hidden).save(folder / RECORD)
    return path


def _remove_others(folder: Path, keys: set[str]) -> None:
    """Remove what an earlier report left under names that this one does not have."""
    for path in folder.iterdir():
        if path.stem not in keys:
            path.unlink()
