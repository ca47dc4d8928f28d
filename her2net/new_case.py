"""One new case: read, checked against the training images, prepared as the cache does.

Worker processes import this module; it is apart from `inference`, because torch would take each of them seconds and
half a gibibyte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from her2net.errors import RawDataError
from her2net.input_check import Finding
from her2net.plan.schema import ModalityPlan
from her2net.preprocess.cache import CaseFiles
from her2net.preprocess.prepare import prepare_arrays, read_case
from her2net.raw.images import Volume

Check = Callable[[str, Volume, "np.ndarray | None"], list[Finding]]
"""(case id, image, mask) -> what is unusual."""


@dataclass(frozen=True)
class CheckedCase:
    """A case ready to predict, with what is unusual about it; `image` is `None` where `problem` says why not."""

    image: np.ndarray | None
    findings: tuple[Finding, ...] = ()
    problem: str = ""


def prepare(case: CaseFiles, plan: ModalityPlan, check: Check | None) -> CheckedCase:
    """Read, check and prepare one case as the cache does; at module level so that worker processes find it."""
    try:
        image, mask = read_case(case.images, case.mask)
    except RawDataError as error:
        return CheckedCase(None, problem=str(error))
    findings = check(case.case_id, image, mask) if check else []
    errors = [str(finding) for finding in findings if finding.severity == "error"]
    if errors:
        return CheckedCase(None, problem=" ".join(errors))
    return CheckedCase(prepare_arrays(image, mask, plan.preprocessing).image, tuple(findings))
