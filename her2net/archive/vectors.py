"""Test vectors: noise images and made-up rows of tables with the probabilities they gave where the model was made.

They show that weights, network code, libraries and processor give the same numbers here. On the CPU in float32, as
there: between instruction sets the probabilities differ by about 1e-7, so 1e-5 separates rounding from error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from her2net.archive.tables import TableModels, make_table_input, n_input_columns, predict_table_input
from her2net.archive.tensors import Layout
from her2net.errors import ArchiveError
from her2net.fuse.logistic import apply_fusion
from her2net.fuse.stage import FusionRecord
from her2net.plan.schema import ModalityPlan, Plan
from her2net.predictions import make_predictions
from her2net.train.loop import predict_probs

TOLERANCE = 1e-5
GRAINS_VOX = (1, 4, 16)
"""One image of noise per size of grain; as many as there are rows of a table, for they are fused."""
SEED = 0


def make_inputs(section: ModalityPlan) -> np.ndarray:
    """Return noise (len(GRAINS_VOX), C, *input_vox) float16 of mean 0 and SD 1, as prepared images have."""
    rng = np.random.default_rng(SEED)
    size = section.preprocessing.input_vox
    images = []
    for grain in GRAINS_VOX:
        image = rng.standard_normal((section.n_inputs, *(-(-n // grain) for n in size)))
        for axis, n in enumerate(size, start=1):
            image = np.repeat(image, grain, axis=axis).take(range(n), axis=axis)
        images.append(image)
    return np.stack(images).astype(np.float16)


def make_vectors(
    plan: Plan, networks: Mapping[str, Sequence[torch.nn.Module]], tables: TableModels, fusion: FusionRecord | None
) -> dict[str, torch.Tensor]:
    """Return inputs and expected probabilities: per fold, their mean, and fused for each set of models."""
    vectors = {f"{name}/input": torch.from_numpy(make_inputs(section)) for name, section in plan.modalities.items()}
    vectors |= {f"{name}/input": torch.from_numpy(make_table_input(folds)) for name, folds in tables.items()}
    vectors |= {key: torch.from_numpy(p) for key, p in _predict_tables(tables, vectors).items()}
    for name, section in plan.modalities.items():
        vectors |= {key: torch.from_numpy(p) for key, p in _predict(name, section, networks[name], vectors).items()}
    return vectors | {key: torch.from_numpy(p) for key, p in _fuse(fusion, vectors).items()}


def vector_layout(plan: Plan, tables: TableModels, fusion: FusionRecord | None) -> Layout:
    """Return what the file of test vectors of this plan has to hold."""
    n, layout = len(GRAINS_VOX), {}
    probs = ("F64", (n, plan.n_classes))
    for name, section in plan.modalities.items():
        layout[f"{name}/input"] = ("F16", (n, section.n_inputs, *section.preprocessing.input_vox))
    for name, folds in tables.items():
        layout[f"{name}/input"] = ("F64", (n - 1, n_input_columns(folds)))
    for name in (*plan.modalities, *tables):
        layout |= {f"{name}/fold_{k}": probs for k in range(plan.splits.n_folds)}
        layout[f"{name}/mean"] = probs
    return layout | {f"fusion/{i}": probs for i in range(len(fusion.models) if fusion else 0)}


def replay_vectors(
    plan: Plan, networks: Mapping[str, Sequence[torch.nn.Module]], tables: TableModels, fusion: FusionRecord | None,
    vectors: Mapping[str, torch.Tensor], *, where: object,
) -> float:  # fmt: skip
    """Predict the test vectors and return the largest difference from what they should give.

    Raises:
        ArchiveError: a difference above `TOLERANCE`; names what differs.
    """
    found: dict[str, np.ndarray] = {}
    for name, section in plan.modalities.items():
        found |= _predict(name, section, networks[name], vectors)
    found |= _predict_tables(tables, vectors)
    found |= _fuse(fusion, vectors)
    differences = {key: float(np.abs(probs - vectors[key].numpy()).max()) for key, probs in found.items()}
    wrong = [f"{key} by {value:.2g}" for key, value in differences.items() if not value <= TOLERANCE]
    if wrong:
        raise ArchiveError(
            f"{where}: the model does not give the probabilities that it gave where it was made: {', '.join(wrong[:5])} "
            f"({len(wrong)} of {len(found)}; at most {TOLERANCE:g} allowed). It must not be used here: ask its maker for a "
            "new archive, made with the same versions of her2net and torch as here."
        )
    return max(differences.values())


def _predict(
    name: str, section: ModalityPlan, networks: Sequence[torch.nn.Module], vectors: Mapping[str, torch.Tensor]
) -> dict[str, np.ndarray]:
    images = vectors[f"{name}/input"]
    probs = {
        f"{name}/fold_{k}": predict_probs(network, images, section.preprocessing.input_vox, batch_size=1)
        for k, network in enumerate(networks)
    }
    return probs | {f"{name}/mean": np.mean(list(probs.values()), axis=0)}


def _predict_tables(tables: TableModels, vectors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, folds in tables.items():
        found |= predict_table_input(name, folds, vectors[f"{name}/input"].numpy())
    return found


def _fuse(fusion: FusionRecord | None, vectors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Fuse the stored means, so that what is compared is the fusion and not its magnification of rounding."""
    ids = [str(i) for i in range(len(GRAINS_VOX))]
    fused = {}
    for i, model in enumerate(fusion.models if fusion else ()):
        tables = {
            name: make_predictions(ids, ids, vectors[f"{name}/mean"].numpy(), labels=[None] * len(ids), folds=[""] * len(ids))
            for name in model.modalities
        }
        fused[f"fusion/{i}"] = apply_fusion(tables, fusion.models if fusion else []).probs
    return fused
