"""The planning stage as a whole: raw → scan → hold-out → fingerprint → plan → splits → cache."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from her2net.artefact import digest_json
from her2net.errors import MissingArtefactError, PlanError, RawDataError, describe, join_problems
from her2net.fingerprint import Fingerprint, extract_fingerprint
from her2net.networks.pretrained import pretrained_at_hand
from her2net.paths import DatasetPaths
from her2net.plan.check import check_classes, check_edits, check_fit, check_sections, refuse_unusable
from her2net.plan.machine import (
    Machine,
    choose_device,
    estimate_gb,
    inspect_machine,
    measure_speed,
    read_machine,
    speed_key,
)
from her2net.plan.parting import SEED, read_own_folds, sealed_cases, settle_holdout, settle_splits
from her2net.plan.planner import DEFAULT_CPU_BUDGET_H, PlanRequest, make_plan
from her2net.plan.schema import Plan, Preset
from her2net.plan.tables import count_fewest, settle_tables, usable_covariates
from her2net.preprocess.cache import build_cache
from her2net.project import Project, count_present, list_files
from her2net.raw.dataset import RawDataset, seal_holdout
from her2net.raw.scan import Scan
from her2net.raw.verify import Verification, format_verification, verify_folder
from her2net.splits import Holdout, Splits, count_site_folds
from her2net.tabular.features import build_features, cases_with
from her2net.tabular.radiomics import radiomics_at_hand

LEAVE_ONE_SITE_OUT = "leave-one-site-out"


@dataclass(frozen=True)
class PlanOptions:
    """What `her2net_plan` was asked for; `splits` is a file or `leave-one-site-out`.

    `None` keeps what the plan on disk was made with, so that `her2net_plan --explain` changes nothing.
    """

    preset: Preset | None = None
    budget_h: float | None = None
    splits: str | None = None
    holdout: float | None = None
    device: str = "auto"
    machine: Path | None = None
    preprocess: bool = True
    n_workers: int | None = None
    quiet: bool = False


def plan_dataset(paths: DatasetPaths, options: PlanOptions) -> tuple[Plan, list[str]]:
    """Bring fingerprint, plan, splits and caches up to date; what is fresh is kept.

    Returns:
        The plan, and remarks on what was kept or made.

    Raises:
        RawDataError: the dataset has errors; lists them all.
        PlanError: the plan on disk has edits that a new plan would overwrite.
    """
    known = _load_scan(paths.scan)
    dataset, scan, verification = _verify(paths, options.n_workers, options.quiet, known)
    old_splits = _load_or_none(Splits, paths.splits)
    holdout, about_holdout = settle_holdout(dataset, options.holdout, old_splits, verification.linked_patients, scan, known)
    if holdout is not None:
        dataset = seal_holdout(dataset, holdout.patients)
    fingerprint = extract_fingerprint(dataset, scan)
    plan, kept = _settle_plan(paths, options, dataset, fingerprint, verification.linked_patients, holdout)
    refuse_unusable(paths.plan, check_sections(plan) + check_fit(plan, dataset.spec, paths.folder))
    remarks = [f"plan {paths.plan_name}: {'kept' if kept else 'made'}", *about_holdout]
    own_file = Path(options.splits) if plan.splits.scheme == "custom" and options.splits else None
    splits, said = settle_splits(dataset, plan, own_file, verification, holdout, old_splits)
    remarks += said
    problems = check_classes(plan, dataset.train, splits.folds(plan.splits))
    if problems:
        raise PlanError(join_problems(f"{paths.raw}: what there is of a modality cannot be trained on.", problems))
    settled, said = settle_tables(
        plan, fingerprint, usable_covariates(dataset.spec.covariates, dataset.spec.site), radiomics=radiomics_at_hand(),
        fewest=lambda table: count_fewest(cases_with(table, dataset.train, scan), splits.folds(plan.splits), plan.n_classes),
    )  # fmt: skip
    plan, kept, remarks = settled, kept and settled == plan, remarks + said
    scan.save(paths.scan)
    fingerprint.save(paths.fingerprint)
    if not kept:
        plan.save(paths.plan)
    splits.save(paths.splits)
    n = verification.n_warnings
    if n:
        remarks.append(f"data: {n} warning{'s' * (n > 1)}; her2net_verify -d {quote(paths.folder)} lists them")
    if options.preprocess:
        remarks += [preprocess_modality(paths, plan, name, dataset, scan, options.n_workers, options.quiet)
                    for name in plan.modalities]  # fmt: skip
        remarks += _build_features(Project(paths, dataset, plan, splits, scan), options)
    return plan, remarks


def _build_features(project: Project, options: PlanOptions) -> list[str]:
    """Bring the features of every radiomics table up to date; return remarks."""
    remarks = []
    for name, table in project.plan.tables.items():
        if table.radiomics is not None:
            n_computed, n = build_features(project, name, n_workers=options.n_workers, quiet=options.quiet)
            remarks.append(f"features {name}: " + (f"{n_computed} of {n} cases computed" if n_computed else f"fresh, {n} cases"))
    return remarks


def preprocess_modality(
    paths: DatasetPaths, plan: Plan, name: str, dataset: RawDataset, scan: Scan, n_workers: int | None, quiet: bool
) -> str:
    """Bring the cache of one modality up to date; return a remark."""
    section = plan.modalities[name].preprocessing
    cases = list_files(scan, name, tuple(case for case in dataset.train if name in case.images))
    path = paths.cache(name, plan.modalities[name].preprocessing_digest)
    n_computed = build_cache(path, cases, section, n_workers=n_workers, quiet=quiet)
    return f"cache {name}: " + (f"{n_computed} of {len(cases)} cases computed" if n_computed else f"fresh, {len(cases)} cases")


def _verify(
    paths: DatasetPaths, n_workers: int | None, quiet: bool, known: Scan | None
) -> tuple[RawDataset, Scan, Verification]:
    dataset, scan, verification = verify_folder(paths.raw, n_workers=n_workers, quiet=quiet, known=known)
    if verification.n_errors or dataset is None or scan is None:
        raise RawDataError(f"{paths.raw}: {verification.n_errors} errors.\n{format_verification(verification)}")
    return dataset, scan, verification


def _load_scan(path: Path) -> Scan | None:
    """Return the earlier scan; without a sound one, every image is looked at again."""
    try:
        return _load_or_none(Scan, path)
    except PlanError as error:
        if not path.is_file():
            raise
        print(f"Warning: {str(error).splitlines()[0]} The images are looked at again.", file=sys.stderr)
        return None


def _load_or_none(artefact: type, path: Path):  # type: ignore[no-untyped-def]
    try:
        return artefact.load(path)  # type: ignore[attr-defined]
    except MissingArtefactError:
        return None


def _settle_plan(
    paths: DatasetPaths, options: PlanOptions, dataset: RawDataset, fingerprint: Fingerprint, linked: Sequence[Sequence[str]],
    holdout: Holdout | None,
) -> tuple[Plan, bool]:  # fmt: skip
    """Keep the plan on disk while what it was made from is unchanged; else make one."""
    old = _load_or_none(Plan, paths.plan)
    if old is not None:
        refuse_unusable(paths.plan, check_edits(old, paths))
    machine = _settle_machine(options, old)
    preset = options.preset or (old.preset if old else "auto")
    budget = options.budget_h or (old.budget_h if old and old.preset == preset else _default_budget(preset, machine))
    scheme, n_folds = _settle_scheme(options, old, dataset, linked, holdout)
    recorded = [machine.samples_per_s, machine.memory_gb] if options.machine else None
    asked = digest_json([preset, budget, scheme, n_folds, machine.device, recorded])
    made_from = {"fingerprint": fingerprint.dataset_digest, "request": asked}
    if old is not None:
        asked_for_nothing = (options.preset, options.budget_h, options.splits, options.machine) == (None,) * 4
        same_data = old.made_from.get("fingerprint") == fingerprint.dataset_digest
        if old.made_from == made_from or (same_data and asked_for_nothing and options.device == "auto"):
            if old.dataset == fingerprint.dataset:
                return old, True
            return old.model_copy(update={"dataset": fingerprint.dataset}), False  # the folders were renamed
        if old.edited:
            raise PlanError(
                f"{paths.plan}: you edited {', '.join(old.edited)}, and the data or the options have changed since. "
                "Rename the file, and name in it, to keep it, delete it to plan anew, or plan under another name with -p."
            )

    def measure(network: str, input_vox: list[int], n_channels: int, batch_size: int) -> float:
        key = speed_key(network, input_vox, n_channels, batch_size)
        known = machine.samples_per_s.get(key)
        if known is None and machine.device not in ("cpu", choose_device("auto")):
            what, remedy = "holds no speed of a network to be considered", "Plan this dataset on that machine, and give its plan."
            found = ", ".join(machine.samples_per_s) or "none"
            raise PlanError(describe(what, where=f"{options.machine}: samples_per_s", found=found, expected=key, remedy=remedy))
        return known or measure_speed(network, input_vox, n_channels, batch_size, machine)

    plan = make_plan(PlanRequest(
        name=paths.plan_name, preset=preset, fingerprint=fingerprint, present=count_present(dataset),
        file_endings={name: spec.file_ending for name, spec in dataset.spec.modalities.items()}, machine=machine,
        budget_h=budget, n_own_folds=n_folds if scheme == "custom" else None,
        n_sites=n_folds if scheme == LEAVE_ONE_SITE_OUT else None,
        pretrained_at_hand=pretrained_at_hand, measure=measure, memory_gb=estimate_gb, seed=SEED,
    ))  # fmt: skip
    return plan.model_copy(update={"made_from": made_from}), False


def _default_budget(preset: Preset, machine: Machine) -> float | None:
    return DEFAULT_CPU_BUDGET_H if machine.device == "cpu" and preset == "auto" else None


def _settle_scheme(
    options: PlanOptions, old: Plan | None, dataset: RawDataset, linked: Sequence[Sequence[str]], holdout: Holdout | None
) -> tuple[str, int | None]:
    """Return the scheme of the splits and the number of folds that it sets: those the user brought, or one per site."""
    if options.splits not in (None, LEAVE_ONE_SITE_OUT):
        return "custom", len(read_own_folds(Path(options.splits), dataset.train, sealed_cases(dataset, holdout)))
    scheme = options.splits or (old.splits.scheme if old else "stratified")
    if scheme == LEAVE_ONE_SITE_OUT:
        return scheme, count_site_folds(dataset.train, linked)
    return scheme, old.splits.n_folds if old and scheme == "custom" else None


def _settle_machine(options: PlanOptions, old: Plan | None) -> Machine:
    """Reuse a recorded measurement: the one given, or that of the plan on disk if it was made on this machine."""
    if options.machine is not None:
        given = read_machine(options.machine)
        if options.device not in ("auto", given.device):
            raise PlanError(describe("is of another device than --device", where=str(options.machine), found=given.device,
                                     expected=options.device, remedy="Leave --device out, or give that device's file."))
        return given
    here = inspect_machine(choose_device(options.device))
    if old is None or old.machine is None:
        return here
    same = old.machine.model_copy(update={"samples_per_s": {}, "her2net_version": here.her2net_version}) == here
    return old.machine if same else here


def list_edits(plan: Plan) -> Sequence[str]:
    """Words for what the user changed in the plan."""
    return [f"{path} = {value} (edited by you)" for path, value in plan.edited.items()]
