"""What is fused: the modalities, the tables that the plan fuses, and clinical covariates on request."""

from __future__ import annotations

from itertools import product

from her2net.plan.schema import Plan
from her2net.plan.table_schema import CLINICAL


def fusion_sources(plan: Plan, *, covariates: bool) -> list[str]:
    """Return the models whose predictions are fused, in the order of the plan."""
    tables = [name for name, table in plan.tables.items() if table.fused or (covariates and name == CLINICAL)]
    return [*plan.modalities, *tables]


def fusion_subsets(plan: Plan, sources: list[str]) -> list[list[str]]:
    """Return the sets of models that get a fusion model of their own.

    Each planned set of modalities, with and without each table that a case with these modalities may have: an image may
    lack a mask, and a new case its covariates.
    """
    subsets = []
    for modalities in plan.fusion.subsets:
        own = [name for name in sources if name in plan.tables and plan.tables[name].modality in (None, *modalities)]
        for taken in product((False, True), repeat=len(own)):
            subsets.append([*modalities, *(name for name, there in zip(own, taken, strict=True) if there)])
    return subsets
