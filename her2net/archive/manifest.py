"""What a model archive holds: the names of its members, its manifest, and the limits of what is accepted."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from her2net.artefact import Artefact, Strict
from her2net.fuse.sources import fusion_sources
from her2net.paths import folder_name
from her2net.plan.schema import Plan
from her2net.version import __version__

SUFFIX = ".her2net"
MANIFEST, PLAN, FINGERPRINT = "manifest.json", "plan.json", "fingerprint.json"
MAX_LICENCE = 200
THRESHOLDS, FUSION_FILE, CARD, LICENCE = "thresholds.json", "fusion.json", "model_card.md", "licence.txt"
VECTORS = "test_vectors.safetensors"

MAX_ARCHIVE_BYTES = 16 * 2**30
MAX_MEMBER_BYTES = 2_000_000_000
MAX_TEXT_BYTES = 4 * 2**20
"""Of a member that is neither tensors nor a table model."""
MAX_TABLE_BYTES = 256 * 2**20
"""Of one fold of a table model; a forest on a thousand cases has a few megabytes."""
MAX_HEADER_BYTES = 2**20
"""Of the header of a safetensors file."""
MAX_DIRECTORY_BYTES = 2**20
"""Of the list of members at the end of the archive."""
MAX_FOLDS = 200
MAX_CLASSES = 1000


class Member(Strict):
    """Content of one member."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0, le=MAX_MEMBER_BYTES)]


class Manifest(Artefact):
    """`manifest.json`.

    Attributes:
        licence: identifier that the maker chose; `null` if none was chosen.
        preprocessing_version: of the arithmetic from image to network input; another one is refused.
        features_version: of the arithmetic from image to radiomics, likewise; `null` without radiomics.
        tta: modality -> whether fusion and thresholds were fitted on test-time augmented predictions.
        members: every other member.
    """

    MADE_BY: ClassVar[str] = "her2net_export"

    her2net_version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,40}$")] = __version__
    format: Literal["her2net model archive"] = "her2net model archive"
    licence: Annotated[str, Field(pattern=rf"^[ -~]{{1,{MAX_LICENCE}}}$")] | None
    preprocessing_version: int
    features_version: int | None = None
    tta: dict[str, bool]
    members: dict[str, Member]


def weights_name(modality: str, fold: int) -> str:
    """Name of the member with the weights of one fold."""
    return f"weights/{modality}/fold_{fold}.safetensors"


def table_name(table: str, fold: int) -> str:
    """Name of the member with one fold of a table model."""
    return f"tables/{folder_name(table)}/fold_{fold}.json"


def has_fusion(plan: Plan, *, listed: bool) -> bool:
    """Whether an archive of this plan holds a fusion; of images and covariates only if it was asked for, and is listed."""
    return len(fusion_sources(plan, covariates=listed)) > 1


def expected_members(plan: Plan, *, fusion: bool) -> set[str]:
    """Names of all members of an archive of this plan, but for the manifest."""
    names = {PLAN, FINGERPRINT, THRESHOLDS, CARD, LICENCE, VECTORS}
    folds = range(plan.splits.n_folds)
    names |= {weights_name(name, k) for name in plan.modalities for k in folds}
    names |= {table_name(name, k) for name in plan.tables for k in folds}
    return names | ({FUSION_FILE} if fusion else set())
