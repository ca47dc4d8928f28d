"""A model archive without training (the weights are random), and how to take one apart and put it together wrongly."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_paths
from raw_factory import write_dataset
from small_run import plan_options

from her2net.archive.licence import read_licence
from her2net.archive.write import write_archive
from her2net.evaluate.thresholds import Threshold, Thresholds
from her2net.fingerprint import Fingerprint
from her2net.fuse.logistic import SubsetModel
from her2net.fuse.stage import FusionRecord
from her2net.networks.build import NETWORKS, build_network
from her2net.plan.schema import Plan
from her2net.plan.stage import plan_dataset
from her2net.plan.table_schema import CovariateKind, RadiomicsPlan, TableModelPlan, TablePlan
from her2net.tabular.features import FeatureTable
from her2net.tabular.learn import Trial, fit_with
from her2net.tabular.record import TableFold
from her2net.train.loop import channels_last
from her2net.trained import TrainedModel

TINY = replace(NETWORKS["convnextv2_atto"], name="tiny", options={"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)})
"""A network of a few thousand weights, so that a hundred archives are written in no time; see `with_tiny_network`."""


@contextmanager
def with_tiny_network() -> Iterator[None]:
    """Let plans name the tiny network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, TINY.name, TINY)
        yield


def make_model(root: Path) -> TrainedModel:
    """Plan a tiny dataset and give each of two folds of two flat modalities random weights."""
    paths = make_paths(root, "Dataset007_Made")
    write_dataset(paths.raw)
    plan_dataset(paths, plan_options(root, preprocess=False))
    plan, fingerprint = Plan.load(paths.plan), Fingerprint.load(paths.fingerprint)
    section = plan.modalities["US"].model_dump()
    section["training"]["network"] = TINY.name
    section["preprocessing"] |= {"input_vox": [48, 48], "stored_vox": [64, 64]}
    tables = _make_table_plans()
    values = plan.model_dump() | {"modalities": {"US": section, "MG": section}, "machine": None, "decisions": [],
                                  "tables": {name: table.model_dump() for name, table in tables.items()}}  # fmt: skip
    values["splits"]["n_folds"] = 2
    values["fusion"]["subsets"] = [["US"], ["MG"], ["US", "MG"]]
    trained = {"US": fingerprint.modalities["US"], "MG": fingerprint.modalities["US"]}
    torch.manual_seed(0)
    networks = {name: [_make_network() for _ in range(2)] for name in trained}
    threshold = Threshold(value=0.4, rule="youden", chosen_on="oof", n=12)
    return TrainedModel(
        plan=Plan.model_validate(values), fingerprint=fingerprint.model_copy(update={"modalities": trained}),
        networks=networks, fusion=_make_fusion(), tta={"US": False, "MG": False},
        thresholds=Thresholds(models=dict.fromkeys(("US", "MG", "RAD:US", "CLIN", "fusion"), threshold)),
        tables={name: [_make_table_fold(name, table, k) for k in range(2)] for name, table in tables.items()},
    )  # fmt: skip


def _make_table_plans() -> dict[str, TablePlan]:
    radiomics = RadiomicsPlan(families=["statistics"], normalisation="none", discretisation="fixed_bin_number", bins=8,
                              bin_width=None, by_slice=True, spacing_mm=None)  # fmt: skip
    model = TableModelPlan(learners=["elastic_net", "forest"], transform="normal_scores", max_correlation=1.0, inner_folds=2, seed=0)
    clinic = model.model_copy(update={"learners": ["elastic_net"], "transform": "none"})
    return {
        "RAD:US": TablePlan(modality="US", radiomics=radiomics, columns={}, model=model, fused=False),
        "CLIN": TablePlan(modality=None, radiomics=None, columns={"age": "continuous", "sex": "binary"}, model=clinic, fused=False),
    }  # fmt: skip


def _make_table_fold(name: str, plan: TablePlan, fold: int) -> TableFold:
    """Fit a forest to made radiomics, or an elastic net to made covariates."""
    rng, n = np.random.default_rng(fold), 24
    kinds: dict[str, CovariateKind] = dict(plan.columns) or {"B-mode: stat_mean": "continuous", "B-mode: stat_var": "continuous"}
    columns = {c: rng.choice(["f", "m"], n).astype(object) if kind == "binary" else rng.normal(50, 9, n) for c, kind in kinds.items()}
    settings = {"C": 1.0, "l1_share": 0.0} if name == "CLIN" else {"min_cases_per_leaf": 3.0}
    chosen = Trial(learner=plan.model.learners[-1], settings=settings, log_loss=0.7)
    model = fit_with(FeatureTable(tuple(map(str, range(n))), columns, kinds), np.arange(n) % 2, 2, plan.model, chosen)
    model = model.model_copy(update={"trees": model.trees[:5]})
    return TableFold(made_from={"training_cases": "secret"}, table=name, fold=str(fold), settings=plan.model, n_held_out_cases=6,
                     model=model, environment={"mirp": "2.7.0"})  # fmt: skip


def _make_network() -> torch.nn.Module:
    network = build_network(TINY.name, n_channels=1, n_classes=2)
    return channels_last(network, 2).eval()


def _make_fusion() -> FusionRecord:
    subsets = {("US",): [1.5], ("MG",): [0.8], ("US", "MG"): [1.2, 0.6]}
    models = [
        SubsetModel(modalities=list(names), n_cases=12, n_per_class=[6, 6], intercepts=[0.1], weights=[weights],
                    coefficients=[])
        for names, weights in subsets.items()
    ]  # fmt: skip
    return FusionRecord(method="logistic", strength=1.0, fitted_on="oof", remark="", models=models)


def write_made_archive(path: Path, model: TrainedModel) -> Path:
    """Write the archive of a made model."""
    write_archive(path, model, "# A card\n", read_licence("CC-BY-4.0"))
    return path


@dataclass
class Parts:
    """The members of an archive, in memory, to be changed and written again.

    Attributes:
        members: name -> content.
        entries: further (entry, content) to append as they are.
        prefix, suffix: bytes before and after the archive.
    """

    members: dict[str, bytes]
    entries: list[tuple[zipfile.ZipInfo, bytes]] = field(default_factory=list)
    prefix: bytes = b""
    suffix: bytes = b""

    def change_json(self, name: str, change: Mapping[str, Any]) -> None:
        """Update top-level keys of a JSON member and sign it."""
        self.put(name, json.dumps(json.loads(self.members[name]) | change).encode())

    def put(self, name: str, content: bytes) -> None:
        """Replace or add a member, with the manifest made to fit: what an attacker would do."""
        self.members[name] = content
        if name != "manifest.json":
            manifest = json.loads(self.members["manifest.json"])
            manifest["members"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            self.members["manifest.json"] = json.dumps(manifest).encode()

    def write(self, path: Path) -> Path:
        """Write the archive as the members are."""
        with path.open("wb") as file:
            file.write(self.prefix)
            with zipfile.ZipFile(file, "w") as archive:
                for name, content in self.members.items():
                    archive.writestr(entry(name), content)
                for info, content in self.entries:
                    archive.writestr(info, content)
            file.write(self.suffix)
        return path


def entry(name: str, *, mode: int = 0o100644, **fields: Any) -> zipfile.ZipInfo:
    """Return the entry of a member, with fields changed."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, mode << 16
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def take_apart(path: Path) -> Parts:
    """Read the members of an archive."""
    with zipfile.ZipFile(path) as archive:
        return Parts({name: archive.read(name) for name in archive.namelist()})


def snapshot(root: Path) -> dict[str, str]:
    """Return every path below a folder with the digest of its content, links not followed."""
    found = {}
    for path in sorted(root.rglob("*")):
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else ""
        found[path.relative_to(root).as_posix()] = kind or hashlib.sha256(path.read_bytes()).hexdigest()
    return found
