"""Which tables get a model of their own, and how: radiomics of each modality, and the declared covariates.

The section is kept apart from the rest of the plan. It is filled when the plan and the splits are made, and again when
something can be had that could not then (mirp was installed, a covariate declared); what the user removed stays removed.
A table whose smallest class is too small for an inner loop is not planned, and a decision says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from her2net.fingerprint import Fingerprint, ModalityFingerprint
from her2net.plan.rules import Choice
from her2net.plan.schema import NOT_PLANNED, Decision, Plan
from her2net.plan.table_schema import AROUND, CLINICAL, CovariateKind, RadiomicsPlan, TableModelPlan, TablePlan
from her2net.raw.dataset import Case

TEXTURE_FAMILIES = ["statistics", "histogram", "intensity_volume", "glcm", "glrlm", "glszm", "gldzm", "ngtdm", "ngldm"]
THICK = 2.0
AIR_HU = -900.0
HU_BIN = 25.0
VOXELS_PER_BIN = 32
BINS = (32, 16, 8)
SPACING_TOLERANCE = 1.02
INNER_FOLDS = 5


def choose_by_slice(found: ModalityFingerprint) -> Choice:
    """Texture in 2D where a step to the next slice is a longer way than a step within it.

    Source:
        IBSI reference manual (doi:10.1148/radiol.2020191145): volumetric texture needs voxels of nearly equal edges;
        matrices of slices are merged over them (2.5D), which fills those of small lesions.
    """
    if found.ndim == 2:
        return Choice(True, "the images are flat")
    if found.spacing_mm is None:
        return Choice(True, "the slice spacing is unknown")
    step = found.spacing_mm[0].median / max(found.spacing_mm[1].median, 1e-6)
    return Choice(step >= THICK, (
        f"slices are {step:.1f} times as far apart as pixels; in the volume below {THICK:g}. By slice, the texture matrices "
        "of all slices are added up (IBSI 2.5D)"))  # fmt: skip


def choose_discretisation(found: ModalityFingerprint) -> Choice:
    """Bins of one width where a grey level means the same in every image, else a number of bins.

    Source:
        IBSI reference manual: a fixed bin number for arbitrary units, such as MRI and ultrasound; a fixed width for
        calibrated ones, such as CT.
    """
    if found.ndim == 3 and found.image_statistics and min(c.p00_5 for c in found.image_statistics) <= AIR_HU:
        return Choice("fixed_bin_width", "intensities reach those of air in Hounsfield units: they are calibrated")
    return Choice("fixed_bin_number", "intensities are in arbitrary units, so a bin of one width would mean nothing")


def choose_families(found: ModalityFingerprint) -> Choice:
    """Everything but the outline's shape; what lies behind a lesion in flat images only, whose rows go down into the body.

    Source:
        See `her2net.tabular.surroundings`; docs/LOG.md has what they bring on BUSI.
    """
    around = [family for family in AROUND if family != "behind" or found.ndim == 2]
    return Choice(TEXTURE_FAMILIES + around, (
        "all IBSI families but the shape of the outline (morphology), and what lies around the lesion: outlines are often drawn by "
        "someone who knows the class, and then give it away (in BUSI the outline alone reaches an AUC of 0.98). Add \"morphology\" to "
        "switch it on"))  # fmt: skip


def choose_bins(found: ModalityFingerprint) -> Choice:
    """As many bins as leave the median lesion 32 voxels in each, 8 to 32.

    Source:
        IBSI reference manual leaves the number open; 16 to 64 are usual. Fewer in small lesions keeps the matrices filled.
    """
    volume = found.lesion_volume_vox.median if found.lesion_volume_vox else 0.0
    bins = next((b for b in BINS if volume >= VOXELS_PER_BIN * b), BINS[-1])
    return Choice(bins, f"the median lesion has {volume:.0f} voxels; at least {VOXELS_PER_BIN} for each bin, 8 to 32 bins")


def choose_spacing(found: ModalityFingerprint, *, by_slice: bool) -> Choice:
    """The median spacing for all where spacings differ, since texture depends on it.

    Source:
        IBSI reference manual: resample to equal voxels before texture is computed.
    """
    if found.spacing_mm is None or found.n_spacing_unknown:
        return Choice(None, "the spacing of some or all images is unknown: the voxels stay as they are")
    axes = found.spacing_mm[1:] if by_slice and found.ndim == 3 else found.spacing_mm
    spread = max(axis.maximum / axis.minimum for axis in axes)
    step = float(min(axis.median for axis in axes))
    edges_differ = max(axis.median for axis in axes) / step > SPACING_TOLERANCE
    if spread <= SPACING_TOLERANCE and not edges_differ:
        return Choice(None, f"all images have the same spacing, {step:.3g} mm")
    return Choice([step] * len(axes), f"spacings differ between images or axes by up to {spread:.2f} times; the finest median")


def plan_radiomics(name: str, modality: str, found: ModalityFingerprint) -> tuple[TablePlan, list[Decision]]:
    """Plan radiomics of one modality."""
    decisions = _Decisions(name)
    by_slice = decisions.take("radiomics.by_slice", "choose_by_slice", choose_by_slice(found))
    discretisation = decisions.take("radiomics.discretisation", "choose_discretisation", choose_discretisation(found))
    by_number = discretisation == "fixed_bin_number"
    off = Choice(None, f"not used by {discretisation}")
    raw = found.fixed_range
    radiomics = RadiomicsPlan(
        families=decisions.take("radiomics.families", "choose_families", choose_families(found)),
        normalisation=decisions.take("radiomics.normalisation", "choose_normalisation", Choice(
            "none" if raw or not by_number else "z-score",
            "all images are 8-bit: grey levels share one scale" if raw else
            "intensities are calibrated" if not by_number else "intensities are in arbitrary units")),
        discretisation=discretisation,
        bins=decisions.take("radiomics.bins", "choose_bins", choose_bins(found) if by_number else off),
        bin_width=decisions.take("radiomics.bin_width", "choose_bins", off if by_number else
                                 Choice(HU_BIN, "25 HU, usual in CT")),
        by_slice=by_slice,
        spacing_mm=decisions.take("radiomics.spacing_mm", "choose_spacing", choose_spacing(found, by_slice=by_slice)),
    )  # fmt: skip
    model = _plan_model(decisions, TableModelPlan(learners=["elastic_net", "forest"], transform="normal_scores",
                                                  max_correlation=0.95, inner_folds=INNER_FOLDS, seed=0))
    fused = decisions.take("fused", "default", Choice(False, (
        "whether radiomics adds to the images is a question that the report answers; it is not taken for granted")))
    return TablePlan(modality=modality, radiomics=radiomics, columns={}, model=model, fused=fused), decisions.taken


def plan_covariates(columns: Mapping[str, CovariateKind]) -> tuple[TablePlan, list[Decision]]:
    """Plan the model of the clinical covariates."""
    decisions = _Decisions(CLINICAL)
    chosen = decisions.take("columns", "usable_covariates", Choice(dict(columns), (
        "declared in dataset.json; the site is left out, for it says where a patient was seen and not what the patient has")))
    model = _plan_model(decisions, TableModelPlan(learners=["elastic_net"], transform="none", max_correlation=1.0,
                                                  inner_folds=INNER_FOLDS, seed=0))
    fused = decisions.take("fused", "default", Choice(False, "her2net_fuse --covariates adds it"))
    return TablePlan(modality=None, radiomics=None, columns=chosen, model=model, fused=fused), decisions.taken


def usable_covariates(covariates: Mapping[str, CovariateKind], site: str | None) -> dict[str, CovariateKind]:
    """Return the declared covariates without the column of the site."""
    return {name: kind for name, kind in covariates.items() if name != site}


def count_fewest(cases: Sequence[Case], folds: Sequence[Collection[str]], n_classes: int) -> int:
    """Return the number of training patients of the smallest class in the fold that has fewest of them."""
    return min(
        len({case.patient_id for case in cases if case.label == c and case.patient_id not in held})
        for held in map(set, folds) for c in range(n_classes)
    )  # fmt: skip


def enough_patients(n_fewest: int) -> Choice:
    """Whether a table can have a model: each of the inner folds needs a held-out patient of every class.

    Source:
        The inner loop of `her2net.tabular.learn`, which chooses the penalty; five patients do not make a good model, but
        the report says with what interval it was measured.
    """
    there = f"the smallest class has {n_fewest} training patient{'s' * (n_fewest != 1)} with these features in some fold"
    if n_fewest < INNER_FOLDS:
        return Choice(False, f"not planned: {there}; the inner loop needs {INNER_FOLDS}")
    return Choice(True, there)


def settle_tables(
    plan: Plan, fingerprint: Fingerprint, covariates: Mapping[str, CovariateKind], *, radiomics: bool,
    fewest: Callable[[TablePlan], int],
) -> tuple[Plan, list[str]]:  # fmt: skip
    """Bring the tables of a plan up to date; return it and remarks.

    Args:
        covariates: usable ones, as declared now.
        radiomics: whether mirp is at hand.
        fewest: what `count_fewest` says of the cases that have a table.
    """
    if plan.preset == "paper":
        return plan, []
    remarks: list[str] = []
    edited = {name for name in plan.tables if any(path.startswith(f"tables.{name}.") for path in plan.edited)}
    unmade = {name for name, table in plan.tables.items() if name not in edited and not enough_patients(fewest(table)).value}
    former = next((d.value for d in plan.decisions if d.path == f"tables.{CLINICAL}.columns"), None)
    if former is not None and former != dict(covariates):
        unmade.add(CLINICAL)
        remarks.append(f"{CLINICAL}: planned anew, for dataset.json declares other covariates now")
    tables = {name: table for name, table in plan.tables.items() if name not in unmade}
    decisions = [d for d in plan.decisions if d.rule != NOT_PLANNED and not any(d.path.startswith(f"tables.{n}.") for n in unmade)]
    settled = {*tables, *plan.decided_tables} - unmade
    for name, modality in _wanted_tables(plan, fingerprint, covariates):
        if name in settled:
            continue
        if modality is not None and not radiomics:
            remarks.append(f"{name}: not planned; pip install 'her2net[radiomics]' and run her2net_plan again to have it")
            continue
        table, taken = (plan_covariates(covariates) if modality is None else
                        plan_radiomics(name, modality, fingerprint.modalities[modality]))  # fmt: skip
        enough = enough_patients(fewest(table))
        if enough.value:
            tables[name], decisions = table, decisions + taken
            continue
        decisions.append(Decision(path=f"tables.{name}", value=None, rule=NOT_PLANNED, reason=enough.reason))
        if name not in plan.unplanned_tables:
            remarks.append(f"{name}: {enough.reason}")
    return plan.model_copy(update={"tables": tables, "decisions": decisions}), remarks


def _wanted_tables(
    plan: Plan, fingerprint: Fingerprint, covariates: Mapping[str, CovariateKind]
) -> list[tuple[str, str | None]]:
    """Return name and modality of the tables that the data have: radiomics where there are masks, and the covariates."""
    found: list[tuple[str, str | None]] = [
        (f"RAD:{modality}", modality) for modality, m in fingerprint.modalities.items()
        if modality in plan.modalities and m.n_without_mask < m.n_cases
    ]  # fmt: skip
    return found + ([(CLINICAL, None)] if covariates else [])


def _plan_model(decisions: _Decisions, model: TableModelPlan) -> TableModelPlan:
    reasons = {
        "learners": "the inner loop takes the one with the smaller log loss, inside each fold",
        "transform": ("features are skewed and have outliers; a linear model wants neither"
                      if model.transform != "none" else "an odds ratio per unit stays readable"),
        "max_correlation": ("radiomics features are many and alike; of two that say the same one is enough"
                            if model.max_correlation < 1 else "covariates are few and were chosen by the user"),
        "inner_folds": "of the training patients of each fold; fewer where a class has fewer patients",
        "seed": "fixed, so that the same inputs give the same numbers",
    }  # fmt: skip
    for field, reason in reasons.items():
        decisions.take(f"model.{field}", "default", Choice(getattr(model, field), reason))
    return model


class _Decisions:
    """Collects the decisions of one table."""

    def __init__(self, table: str) -> None:
        self.table = table
        self.taken: list[Decision] = []

    def take(self, path: str, rule: str, choice: Choice) -> Any:
        """Record a choice and return its value."""
        self.taken.append(Decision(path=f"tables.{self.table}.{path}", value=choice.value, rule=rule, reason=choice.reason))
        return choice.value
