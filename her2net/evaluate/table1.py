"""Table 1: two cohorts side by side, variable by variable, with the test that the data call for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from her2net.evaluate.comparisons import bonferroni
from her2net.evaluate.fisher import fisher_exact
from her2net.evaluate.subgroups import level_order

MIN_EXPECTED = 5.0
NORMAL_P = 0.05
MAX_SHAPIRO = 5000


@dataclass(frozen=True)
class Row:
    """One variable (or one level of it) of Table 1.

    Attributes:
        variable: its name.
        level: level of a categorical variable; "" for a continuous one.
        first: text of the first cohort, such as "54.1 ± 9.8" or "78 (52.3)".
        second: the same of the second.
        missing: how many cases lack it, in both.
        p_value: NaN where there is nothing to test, and on all but the first level.
        p_adjusted: Bonferroni over the variables.
        test: which one.
        smd: standardised mean difference.
    """

    variable: str
    level: str
    first: str
    second: str
    missing: tuple[int, int]
    p_value: float
    p_adjusted: float
    test: str
    smd: float


def compare_counts(counts: np.ndarray) -> tuple[float, str]:
    """Return the p-value of a table of counts (r, c) and the test that its expected counts call for.

    All expected counts at least 5: Pearson's chi-squared, with Yates' correction in a 2 × 2 table; otherwise Fisher's
    exact test, r × c included. Empty rows and columns are left out.

    Source:
        Fan et al. 2025, doi:10.17305/bb.2025.12475, Tables 1-3; Cochran 1954, doi:10.2307/3001616.
    """
    from scipy.stats import chi2_contingency

    table = np.asarray(counts, dtype=np.int64)
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    if min(table.shape, default=0) < 2:
        return math.nan, "nothing to compare"
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    if expected.min() < MIN_EXPECTED:
        return fisher_exact(table)
    yates = table.shape == (2, 2)
    p = float(chi2_contingency(table, correction=yates).pvalue)
    return p, "chi-squared, Yates" if yates else "chi-squared"


def is_normal(values: np.ndarray) -> bool:
    """Return whether the Shapiro-Wilk test leaves a sample (n,) normal; one it cannot judge is not.

    Source:
        Shapiro & Wilk 1965, doi:10.1093/biomet/52.3-4.591.
    """
    from scipy.stats import shapiro

    if not 3 <= len(values) <= MAX_SHAPIRO or np.ptp(values) == 0:
        return False
    return bool(shapiro(values).pvalue > NORMAL_P)


def compare_continuous(first: np.ndarray, second: np.ndarray) -> tuple[float, str, bool]:
    """Return p-value, test and whether both samples are taken for normal (then Welch's t, else Mann-Whitney).

    Source:
        Welch 1947, doi:10.1093/biomet/34.1-2.28; Mann & Whitney 1947, doi:10.1214/aoms/1177730491.
    """
    from scipy.stats import mannwhitneyu, ttest_ind

    normal = is_normal(first) and is_normal(second)
    if min(len(first), len(second)) < 2:
        return math.nan, "too few values", False
    if normal:
        return float(ttest_ind(first, second, equal_var=False).pvalue), "Welch t", True
    if np.ptp(np.concatenate([first, second])) == 0:
        return math.nan, "all values are equal", False
    return float(mannwhitneyu(first, second, alternative="two-sided").pvalue), "Mann-Whitney", False


def smd_continuous(first: np.ndarray, second: np.ndarray) -> float:
    """Return the difference of the means over the pooled standard deviation.

    Source:
        Austin 2009, doi:10.1002/sim.3697.
    """
    if min(len(first), len(second)) < 2:
        return math.nan
    pooled = math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2)
    return float((first.mean() - second.mean()) / pooled) if pooled > 0 else math.nan


def smd_counts(counts: np.ndarray) -> float:
    """Return the standardised difference of two rows of counts (2, c), the Mahalanobis distance of their shares.

    Source:
        Yang & Dalton 2012, SAS Global Forum 335-2012.
    """
    table = np.asarray(counts, dtype=np.float64)
    table = table[:, table.sum(axis=0) > 0]
    if (table.sum(axis=1) == 0).any() or table.shape[1] < 2:
        return math.nan
    shares = (table / table.sum(axis=1, keepdims=True))[:, 1:]
    covariance = sum(np.diag(p) - np.outer(p, p) for p in shares) / 2
    difference = shares[0] - shares[1]
    return float(np.sqrt(max(difference @ np.linalg.pinv(covariance) @ difference, 0.0)))


def make_table(
    first: Mapping[str, Sequence[str]], second: Mapping[str, Sequence[str]],
    kinds: Mapping[str, Literal["continuous", "binary", "ordinal", "categorical"]],
) -> list[Row]:  # fmt: skip
    """Compare two cohorts.

    Args:
        first: variable -> cells of the first cohort; an empty cell is missing.
        second: the same of the second.
        kinds: variable -> kind, in the order of the table.

    Raises:
        ValueError: a cell of a continuous variable is not a number.
    """
    blocks = [
        _continuous_rows(name, first.get(name, ()), second.get(name, ()))
        if kind == "continuous"
        else _categorical_rows(name, first.get(name, ()), second.get(name, ()))
        for name, kind in kinds.items()
    ]
    adjusted = bonferroni([block[0].p_value for block in blocks])
    return [
        Row(**{**row.__dict__, "p_adjusted": p if i == 0 else math.nan})
        for block, p in zip(blocks, adjusted, strict=True)
        for i, row in enumerate(block)
    ]


def _continuous_rows(name: str, first: Sequence[str], second: Sequence[str]) -> list[Row]:
    a, b = (np.array([float(cell) for cell in cells if cell.strip()]) for cells in (first, second))
    p, test, normal = compare_continuous(a, b)
    decimals = _count_decimals(np.concatenate([a, b]), normal)
    text = [_describe(values, normal, decimals) for values in (a, b)]
    missing = (len(first) - len(a), len(second) - len(b))
    return [Row(name, "", text[0], text[1], missing, p, math.nan, test, smd_continuous(a, b))]


def _count_decimals(values: np.ndarray, normal: bool) -> int:
    """As many as give the spread two digits, at least one: a diffusion coefficient is not 0.0 ± 0.0."""
    if len(values) < 2:
        return 1
    spread = float(values.std(ddof=1) if normal else np.subtract(*np.quantile(values, [0.75, 0.25])))
    return 1 if spread <= 0 else min(max(1, 1 - math.floor(math.log10(spread))), 9)


def _describe(values: np.ndarray, normal: bool, decimals: int) -> str:
    if not len(values):
        return ""
    if normal:
        return f"{values.mean():.{decimals}f} ± {values.std(ddof=1):.{decimals}f}"
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.{decimals}f} ({low:.{decimals}f}, {high:.{decimals}f})"


def _categorical_rows(name: str, first: Sequence[str], second: Sequence[str]) -> list[Row]:
    cells = [[cell.strip() for cell in cohort if cell.strip()] for cohort in (first, second)]
    levels = sorted({*cells[0], *cells[1]}, key=level_order) or [""]
    counts = np.array([[cohort.count(level) for level in levels] for cohort in cells])
    p, test = compare_counts(counts)
    smd, missing = smd_counts(counts), (len(first) - len(cells[0]), len(second) - len(cells[1]))
    text = [[f"{k} ({100 * k / max(row.sum(), 1):.1f})" for k in row] for row in counts]
    nan = math.nan
    return [
        Row(name, level, text[0][i], text[1][i], missing, p if i == 0 else nan, nan, test if i == 0 else "",
            smd if i == 0 else nan)
        for i, level in enumerate(levels)
    ]  # fmt: skip

