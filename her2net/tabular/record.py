"""What table models leave on disk: `model.json` of a fold, `ensemble.json` and `explanation.json` of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from her2net.artefact import Artefact, Strict, write_text
from her2net.plan.table_schema import TableModelPlan
from her2net.tabular.learn import FittedModel


class TableFold(Artefact):
    """`model.json` of a fold: the fitted model, all that predicting needs.

    Attributes:
        fold: its number, or `all`.
        model: plain numbers; see `her2net.tabular.learn.apply_model`.
        environment: versions of what fitted it, and of mirp where it made the features.
    """

    MADE_BY: ClassVar[str] = "her2net_train"

    table: str
    fold: str
    settings: TableModelPlan
    n_held_out_cases: int
    model: FittedModel
    environment: dict[str, str]

    def save(self, path: Path) -> None:
        """Write the model; on one line where it holds a forest, which nobody reads."""
        write_text(path, self.model_dump_json(indent=None if self.model.trees else 2) + "\n")


class TableEnsemble(Artefact):
    """`ensemble.json` of a table model: what its `oof.csv` and `test.csv` were made from."""

    MADE_BY: ClassVar[str] = "her2net_ensemble"

    table: str
    folds: list[int]
    n_oof: int
    n_test: int


class TermWeight(Strict):
    """Weight of one term in an elastic net, for one class against class 0.

    Attributes:
        odds_ratio: per standard deviation of the term, or of a level against the reference level; of a covariate that
            is a number, per unit stands in `odds_ratio_per_unit`.
        ci_low, ci_high: 95 % interval of `odds_ratio`; `null` where there is none.
        reference: of a level, the level (or levels, where some go with another column) that it is set against; else empty.
        n_folds_used: folds whose own model gives the term a weight.
        mean, sd: of the term in the training cases.
    """

    term: str
    reference: str = ""
    class_name: str
    weight: float
    odds_ratio: float
    ci_low: float | None
    ci_high: float | None
    odds_ratio_per_unit: float | None
    unit_ci_low: float | None
    unit_ci_high: float | None
    n_folds_used: int
    mean: float
    sd: float


class Importance(Strict):
    """What the out-of-fold AUC loses when a feature, or a family of features, is shuffled between held-out patients.

    Attributes:
        loss: mean over the shuffles.
        low, high: 2.5 and 97.5 % of the shuffles: how much the figure depends on the shuffle, not on the sample.
    """

    name: str
    kind: str
    loss: float
    low: float
    high: float


class TableExplanation(Artefact):
    """`explanation.json`: what the model of a table goes by.

    Attributes:
        learners: what each fold chose, in the order of the folds.
        inner_log_losses: learner -> mean over the folds of its best inner log loss.
        weights: of an elastic net fitted to all training cases; empty where no fold chose one.
        intercepts: of that fit, per class against class 0.
        ci_method: of the odds ratios.
        importance: largest loss first.
        n_shuffles: of each importance.
    """

    MADE_BY: ClassVar[str] = "her2net_ensemble"

    table: str
    learners: list[str]
    inner_log_losses: dict[str, float]
    n_features: int
    n_terms: int
    weights: list[TermWeight] = Field(default_factory=list)
    intercepts: list[float] = Field(default_factory=list)
    ci_method: str = ""
    importance: list[Importance] = Field(default_factory=list)
    n_shuffles: int = 0
