"""`dataset.json`: the strict model of what a dataset declares about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from her2net.artefact import Strict, load_json
from her2net.errors import Her2netError
from her2net.raw.images import ENDINGS
from her2net.raw.names import explain_bad_name
from her2net.raw.problems import Problem, problem

CovariateKind = Literal["continuous", "binary", "ordinal", "categorical"]
TAKEN_NAMES = {"fusion", "evaluation", "explain", "report", "predictions", "selftest", "clin"}
"""Names of folders that stand beside the modalities' in the results."""
TAKEN_START = "rad-"
"""Radiomics of the modality US lies in RAD-US."""
FIXED_COLUMNS = ("case_id", "label")


class ModalitySpec(Strict):
    """One image source: its channels in order (`{"0": "B-mode"}`) and the ending of its files."""

    channels: dict[str, str]
    file_ending: str

    @field_validator("channels")
    @classmethod
    def _check_channels(cls, channels: dict[str, str]) -> dict[str, str]:
        if not channels or sorted(channels) != sorted(str(i) for i in range(len(channels))):
            raise ValueError('channels must be numbered "0", "1", ... without a gap')
        if len(channels) > 1000:
            raise ValueError("at most 1000 channels")
        return dict(sorted(channels.items(), key=lambda item: int(item[0])))

    @field_validator("file_ending")
    @classmethod
    def _check_ending(cls, ending: str) -> str:
        if ending not in ENDINGS:
            raise ValueError(f"file_ending must be one of {', '.join(ENDINGS)}")
        return ending

    @property
    def n_channels(self) -> int:
        return len(self.channels)


class DatasetSpec(Strict):
    """What `dataset.json` says.

    Attributes:
        name: of the dataset.
        labels: class name -> number, consecutive from 0; in a binary task 1 is the positive class.
        modalities: name -> its channels and file ending.
        ordinal: whether the classes, of which there are at least three, have the order of their numbers.
        covariates: column of `cases.csv` -> kind; no other column may be read as a covariate.
        patient: column that holds the patient, the unit of splitting.
        site: column that holds the site, if declared.
    """

    name: str
    labels: dict[str, int]
    modalities: dict[str, ModalitySpec]
    ordinal: bool = False
    description: str = ""
    reference: str = ""
    licence: str = ""
    covariates: dict[str, CovariateKind] = Field(default_factory=dict)
    patient: str = "patient_id"
    site: str | None = None

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: dict[str, int]) -> dict[str, int]:
        if len(labels) < 2 or sorted(labels.values()) != list(range(len(labels))):
            raise ValueError(
                'labels must be at least two, numbered from 0 without a gap, like {"negative": 0, "positive": 1}'
            )
        if len({name.strip().casefold() for name in labels}) < len(labels):
            raise ValueError("label names must differ in more than upper and lower case")
        for name, number in labels.items():
            if not name.strip() or not name.isprintable():
                raise ValueError(f"the label name {name!r} is empty or not printable")
            if name.strip().lstrip("+-").isdigit() and name.strip() != str(number):
                raise ValueError(f"the label name {name!r} is a number other than its own, {number}")
        return labels

    @field_validator("modalities")
    @classmethod
    def _check_modalities(cls, modalities: dict[str, ModalitySpec]) -> dict[str, ModalitySpec]:
        if not modalities:
            raise ValueError(
                'name at least one modality, like {"US": {"channels": {"0": "B-mode"}, "file_ending": ".png"}}'
            )
        for name in modalities:
            reason = explain_bad_name(name)
            taken = name.casefold() in TAKEN_NAMES or name.casefold().startswith(TAKEN_START)
            if reason or taken or any(c.isspace() for c in name):
                raise ValueError(
                    f"the modality name {name!r} {reason or 'is taken by a folder of results or holds a space'}"
                )
        if len({name.casefold() for name in modalities}) < len(modalities):
            raise ValueError("modality names must differ in more than upper and lower case")
        return modalities

    @model_validator(mode="after")
    def _check_columns(self) -> DatasetSpec:
        if self.ordinal and len(self.labels) < 3:
            raise ValueError("ordinal: an order says something from three classes on; remove the key")
        reserved = {*FIXED_COLUMNS, self.patient.strip().casefold()}
        for column in self.covariates:
            if column.strip().casefold() in reserved:
                raise ValueError(
                    f"covariates: {column!r} is the id, the label or the patient and cannot be a covariate"
                )
        for key, name in (("patient", self.patient), ("site", self.site)):
            if name is not None and name.strip().casefold() in FIXED_COLUMNS:
                raise ValueError(f"{key}: {name!r} is the id or the label of a case, name another column")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted(self.labels, key=lambda name: self.labels[name]))


def load_spec(folder: Path) -> tuple[DatasetSpec | None, list[Problem]]:
    """Read `dataset.json` of a raw dataset, listing every problem in it."""
    path = folder / "dataset.json"
    remedy = "See docs/reference/raw-format.md for its keys."
    try:
        if path.exists() and not path.is_file():
            return None, [problem("error", "spec-missing", "dataset.json", "is not a file", remedy=remedy)]
        return DatasetSpec.model_validate(load_json(path)), []
    except ValidationError as error:
        return None, [_word(item, remedy) for item in error.errors()]
    except Her2netError as error:
        check = "spec-missing" if isinstance(error, FileNotFoundError) else "spec-not-json"
        what = str(error).removeprefix(f"{path}: ").rstrip(".")
        return None, [problem("error", check, "dataset.json", what, remedy=remedy)]
    except (OSError, ValueError, RecursionError) as error:
        return None, [problem("error", "spec-not-json", "dataset.json", f"cannot be read ({error})", remedy=remedy)]


def _word(item: ErrorDetails, remedy: str) -> Problem:
    key = ".".join(str(part) for part in item["loc"])
    what = str(item["msg"]).removeprefix("Value error, ")
    what = {"extra_forbidden": "unknown key", "missing": "is missing"}.get(item["type"], what[0].lower() + what[1:])
    shown = None if item["type"] in ("missing", "value_error") else repr(item["input"])[:80]
    where = f"dataset.json {key}" if key else "dataset.json"
    message = f"found {shown}" if shown else ""
    return problem("error", "spec-invalid", where, f"{what}; {message}" if message else what, remedy=remedy)
