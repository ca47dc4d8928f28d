"""The section `tables` of the plan: models of tables, radiomics of one modality or clinical covariates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from her2net.artefact import Strict, digest_json

CLINICAL = "CLIN"
"""Name of the table of clinical covariates."""

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

FeatureFamily = Literal[
    "statistics", "histogram", "intensity_volume", "glcm", "glrlm", "glszm", "gldzm", "ngtdm", "ngldm", "morphology",
    "ring", "margin", "behind",
]  # fmt: skip
"""Families of the Image Biomarker Standardisation Initiative (IBSI), doi:10.1148/radiol.2020191145, and her2net's own three of what
lies around the lesion; see `her2net.tabular.surroundings`."""
AROUND = ("ring", "margin", "behind")
"""The families that need no mirp."""
Learner = Literal["elastic_net", "forest"]
CovariateKind = Literal["continuous", "binary", "ordinal", "categorical"]


class RadiomicsPlan(Strict):
    """How one image and its mask become features.

    Attributes:
        normalisation: of the whole image before features are taken: `none` or `z-score` (all channels together).
        discretisation: of grey levels for histogram and texture: a number of bins between minimum and maximum of the
            lesion, or bins of one width.
        bins, bin_width: the one that `discretisation` needs; the other is `null`.
        by_slice: texture within slices, their matrices added up (IBSI 2.5D), instead of in the volume.
        spacing_mm: images are resampled to this, (H, W) by slice, else (D, H, W); `null` keeps the voxels as they are.
    """

    families: list[FeatureFamily] = Field(min_length=1)
    normalisation: Literal["none", "z-score"]
    discretisation: Literal["fixed_bin_number", "fixed_bin_width"]
    bins: Count | None
    bin_width: Positive | None
    by_slice: bool
    spacing_mm: list[Positive] | None

    @model_validator(mode="after")
    def _bins_agree(self) -> RadiomicsPlan:
        wanted, other = (self.bins, self.bin_width) if self.discretisation == "fixed_bin_number" else (self.bin_width, self.bins)
        if wanted is None or other is not None:
            raise ValueError(f"discretisation {self.discretisation} needs bins or bin_width, the other one null")
        if len(set(self.families)) < len(self.families):
            raise ValueError(f"families {self.families} name one twice")
        if self.spacing_mm is not None and len(self.spacing_mm) != 2 + (not self.by_slice):
            raise ValueError(f"spacing_mm {self.spacing_mm} needs {2 + (not self.by_slice)} numbers")
        return self


class TableModelPlan(Strict):
    """How a model is fitted to a table, inside each fold.

    Attributes:
        learners: what the inner loop chooses from.
        transform: of numbers before they are standardised.
        max_correlation: of two columns that correlate more, the later one is left out; 1 keeps all.
        inner_folds: of the loop, by patient, that chooses learner and hyper-parameters.
    """

    learners: list[Learner] = Field(min_length=1)
    transform: Literal["none", "normal_scores"]
    max_correlation: Annotated[float, Field(gt=0, le=1)]
    inner_folds: Annotated[int, Field(ge=2)]
    seed: int


class TablePlan(Strict):
    """A model of a table: radiomics of one modality, or clinical covariates.

    Attributes:
        modality: whose images and masks radiomics describes; `null` for covariates.
        columns: covariates and their kinds; empty for radiomics.
        fused: whether it enters the fusion without being asked for.
    """

    modality: str | None
    radiomics: RadiomicsPlan | None
    columns: dict[str, CovariateKind]
    model: TableModelPlan
    fused: bool

    @model_validator(mode="after")
    def _source_is_clear(self) -> TablePlan:
        if (self.modality is None) != (self.radiomics is None) or (self.radiomics is None) == (not self.columns):
            raise ValueError("a table has modality and radiomics, or columns")
        return self

    @property
    def features_digest(self) -> str:
        """Digest that names the file of the features."""
        return digest_json([self.modality, self.radiomics, self.columns] if self.radiomics is None else
                           [self.modality, self.radiomics.model_dump(mode="json")])  # fmt: skip
