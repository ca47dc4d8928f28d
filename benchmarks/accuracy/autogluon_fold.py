"""AutoGluon on one fold of pictures; runs in an environment of its own and knows nothing of her2net.

    python autogluon_fold.py FOLDER SECONDS SEED

FOLDER holds training.csv (image, label) and held_out.csv (image); scores.csv (image, score) is added.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(folder: Path, seconds: float, seed: int) -> None:
    """Fit within the time, and write the probability of class 1 of each held-out picture."""
    import pandas as pd
    from autogluon.multimodal import MultiModalPredictor
    from autogluon.multimodal.models import timm_image

    made = timm_image.create_model  # `fit` asks for pretrained weights whatever it is told, and fails where there are none
    timm_image.create_model = lambda name, pretrained, **options: made(name, pretrained=False, **options)
    training, held_out = (pd.read_csv(folder / f"{part}.csv") for part in ("training", "held_out"))
    predictor = MultiModalPredictor(label="label", problem_type="binary", eval_metric="roc_auc", presets="medium_quality",
                                    path=str(folder / "model"), verbosity=0, enable_progress_bar=False)  # fmt: skip
    predictor.fit(training, time_limit=seconds, seed=seed)
    held_out["score"] = predictor.predict_proba(held_out)[1].to_numpy()
    held_out.to_csv(folder / "scores.csv", index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
