"""Model archive → trained model, after everything about it has been checked; and its import into the results."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from her2net.archive import manifest as m
from her2net.archive.check import check_parts, check_plan
from her2net.archive.container import open_container, read_member
from her2net.archive.manifest import Manifest
from her2net.archive.tables import check_tables
from her2net.archive.tensors import layout_of, load_tensors
from her2net.archive.vectors import replay_vectors, vector_layout
from her2net.artefact import Artefact, sweep_temporaries, write_text, writing
from her2net.errors import ArchiveError, PlanError, join_problems
from her2net.evaluate.thresholds import Thresholds
from her2net.fingerprint import Fingerprint
from her2net.fuse.stage import FusionRecord
from her2net.networks.build import build_network
from her2net.paths import DATASET_FOLDER, DatasetPaths, Roots
from her2net.plan.schema import ModalityPlan, Plan
from her2net.raw.names import explain_bad_name
from her2net.tabular.record import TableFold
from her2net.train.loop import channels_last
from her2net.trained import TrainedModel
from her2net.version import __version__

PartT = TypeVar("PartT", bound=Artefact)
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class LoadedArchive:
    """An archive that passed every check.

    Attributes:
        card: the model card, Markdown.
        difference: largest deviation from the test vectors.
    """

    model: TrainedModel
    manifest: Manifest
    card: str
    difference: float


def load_archive(path: Path, device: str = "cpu") -> LoadedArchive:
    """Check an archive and load its model; nothing is written, nothing executed.

    In this order: structure of the container, manifest, hashes, schemas, fit of the parts, tensors, test vectors.

    Raises:
        MissingArtefactError: no such file.
        ArchiveError: anything is wrong with it.
    """
    with open_container(path) as archive:
        manifest = _parse(Manifest, read_member(archive, m.MANIFEST, where=path, member=None, limit=m.MAX_TEXT_BYTES),
                          f"{path}: {m.MANIFEST}")  # fmt: skip
        _compare_names(path, archive, manifest.members)
        text = partial(_read_text, archive, manifest, path)
        plan = text(Plan, m.PLAN)
        _refuse(path, "its plan cannot be used", check_plan(plan))
        fused = m.has_fusion(plan, listed=m.FUSION_FILE in manifest.members)
        _compare_names(path, archive, m.expected_members(plan, fusion=fused))
        fingerprint, thresholds = text(Fingerprint, m.FINGERPRINT), text(Thresholds, m.THRESHOLDS)
        fusion = text(FusionRecord, m.FUSION_FILE) if fused else None
        _refuse(path, "its parts do not fit each other", check_parts(plan, manifest, fingerprint, thresholds, fusion))
        tables = {
            name: [text(TableFold, m.table_name(name, k), limit=m.MAX_TABLE_BYTES) for k in range(plan.splits.n_folds)]
            for name in plan.tables
        }
        _refuse(path, "its table models cannot be used", check_tables(plan, tables))
        card, _ = (_decode(archive, manifest, path, name) for name in (m.CARD, m.LICENCE))
        networks = {
            name: [_load_network(archive, manifest, path, section, m.weights_name(name, k), plan.n_classes)
                   for k in range(plan.splits.n_folds)]
            for name, section in plan.modalities.items()
        }  # fmt: skip
        content = read_member(archive, m.VECTORS, where=path, member=manifest.members[m.VECTORS], limit=m.MAX_MEMBER_BYTES)
    vectors = load_tensors(content, vector_layout(plan, tables, fusion), where=f"{path}: {m.VECTORS}")
    difference = replay_vectors(plan, networks, tables, fusion, vectors, where=path)
    networks = {name: [network.to(device) for network in folds] for name, folds in networks.items()}
    model = TrainedModel(plan=plan, fingerprint=fingerprint, networks=networks, fusion=fusion, thresholds=thresholds,
                         tta=manifest.tta, tables=tables)
    return LoadedArchive(model, manifest, card, difference)


def _compare_names(path: Path, archive: zipfile.ZipFile, expected: dict[str, m.Member] | set[str]) -> None:
    names = set(archive.namelist()) - {m.MANIFEST}
    problems = [f"{name!r} is missing." for name in sorted(set(expected) - names)]
    problems += [f"{name!r} has no place in it." for name in sorted(names - set(expected))]
    _refuse(path, "other members than a model archive has", problems)


def _refuse(path: Path, headline: str, problems: Sequence[str]) -> None:
    if problems:
        raise ArchiveError(join_problems(f"{path}: {headline}.", problems))


def _decode(archive: zipfile.ZipFile, manifest: Manifest, path: Path, name: str, limit: int = m.MAX_TEXT_BYTES) -> str:
    content = read_member(archive, name, where=path, member=manifest.members[name], limit=limit)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArchiveError(f"{path}: {name}: not UTF-8 text (byte {error.start}).") from None


def _read_text(
    archive: zipfile.ZipFile, manifest: Manifest, path: Path, kind: type[PartT], name: str, *, limit: int = m.MAX_TEXT_BYTES
) -> PartT:
    try:
        return _parse(kind, _decode(archive, manifest, path, name, limit).encode(), f"{path}: {name}")
    except ArchiveError as error:
        made, here = manifest.her2net_version, __version__
        hint = f"\nThe archive was made by her2net {made}; this is {here}." if made != here else ""
        raise ArchiveError(f"{error}{hint}") from None


def _parse(kind: type[PartT], content: bytes, where: str) -> PartT:
    try:
        return kind.parse(content.decode("utf-8"), where=where)
    except UnicodeDecodeError as error:
        raise ArchiveError(f"{where}: not UTF-8 text (byte {error.start}).") from None
    except PlanError as error:
        raise ArchiveError(str(error)) from None


def _load_network(
    archive: zipfile.ZipFile, manifest: Manifest, path: Path, section: ModalityPlan, name: str, n_classes: int
) -> torch.nn.Module:
    network = build_network(section.training.network, n_channels=section.n_inputs, n_classes=n_classes)
    content = read_member(archive, name, where=path, member=manifest.members[name], limit=m.MAX_MEMBER_BYTES)
    network.load_state_dict(load_tensors(content, layout_of(network.state_dict()), where=f"{path}: {name}"))
    return channels_last(network, section.ndim).eval()


def import_archive(
    path: Path, roots: Roots, *, dataset: str | None = None, plan: str | None = None
) -> tuple[DatasetPaths, LoadedArchive, str]:
    """Check an archive and put it into the results folder, where `her2net_predict -d` finds it.

    Args:
        dataset: name of the folder to import under; that of the archive if left out.
        plan: name to import under, likewise.

    Returns:
        Where it lies, what it holds, and the SHA-256 of the file.

    Raises:
        ArchiveError: anything is wrong with it, or another model is there already. Nothing is written then.
    """
    loaded = load_archive(path)
    own = loaded.model.plan
    paths = DatasetPaths(roots, dataset or own.dataset, plan or own.name)
    problems = [f"{name!r} {bad}." for name in (paths.folder, paths.plan_name) if (bad := explain_bad_name(name))]
    if not DATASET_FOLDER.match(paths.folder):
        problems.append(f"{paths.folder!r} is not named like Dataset001_Name.")
    _refuse(path, "cannot be imported under this name", problems)
    digest = sha256_of(path)
    if paths.imported.is_file() and sha256_of(paths.imported) == digest:
        write_text(paths.imported.with_name(m.CARD), loaded.card)  # a kill may have come between the two files
        return paths, loaded, digest
    there = [p for p in paths.results.glob("*") if not p.match(".*.tmp")]  # of an import that was killed
    if paths.plan.exists() or there:
        raise ArchiveError(
            f"{paths.results}: a model of this name is here already. Import under another name (-p NAME), or delete that folder."
        )
    _copy(path, paths, loaded.card)
    return paths, loaded, digest


def _copy(path: Path, paths: DatasetPaths, card: str) -> None:
    """Copy the file whole or not at all; folders that were made for it go with it."""
    made = [p for p in (paths.results, paths.results.parent, paths.roots.results) if not p.exists()]
    try:
        with path.open("rb") as source, writing(paths.imported) as target:
            shutil.copyfileobj(source, target, BLOCK_BYTES)
        write_text(paths.imported.with_name(m.CARD), card)
        sweep_temporaries(paths.results)
    except OSError as error:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise ArchiveError(f"{paths.imported}: cannot be written ({error.strerror or error}).") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, by which sender and receiver compare it."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()
