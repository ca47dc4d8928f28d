"""The content of a report: every table and figure computed once, and named as the templates ask for them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import resources
from typing import Any

from her2net.artefact import digest_json
from her2net.evaluate.figures import DRAWERS
from her2net.explain.contour_record import describe_contours
from her2net.fuse.choose import METHOD_NAMES
from her2net.networks.build import network_spec
from her2net.paths import folder_name
from her2net.report import cohort, results, settings, tabular, use
from her2net.report.cautions import find_cautions
from her2net.report.checklists import FILES, fill_checklist
from her2net.report.figures import forest_rows
from her2net.report.gallery import (
    collect_contours,
    collect_galleries,
    contours_table,
    embed_galleries,
    explanations_table,
)
from her2net.report.material import Material
from her2net.report.mistakes import find_mistakes, mistakes_table, split_shown
from her2net.report.paper import paper_tables
from her2net.report.pictures import Picture
from her2net.report.render import make_environment
from her2net.report.summary import summarise
from her2net.report.table import Table
from her2net.report.words import cohort_name, listed, percent
from her2net.version import __version__

SECTIONS = {
    "answer": "Answer", "patients": "Patients", "plan": "The plan", "training": "Training", "results": "Results",
    "tables": "Radiomics and clinical data", "comparisons": "Models compared", "subgroups": "Subgroups",
    "mistakes": "Mistakes", "explanations": "What the networks looked at", "paper": "Beside Fan et al. 2025",
    "methods": "Methods", "checklists": "Checklists", "provenance": "Provenance", "glossary": "Glossary",
    "all-figures": "All figures and decisions",
}  # fmt: skip


@dataclass(frozen=True)
class Page:
    """What the templates show, and all tables of it."""

    context: dict[str, Any]
    tables: list[Table]


def make_page(material: Material, made_from: Mapping[str, str], drawn: Sequence[Picture]) -> Page:
    """Compute everything that a report shows.

    Args:
        made_from: digests of the inputs of the report.
        drawn: its figures.
    """
    groups = cohort.count_groups(material)
    subgroups = material.evaluation.subgroups
    mistakes = find_mistakes(material)
    surest, least_sure = split_shown(mistakes)
    table1s = cohort.table1s(material)
    matrices = [t for c in material.cohorts if (t := results.comparison_matrix(material, c)) is not None]
    compared = paper_tables(material) if material.paper else []
    galleries, stale_galleries = collect_galleries(material.project)
    if material.pseudonyms is not None:  # pictures and files of explanations bear the names of cases
        galleries, stale_galleries = [], ["Explanations bear the names of cases and are left out of a pseudonymised report."]
    contours, stale_contours = collect_contours(material.project)
    tables = {
        "flow": cohort.flow_table(material, groups), "data_warnings": settings.problems_table(material),
        "plan": settings.settings_table(material), "fusion": settings.fusion_table(material),
        "fusion_methods": settings.fusion_methods_table(material),
        "results": results.results_table(material), "confusion": results.confusion_table(material),
        "certainty": results.certainty_table(material), "discrimination": use.discrimination_table(material),
        "calibration": use.calibration_table(material), "rule_in_out": use.rule_table(material), "impact": use.impact_table(material),
        "subgroups": results.subgroups_table(forest_rows(subgroups, *material.headline), "subgroups",
                                             f"{material.headline[0]}, {cohort_name(material.headline[1])}", material.counted),
        "all_subgroups": results.subgroups_table(subgroups, "all_subgroups", "all models and cohorts", material.counted),
        "mistakes": mistakes_table(material, mistakes), "openings": settings.openings_table(material),
        "software": settings.software_table(material), "digests": settings.digests_table(material, made_from),
        "all_metrics": results.all_metrics_table(material), "comparisons": results.comparisons_table(material),
        "decisions": settings.decisions_table(material), "added_value": tabular.added_value_table(material),
        "explanations": explanations_table(galleries), "contours": contours_table(contours),
    }  # fmt: skip
    sections = tabular.table_sections(material)
    pictures = {picture.key: picture for picture in drawn}
    context = _facts(material) | {
        "groups": groups, "train": groups[0], "test": groups[1] if len(groups) > 1 else None, "summary": summarise(material),
        "cautions": find_cautions(material, groups), "table1s": table1s, "matrices": matrices, "tables": tables,
        "paper_tables": compared, "pictures": dict.fromkeys(("subgroups", "contours")) | pictures,
        "surest": surest, "least_sure": least_sure,
        "galleries": embed_galleries(galleries, material.project.paths.results), "stale_galleries": stale_galleries,
        "contours": [describe_contours(record) for record in contours], "stale_contours": stale_contours,
        "n_mistakes": len(mistakes), "pseudonymised": material.pseudonyms is not None, "has_subgroups": bool(subgroups),
        "curves": {c: [pictures[f"{kind}_{c}"] for kind in DRAWERS if f"{kind}_{c}" in pictures] for c in material.cohorts},
        "sections": {key: title for key, title in SECTIONS.items() if {"paper": compared, "tables": sections}.get(key, True)},
        "table_models": sections, "added_value": tabular.sentences(material), "folder_name": folder_name,
    }  # fmt: skip
    environment = make_environment(autoescape=False)
    checklists = [fill_checklist(file, environment, context) for file in FILES]
    explained = [table for section in sections for table in (section.weights, section.importance)]
    shown = [*tables.values(), *table1s, *matrices, *compared, *checklists, *explained]
    return Page(context | {"checklists": checklists}, [table for table in shown if table is not None])


def _facts(material: Material) -> dict[str, Any]:
    """Return what templates and checklists name directly."""
    plan, dataset = material.plan, material.project.dataset
    model, headline = material.headline
    advice = next((c.advice for c in material.evaluation.certainty if (c.model, c.cohort) == (model, headline)), "")
    kinds = Counter(found.kind for found in material.evaluation.recalibration.values() if found.kind != "none")
    main = results.MAIN_BINARY if material.binary else results.MAIN_MULTICLASS
    metrics = [m for m in material.evaluation.metrics if m.metric in (*main, "brier", "calibration_slope")]
    cases = material.fingerprint.cases_per_class
    return {
        "version": __version__, "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "plan": plan,
        "plan_digest": digest_json(plan), "dataset": material.project.paths.folder, "spec": dataset.spec,
        "fingerprint": material.fingerprint, "runs": material.runs, "fusion": material.fusion,
        "fused": material.fusion is not None,
        "fusion_method": METHOD_NAMES[material.fusion.method] if material.fusion else "",
        "holdout": material.project.splits.holdout, "openings": material.openings,
        "classes": " or ".join(material.class_names), "modalities": listed(list(plan.modalities)),
        "binary": material.binary, "cohorts": material.cohorts, "has_test": "test" in material.cohorts, "advice": advice,
        "resembling": len(material.project.splits.resembling_test_cases), "tta_any": any(material.tta.values()),
        "recalibrated": listed([f"{kind} ({n} of {len(material.models)} models)" for kind, n in kinds.items()]),
        "networks": "; ".join(f"{name}: {m.training.network}" for name, m in plan.modalities.items()),
        "class_weights": {name: settings.class_weights(runs) for name, runs in material.runs.items()},
        "learners": {learner for table in plan.tables.values() for learner in table.model.learners},
        "solved": {name: network_spec(m.training.network).solved for name, m in plan.modalities.items()},
        "environment": next(iter(material.runs.values()))[0].environment, "threshold_note": results.threshold_note(material),
        "interval_methods": results.methods_of(metrics, material.class_names), "glossary": _glossary(),
        "prevalence": listed([f"{percent(n / sum(cases.values()))} {name}" for name, n in cases.items()]),
    }  # fmt: skip


def _glossary() -> list[dict[str, str]]:
    return json.loads(resources.files("her2net.report").joinpath("glossary.json").read_text(encoding="utf-8"))
