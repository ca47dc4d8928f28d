"""The ensemble stage: trained folds → pooled OOF predictions and predictions of imagesTs.

The labels of imagesTs are not read here: `test.csv` has an empty label column.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from her2net.artefact import Artefact, digest_file, digest_json
from her2net.errors import LeakageError, MissingArtefactError, StaleArtefactError
from her2net.paths import DatasetPaths
from her2net.plan.schema import Plan
from her2net.predictions import Predictions, check_table, make_predictions, read_predictions, write_predictions
from her2net.preprocess.cache import CaseFiles, load_cache
from her2net.raw.dataset import Case
from her2net.train.fold import read_record

if TYPE_CHECKING:
    import torch

ENSEMBLE_VERSION = 1  # raise when the same folds and images give other tables


class EnsembleRecord(Artefact):
    """`ensemble.json` of a modality: what its `oof.csv` and `test.csv` were made from."""

    MADE_BY: ClassVar[str] = "her2net_ensemble"

    modality: str
    folds: list[int]
    tta: bool
    n_oof: int
    n_test: int


def ensemble_inputs(
    paths: DatasetPaths, plan: Plan, modality: str, test_files: Sequence[CaseFiles], *, tta: bool
) -> dict[str, str]:
    """Digests of the trained folds and of the test images.

    Raises:
        MissingArtefactError: a fold is not finished; names the command that trains it.
    """
    records = [read_record(paths.fold(modality, k)) for k in range(plan.splits.n_folds)]
    missing = [k for k, record in enumerate(records) if record is None or record.status != "finished"]
    if missing:
        command = f"her2net_train {modality} {' '.join(map(str, missing))}"
        raise MissingArtefactError(f"{paths.model(modality)}: folds {missing} are not trained. Run {command} first.")
    return {
        "version": str(ENSEMBLE_VERSION),
        "folds": digest_json([[*r.identity, digest_oof(paths.fold(modality, k))] for k, r in enumerate(records) if r is not None]),
        "test_images": digest_json([[f.case_id, f.source_digest] for f in test_files]),
        "tta": str(tta),
    }


def digest_oof(folder: Path) -> str:
    """Digest of the predictions of a fold's held-out cases; empty where there are none."""
    path = folder / "oof.csv"
    return digest_file(path) if path.is_file() else ""


def ensemble_modality(
    paths: DatasetPaths, plan: Plan, modality: str, training: Sequence[Case], test: Sequence[Case],
    test_files: Sequence[CaseFiles], *, tta: bool, device: str, n_workers: int | None = None, quiet: bool = False,
) -> EnsembleRecord:  # fmt: skip
    """Pool the folds' OOF tables and predict the test cases with the mean of all folds.

    A fold none of whose patients has the modality holds nobody out, and has a network but no table.

    Args:
        training, test: cases that have the modality; `test_files` in the order of `test`.

    Raises:
        MissingArtefactError: a fold is not trained.
        LeakageError: a case is predicted by two folds, or by none.
    """
    from her2net.inference import load_networks, predict_files  # torch takes seconds; who asks for a state pays none

    section, folder = plan.modalities[modality], paths.model(modality)
    tta = tta or section.inference.tta
    made_from = ensemble_inputs(paths, plan, modality, test_files, tta=tta)
    records = {k: read_record(paths.fold(modality, k)) for k in range(plan.splits.n_folds)}
    tables = {k: read_predictions(paths.fold(modality, k) / "oof.csv", made_by="her2net_train")
              for k, record in records.items() if record is not None and record.n_held_out_cases}  # fmt: skip
    for k, table_of_fold in tables.items():
        check_table(paths.fold(modality, k) / "oof.csv", table_of_fold, training, n_classes=plan.n_classes,
                    made_by=f"her2net_train {modality} {k} --restart")
    networks = load_networks(paths, plan, modality, device) if tta or test else []
    if tta and not section.inference.tta:
        tables = {k: _predict_again(paths, plan, modality, networks[k], table, device) for k, table in tables.items()}
    oof = pool(list(tables.values()), [case.case_id for case in training], where=folder)
    table: Predictions | None = None
    if test:
        probs, _ = predict_files(networks, section, test_files, tta=tta, n_workers=n_workers, quiet=quiet,
                                 description=f"{modality} test")
        blank: list[int | None] = [None] * len(test)
        table = make_predictions([c.case_id for c in test], [c.patient_id for c in test], probs, labels=blank,
                                 folds=[""] * len(test))
    if ensemble_inputs(paths, plan, modality, test_files, tta=tta) != made_from:
        raise StaleArtefactError(f"{folder}: a fold was trained meanwhile. Run her2net_ensemble {modality} again.")
    write_pooled(folder, oof, table)
    record = EnsembleRecord(made_from=made_from, modality=modality, folds=list(range(plan.splits.n_folds)), tta=tta,
                            n_oof=len(oof), n_test=len(test))
    record.save(folder / "ensemble.json")
    return record


def write_pooled(folder: Path, oof: Predictions, test: Predictions | None) -> None:
    """Write the tables of an ensemble; without test cases, one of before is removed."""
    write_predictions(folder / "oof.csv", oof)
    if test is None:
        (folder / "test.csv").unlink(missing_ok=True)
    else:
        write_predictions(folder / "test.csv", test)


def pool(tables: Sequence[Predictions], expected: Sequence[str], *, where: object = "the folds") -> Predictions:
    """Join the OOF tables of the folds into one; `where` is what the message calls them.

    Raises:
        LeakageError: a case stands in two folds or in none.
    """
    names = [case_id for table in tables for case_id in table.case_ids]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    absent, surplus = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
    if twice or absent or surplus:
        raise LeakageError(
            f"{where}: the folds do not predict every training case once: twice {twice[:5]}, never {absent[:5]}, "
            f"unknown {surplus[:5]}. Train the folds again (her2net_train MODALITY all-folds --restart)."
        )
    return make_predictions(
        names,
        [patient for table in tables for patient in table.patient_ids],
        np.concatenate([table.probs for table in tables]),
        labels=[int(label) for table in tables for label in table.labels],
        folds=[fold for table in tables for fold in table.folds],
    )


def _predict_again(
    paths: DatasetPaths, plan: Plan, modality: str, network: torch.nn.Module, table: Predictions, device: str
) -> Predictions:
    """Predict a fold's held-out cases once more, with test-time augmentation."""
    import torch

    from her2net.train.loop import predict_probs

    section = plan.modalities[modality]
    cache = load_cache(paths.cache(modality, section.preprocessing_digest), table.case_ids)
    probs = predict_probs(network, torch.from_numpy(cache.image).to(device), section.preprocessing.input_vox,
                          batch_size=section.inference.batch_size, flip_axes=section.training.augmentation.mirrored_axes)
    return make_predictions(list(table.case_ids), list(table.patient_ids), probs,
                            labels=[int(label) for label in table.labels], folds=list(table.folds))
