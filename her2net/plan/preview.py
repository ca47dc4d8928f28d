"""A contact sheet of cached cases with their mask outlines: what the network will really see."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np

from her2net.artefact import write_bytes
from her2net.paths import DatasetPaths
from her2net.plan.schema import ModalityPlan, Plan
from her2net.preprocess.cache import load_cache

N_CASES = 12


def draw_preview(path: Path, paths: DatasetPaths, plan: Plan) -> None:
    """Draw up to 12 cases per modality, evenly spaced in the cohort; volumes as the slice with most lesion.

    The dashed frame is what the network sees without augmentation; around it lies the room for shifts.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = {name: _pick(paths, section, name) for name, section in plan.modalities.items()}
    n_rows = sum(-(-len(cases) // 6) for cases in rows.values())
    figure = Figure(figsize=(12, 2.2 * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, 6, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    place = 0
    for name, cases in rows.items():
        section = plan.modalities[name]
        cache = load_cache(paths.cache(name, section.preprocessing_digest), cases)
        for i, case_id in enumerate(cases):
            _draw_case(axes.flat[place + i], cache.image[i], cache.mask[i], section, f"{name} {case_id}")
        place += 6 * -(-len(cases) // 6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_bytes(path, buffer.getvalue())


def _pick(paths: DatasetPaths, section: ModalityPlan, name: str) -> list[str]:
    with h5py.File(paths.cache(name, section.preprocessing_digest), "r", locking=False) as file:
        ids = [text.decode() for text in file["case_id"][:]]
    wanted = np.linspace(0, len(ids) - 1, min(N_CASES, len(ids))).round().astype(int)
    return [ids[i] for i in wanted]


def _draw_case(axis, image: np.ndarray, mask: np.ndarray, section: ModalityPlan, title: str) -> None:  # type: ignore[no-untyped-def]
    channel = min(1, len(image) - 1)  # of a dynamic series, the first phase with contrast agent
    picture = image[channel].astype(np.float32)
    if section.ndim == 3:
        depth = int(mask.sum(axis=(1, 2)).argmax()) if mask.any() else len(picture) // 2
        picture, mask, title = picture[depth], mask[depth], f"{title} z{depth}"
    low, high = np.percentile(picture, [1, 99])
    axis.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-3))
    if mask.any():
        axis.contour(mask, levels=[0.5], colors="#56B4E9", linewidths=1)
    seen, stored = section.preprocessing.input_vox[-2:], section.preprocessing.stored_vox[-2:]
    corner = [(s - n) / 2 - 0.5 for s, n in zip(stored, seen, strict=True)]
    axis.add_patch(_frame(corner, seen))
    axis.set_title(title, fontsize=7)


def _frame(corner: list[float], seen: list[int]):  # type: ignore[no-untyped-def]
    from matplotlib.patches import Rectangle

    return Rectangle((corner[1], corner[0]), seen[1], seen[0], fill=False, edgecolor="#E69F00", linestyle="--", linewidth=0.8)
