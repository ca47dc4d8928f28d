"""Where everything lies: the three roots and every file name below them.

No other module builds a path to an artefact, so this file is the map of the disk.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from her2net.errors import RawDataError

ROOT_NAMES = ("her2net_raw", "her2net_preprocessed", "her2net_results")
DEFAULT_PLAN = "auto"
DATASET_FOLDER = re.compile(r"^Dataset(\d{3,})_(.+)$")


@dataclass(frozen=True)
class Roots:
    """The three root folders; `defaulted` names those not set in the environment, `relative` those set to a relative path."""

    raw: Path
    preprocessed: Path
    results: Path
    defaulted: tuple[str, ...] = ()
    relative: tuple[str, ...] = ()


def find_roots() -> Roots:
    """Read the roots from the environment; an unset one is a folder of that name in the current directory."""
    asked = [Path(os.environ.get(name) or name).expanduser() for name in ROOT_NAMES]
    defaulted = tuple(name for name in ROOT_NAMES if not os.environ.get(name))
    relative = tuple(name for name, path in zip(ROOT_NAMES, asked, strict=True) if not path.is_absolute() and name not in defaulted)
    raw, preprocessed, results = (Path.cwd() / path for path in asked)
    return Roots(raw, preprocessed, results, defaulted, relative)


def find_dataset(roots: Roots, dataset: str | None) -> str:
    """Resolve an id (`101`), a name (`BreastReal`) or a folder name to the folder name.

    Args:
        dataset: what the user typed; `None` is allowed while the raw root holds one dataset.

    Raises:
        RawDataError: no such dataset, or several match; the message lists those there are.
    """
    if not roots.raw.is_dir():
        raise RawDataError(
            f"{roots.raw}: the raw root does not exist. Create it and put a folder Dataset001_Name into it, "
            "or set the environment variable her2net_raw to where your datasets are."
        )
    found = _choose(_list_datasets(roots.raw), dataset, where=roots.raw)
    _check_utf8(roots.raw / found)
    return found


def find_trained(roots: Roots, dataset: str | None, plan: str = DEFAULT_PLAN) -> DatasetPaths:
    """Resolve as `find_dataset` does, and among imported models too, which need no raw folder.

    Raises:
        RawDataError: as `find_dataset`.
    """
    imported = [n for n in _list_datasets(roots.results) if DatasetPaths(roots, n, plan).imported.is_file()]
    if not imported:
        return DatasetPaths(roots, find_dataset(roots, dataset), plan)
    there = sorted({*imported, *_list_datasets(roots.raw)})
    return DatasetPaths(roots, _choose(there, dataset, where=roots.results), plan)


def _list_datasets(root: Path) -> list[str]:
    try:
        folders = root.iterdir() if root.is_dir() else ()
        return sorted(p.name for p in folders if DATASET_FOLDER.match(p.name) and p.is_dir())
    except OSError as error:
        raise RawDataError(f"{root}: cannot be searched for datasets ({error.strerror}). Make it readable.") from None


def _choose(folders: list[str], dataset: str | None, *, where: Path) -> str:
    listing = ", ".join(folders) or "none (a dataset is a folder named like Dataset001_Name)"
    if dataset is None:
        if len(folders) == 1:
            return folders[0]
        raise RawDataError(f"{where}: say which dataset with -d, there is not exactly one. Found: {listing}.")
    matches = [name for name in folders if _matches(name, dataset)]
    if len(matches) == 1:
        return matches[0]
    problem = "several datasets match" if matches else "no dataset matches"
    raise RawDataError(f"{where}: {problem} {dataset!r}. Found: {listing}.")


def _check_utf8(folder: Path) -> None:
    """Refuse a path that libraries in C cannot open, or end the interpreter over."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise RawDataError(f"{folder}: the path holds bytes that are not UTF-8. Rename the folder.") from None


def _matches(folder: str, wanted: str) -> bool:
    number, name = DATASET_FOLDER.match(folder).groups()  # type: ignore[union-attr]
    return wanted in (folder, name) or (wanted.isdecimal() and int(wanted) == int(number))


def folder_name(model: str) -> str:
    """Name of a model's folder: `RAD:US` lies in `RAD-US`, because Windows forbids the colon."""
    return model.replace(":", "-")


@dataclass(frozen=True)
class DatasetPaths:
    """Every path of one dataset under one plan."""

    roots: Roots
    folder: str
    plan_name: str = DEFAULT_PLAN

    @property
    def options(self) -> str:
        """What names this dataset and plan on the command line; quoted, for a folder may hold spaces."""
        return f"-d {quote(self.folder)}" + ("" if self.plan_name == DEFAULT_PLAN else f" -p {quote(self.plan_name)}")

    @property
    def raw(self) -> Path:
        return self.roots.raw / self.folder

    @property
    def preprocessed(self) -> Path:
        return self.roots.preprocessed / self.folder

    @property
    def scan(self) -> Path:
        return self.preprocessed / "scan.json"

    @property
    def fingerprint(self) -> Path:
        return self.preprocessed / "fingerprint.json"

    @property
    def plan(self) -> Path:
        return self.preprocessed / "plans" / f"{self.plan_name}.json"

    @property
    def splits(self) -> Path:
        return self.preprocessed / "splits.json"

    @property
    def caches(self) -> Path:
        return self.preprocessed / "cache"

    def cache(self, modality: str, digest: str) -> Path:
        return self.caches / f"{modality}_{digest}.h5"

    @property
    def results(self) -> Path:
        return self.roots.results / self.folder / self.plan_name

    def features(self, name: str, digest: str) -> Path:
        """Features of a table model, one row per case, and the digest of what each row was made from."""
        return self.preprocessed / "tables" / f"{folder_name(name)}_{digest}.csv"

    def model(self, name: str) -> Path:
        """Folder of a modality, a table model or `fusion`: holds its `oof.csv` and `test.csv`."""
        return self.results / folder_name(name)

    def fold(self, modality: str, fold: int | str) -> Path:
        return self.model(modality) / f"fold_{fold}"

    @property
    def evaluation(self) -> Path:
        return self.results / "evaluation"

    @property
    def test_openings(self) -> Path:
        """One line per opening of the test labels (DESIGN rule 3); never rewritten, only appended to."""
        return self.roots.results / self.folder / "test_label_openings.jsonl"

    @property
    def imported(self) -> Path:
        """A model archive that `her2net_import` checked and put here."""
        return self.results / "model.her2net"

    @property
    def pseudonym_key(self) -> Path:
        """What turns ids into pseudonyms; never leaves this folder."""
        return self.roots.results / self.folder / "pseudonym.key"

    @property
    def predictions(self) -> Path:
        return self.results / "predictions"

    def explain(self, modality: str) -> Path:
        """Folder of the explanations of one modality: one folder per set, and the deep features."""
        return self.results / "explain" / modality

    @property
    def selftest(self) -> Path:
        return self.results / "selftest"

    @property
    def report(self) -> Path:
        return self.results / "report" / "report.html"
