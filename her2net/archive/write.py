"""Trained model → model archive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from her2net.archive.card import Training, write_card
from her2net.archive.container import write_container
from her2net.archive.licence import Licence
from her2net.archive.manifest import (
    CARD,
    FINGERPRINT,
    FUSION_FILE,
    LICENCE,
    PLAN,
    SUFFIX,
    THRESHOLDS,
    VECTORS,
    Manifest,
    Member,
    table_name,
    weights_name,
)
from her2net.archive.read import sha256_of
from her2net.archive.tensors import dump_tensors
from her2net.archive.vectors import make_vectors
from her2net.artefact import Artefact, digest_json
from her2net.errors import ArchiveError, describe
from her2net.evaluate.record import Evaluation
from her2net.networks.build import network_spec
from her2net.paths import DatasetPaths
from her2net.preprocess.cache import CACHE_VERSION
from her2net.tabular.features import FEATURES_VERSION
from her2net.train.fold import read_record
from her2net.train.record import RunRecord
from her2net.trained import TrainedModel, load_trained


@dataclass(frozen=True)
class WrittenArchive:
    """Where an archive lies, and its SHA-256."""

    path: Path
    sha256: str
    n_bytes: int
    licence: Licence


def export_model(paths: DatasetPaths, output: Path | None, licence: Licence) -> WrittenArchive:
    """Write the archive of what was trained from a dataset, which has to be evaluated.

    Args:
        output: a file name that ends in `.her2net`, a folder, or `None` for `<dataset>_<plan>.her2net` right here.

    Raises:
        MissingArtefactError: something is not made yet; names the command.
        ArchiveError: the file name has another ending, or the file cannot be written.
    """
    default = f"{paths.folder}_{paths.plan_name}{SUFFIX}"
    path = Path(default) if output is None else output / default if output.is_dir() else output
    if not path.name.lower().endswith(SUFFIX):
        expected = f"a name that ends in {SUFFIX}"
        raise ArchiveError(describe("not the name of a model archive", where="-o", found=str(output), expected=expected))
    evaluation = Evaluation.load(paths.evaluation / "metrics.json")
    model = load_trained(paths, "cpu")
    records = {name: [read_record(paths.fold(name, k)) for k in range(model.plan.splits.n_folds)] for name in model.networks}
    training = {name: _describe_training([r for r in folds if r is not None]) for name, folds in records.items()}
    write_archive(path, model, write_card(model, evaluation, training, licence), licence)
    return WrittenArchive(path, sha256_of(path), path.stat().st_size, licence)


def _describe_training(records: Sequence[RunRecord]) -> Training:
    """Say where weights started without the path of a weight file, which `run.json` may hold."""
    first = records[0]
    if first.training.initialisation == "scratch" or "from scratch" in first.initialisation:
        start = "random numbers"
    elif (repository := network_spec(first.training.network).weights_repo) in first.initialisation:
        start = repository
    else:
        start = "a weight file of the makers"
    return Training(tuple(record.epochs_done for record in records), start)


def write_archive(path: Path, model: TrainedModel, card: str, licence: Licence) -> None:
    """Write a model with its test vectors; the same model gives the same bytes.

    What could tell of a patient, a place or a machine stays behind: case ids, sites, the machine measurement, and the
    digests of training cases in table models.

    Raises:
        ArchiveError: the file cannot be written.
    """
    plan = model.plan.model_copy(update={"machine": None})
    fingerprint = model.fingerprint.model_copy(update={"patients_per_site": {}})

    def members() -> Iterator[tuple[str, bytes]]:
        parts: dict[str, Artefact] = {PLAN: plan, FINGERPRINT: fingerprint, THRESHOLDS: model.thresholds}
        parts |= {FUSION_FILE: model.fusion} if model.fusion else {}
        yield CARD, card.encode()
        yield LICENCE, licence.text.encode()
        for name, part in parts.items():
            yield name, (part.model_dump_json(indent=2) + "\n").encode()
        for name, networks in model.networks.items():
            for k, network in enumerate(networks):
                yield weights_name(name, k), dump_tensors(network.state_dict())
        for name, folds in model.tables.items():
            for k, record in enumerate(folds):
                yield table_name(name, k), (record.model_copy(update={"made_from": {}}).model_dump_json() + "\n").encode()
        yield VECTORS, dump_tensors(make_vectors(plan, model.networks, model.tables, model.fusion))

    made_from = {"plan": digest_json(model.plan), "cohort": model.fingerprint.dataset_digest}
    write_container(path, members(), partial(_manifest, made_from, model, licence))


def _manifest(made_from: dict[str, str], model: TrainedModel, licence: Licence, members: dict[str, Member]) -> Manifest:
    radiomics = any(table.radiomics for table in model.plan.tables.values())
    return Manifest(made_from=made_from, licence=licence.identifier, preprocessing_version=CACHE_VERSION, tta=model.tta,
                    features_version=FEATURES_VERSION if radiomics else None, members=members)
