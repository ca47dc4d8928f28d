"""What the report says of its figures is true of them: no more is claimed than they show, and none is left unexplained."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_report import read_all_labels

from her2net import status
from her2net.paths import DatasetPaths
from her2net.project import load_project
from her2net.report import cautions
from her2net.report.cohort import count_groups
from her2net.report.material import Material, collect
from her2net.report.tabular import sentences
from her2net.tabular.added import AddedValue


@pytest.fixture(scope="module")
def material(small_run: DatasetPaths) -> Material:
    project = load_project(small_run)
    known, test = read_all_labels(small_run), {case.case_id for case in project.dataset.test}
    labels = {case_id: label for case_id, label in known.items() if case_id in test}
    return collect(project, status.model_names(project), test_labels=lambda: labels, paper=False)


def warn(material: Material) -> dict[str, str]:
    """Return caution -> how serious it is."""
    return {caution.text: caution.level for caution in cautions.find_cautions(material, count_groups(material))}


def weigh(material: Material, weights: list[list[float]]) -> Material:
    """Give the fusion of US and MRI other weights."""
    assert material.fusion is not None
    both = next(m for m in material.fusion.models if m.modalities == ["US", "MRI"]).model_copy(update={"weights": weights})
    return replace(material, fusion=material.fusion.model_copy(update={"models": [both]}))


def added_value(**changes: object) -> AddedValue:
    values = {"base": ["CLIN"], "added": ["US", "MRI"], "cohort": "test", "n": 40, "n_positive": 20, "auc_base": 0.6,
              "auc_both": 0.8, "difference": 0.2, "ci_low": 0.1, "ci_high": 0.3, "p_value": 1e-5,
              "p_adjusted": 1e-5, "test": "", "reason": ""}  # fmt: skip
    return AddedValue.model_validate(values | changes)


def test_a_modality_without_weight_in_the_fusion_is_named(material: Material) -> None:
    rows = [added_value()]
    mute, both = (replace(weigh(material, [[1.0, mri]]), added=rows) for mri in (0.0, 0.5))
    text = "MRI has no weight in the fusion that was fitted on all cases and predicts new ones: what it says is what US says."
    assert warn(mute)[text] == "serious"
    assert not any("no weight" in caution for caution in warn(both))
    assert sentences(mute) == [f"{sentences(both)[0]} In the fusion, MRI has no weight."]
    three = weigh(material, [[0.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])  # two logits of US, then two of MRI
    assert (three.weighed, three.silent) == (["MRI"], ["US"])
    nothing = next(caution for caution in warn(weigh(material, [[0.0, 0.0]])) if "no weight" in caution)
    assert nothing.startswith("US and MRI have no weight")
    assert nothing.endswith(": nor has anything else.")
