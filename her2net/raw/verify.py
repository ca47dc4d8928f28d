"""Check a raw dataset as a whole: the problems of layout and images, and those that only several cases show.

Copies of one image under two patients are the leak that no splitting by patient can stop, so
patients who share an image are linked, and test cases that resemble a training case are named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

from her2net.artefact import Strict
from her2net.raw.columns import check_columns
from her2net.raw.consistency import MIN_PATIENTS_PER_CLASS
from her2net.raw.dataset import Case, RawDataset, load_dataset
from her2net.raw.lookalike import Groups, find_lookalikes
from her2net.raw.marks import check_marks
from her2net.raw.problems import SEVERITIES, Problem, enumerate_names, problem
from her2net.raw.scan import ImageScan, Scan, scan_cases

FEW_PATIENTS = 10
"""Fewer of a class than this leave a fold of a cross-validation with one or two."""
TOLD_ONE_BY_ONE = 3
"""More files of a folder of which the same is said share a line, for the eyes; `--json` has one entry for each."""


class Verification(Strict):
    """Everything found in a raw dataset.

    Attributes:
        problems: errors first, then warnings, then notes.
        linked_patients: groups of training patients with the same or nearly the same image; a group stays in one fold.
        resembling_test_cases: test cases that nearly equal a training case; evaluation also reports without them.
    """

    problems: list[Problem]
    linked_patients: list[list[str]]
    resembling_test_cases: list[str]

    @property
    def n_errors(self) -> int:
        return sum(item.severity == "error" for item in self.problems)

    @property
    def n_warnings(self) -> int:
        return sum(item.severity == "warning" for item in self.problems)


def verify_folder(
    folder: Path, n_workers: int | None, quiet: bool = False, known: Scan | None = None
) -> tuple[RawDataset | None, Scan | None, Verification]:
    """Read and check everything; what is wrong with the data is reported, not raised.

    Args:
        folder: of the dataset.
        n_workers: processes that read images; `None` chooses by processors and free memory.
        quiet: no progress bar.
        known: an earlier scan, to read only what has changed.

    Returns:
        Dataset and scan (`None` where dataset.json or cases.csv cannot be understood), and what was found.
    """
    dataset, problems = load_dataset(folder)
    if dataset is None:
        return None, None, _conclude(problems, [], [])
    scan = scan_cases(dataset, n_workers=n_workers, quiet=quiet, known=known)
    found = verify(dataset, scan)
    return dataset, scan, _conclude([*problems, *found.problems], found.linked_patients, found.resembling_test_cases)


def verify(dataset: RawDataset, scan: Scan) -> Verification:
    """Check the images of a dataset, one by one (as the scan found them) and against each other.

    Args:
        dataset: its own problems of layout are not repeated here, see `load_dataset`.
        scan: of the same dataset.
    """
    cases = {case.case_id: case for case in dataset.cases}
    problems = [*scan.problems, *_check_class_sizes(dataset), *_check_modality_classes(dataset), *check_columns(dataset)]
    links = Groups()
    resembling: set[str] = set()
    lookalikes: list[tuple[str, list[tuple[Case, ImageScan]]]] = []
    for modality in dataset.spec.modalities:
        images = [
            (cases[case.case_id], case.images[modality])
            for case in scan.cases
            if case.case_id in cases and modality in case.images and case.images[modality].readable
        ]
        problems += _check_dimensions(modality, images)
        problems += _check_orientations(modality, images)
        same, found = _check_same_pixels(modality, images)
        problems += found
        alike, groups = _group_lookalikes(images, same)
        lookalikes += [(modality, group) for group in groups]
        _link([*same, *alike], links, resembling)
        problems += check_marks(modality, images, dataset.class_names)
    linked = links.groups()
    problems += [_word_lookalikes(modality, group, linked) for modality, group in lookalikes]
    return _conclude(problems, linked, sorted(resembling))


def _conclude(problems: list[Problem], linked: list[list[str]], resembling: list[str]) -> Verification:
    ordered = sorted(problems, key=lambda item: SEVERITIES.index(item.severity))
    return Verification(problems=ordered, linked_patients=linked, resembling_test_cases=resembling)


def _check_class_sizes(dataset: RawDataset) -> list[Problem]:
    problems = []
    for number, name in enumerate(dataset.class_names):
        n = len({case.patient_id for case in dataset.train if case.label == number})
        if 2 <= n < FEW_PATIENTS:
            remedy = "Folds will hold one or two of them: expect wide intervals."
            what = f"only {n} training patients"
            problems.append(
                problem(
                    "warning", "class-small", f"class {name}", what, expected=f"{FEW_PATIENTS} or more", remedy=remedy
                )
            )
    return problems


def _check_modality_classes(dataset: RawDataset) -> list[Problem]:
    """Find modalities that some fold could not train, whoever it holds out; of classes that are small as a whole is told elsewhere."""
    problems = []
    for modality in dataset.spec.modalities:
        for number, name in enumerate(dataset.class_names):
            cases = [case for case in dataset.train if case.label == number]
            having = {case.patient_id for case in cases if modality in case.images}
            least = min(MIN_PATIENTS_PER_CLASS, len({case.patient_id for case in cases}))
            if len(having) < least and any(modality in case.images for case in dataset.train):
                what = f"{len(having)} training patient(s) of class {name} have this modality"
                remedy = "Add such cases, or take the modality out of dataset.json."
                problems.append(problem("error", "class-lacks-modality", f"modality {modality}", what,
                                        expected=f"at least {MIN_PATIENTS_PER_CLASS}", remedy=remedy))  # fmt: skip
    return problems


def _check_dimensions(modality: str, images: list[tuple[Case, ImageScan]]) -> list[Problem]:
    by_ndim: dict[int, list[ImageScan]] = defaultdict(list)
    for _, image in images:
        by_ndim[len(image.shape)].append(image)
    if len(by_ndim) < 2:
        return []
    fewer = min(by_ndim, key=lambda ndim: (len(by_ndim[ndim]), ndim))
    counts = ", ".join(f"{len(found)} in {ndim}D" for ndim, found in sorted(by_ndim.items()))
    what = f"2D and 3D images are mixed in one modality ({counts}); {fewer}D: "
    what += enumerate_names(image.files[0] for image in by_ndim[fewer])
    return [problem("error", "dimensions-mixed", f"modality {modality}", what, remedy="Declare two modalities.")]


def _check_orientations(modality: str, images: list[tuple[Case, ImageScan]]) -> list[Problem]:
    """Warn of volumes whose axes run otherwise than those of most: they are used as they lie in their files, not turned."""
    by_orientation: dict[str, list[str]] = defaultdict(list)
    for case, image in images:
        if image.orientation:
            by_orientation[image.orientation].append(case.case_id)
    if len(by_orientation) < 2:
        return []
    most = max(by_orientation, key=lambda name: (len(by_orientation[name]), name))
    others = {name: cases for name, cases in sorted(by_orientation.items()) if name != most}
    n, n_all = sum(map(len, others.values())), sum(map(len, by_orientation.values()))
    what = f"the axes of {n} of {n_all} volumes run otherwise than those of the others"
    found = "; ".join(f"{name}: {enumerate_names(cases, limit=50)}" for name, cases in others.items())
    remedy = "Volumes are not turned, so a network sees these patients from another side: bring them to one orientation, with their "
    remedy += f'masks (SimpleITK: DICOMOrient(image, "{most}")), or declare two modalities.'
    return [problem("warning", "orientation-mixed", f"modality {modality}", f"{what} ({most}); {found}", remedy=remedy)]


def _check_same_pixels(
    modality: str, images: list[tuple[Case, ImageScan]]
) -> tuple[list[tuple[Case, Case]], list[Problem]]:
    by_digest: dict[str, list[tuple[Case, ImageScan]]] = defaultdict(list)
    for case, image in images:
        by_digest[image.pixel_digest].append((case, image))
    pairs: list[tuple[Case, Case]] = []
    problems: list[Problem] = []
    for group in by_digest.values():
        if len(group) > 1:
            first = group[0][0]
            pairs += [(first, case) for case, _ in group[1:]]
            pairs += [(a, b) for (a, _), (b, _) in pairwise(group[1:])]
            problems.append(_word_same_pixels(modality, group))
    return pairs, problems


def _word_same_pixels(modality: str, group: list[tuple[Case, ImageScan]]) -> Problem:
    cases = [case for case, _ in group]
    named = enumerate_names(f"{case.case_id} (patient {case.patient_id})" for case in cases)
    parts = {case.part for case in cases}
    labels = {case.label for case in cases if case.label is not None}
    patients = {case.patient_id for case in cases}
    what = f"the same {modality} pixels belong to {named}"
    where = group[0][1].files[0]
    if len(parts) > 1:
        remedy = "The test image was seen in training: remove the copy."
        return problem("error", "same-pixels-train-test", where, f"{what}, in imagesTr and imagesTs", remedy=remedy)
    boxes = {(tuple(image.lesion.start), tuple(image.lesion.stop)) for _, image in group if image.lesion is not None}
    several_lesions = len(patients) == 1 and len(boxes) == len(group)
    if len(labels) > 1 and not several_lesions:
        remedy = "One of the labels or files is wrong: remove the copy. Two lesions of one patient need a mask each."
        return problem("error", "same-pixels-labels", where, f"{what}, with different labels", remedy=remedy)
    if len(patients) > 1:
        then = "they are kept in one fold" if parts == {"train"} else "until then each counts as a patient in the test figures"
        remedy = f"If it is one patient, give the cases one patient_id; {then}."
        return problem("warning", "same-pixels-patients", where, what, remedy=remedy)
    return problem("note", "same-pixels-cases", where, what, remedy="The image counts once for each case.")


def _group_lookalikes(
    images: list[tuple[Case, ImageScan]], same: list[tuple[Case, Case]]
) -> tuple[list[tuple[Case, Case]], list[list[tuple[Case, ImageScan]]]]:
    """Return the pairs of nearly the same image under two patients, and the groups that they join."""
    known = {frozenset((a.case_id, b.case_id)) for a, b in same}
    found = find_lookalikes([image.perceptual_hash for _, image in images], [image.thumbnail for _, image in images])
    pairs: list[tuple[Case, Case]] = []
    groups = Groups()
    for i, j in found:
        one, other = images[i][0], images[j][0]
        if images[i][1].pixel_digest == images[j][1].pixel_digest or frozenset((one.case_id, other.case_id)) in known:
            continue
        if one.patient_id != other.patient_id:
            pairs.append((one, other))
            groups.join(one.case_id, other.case_id)
    scans = {case.case_id: (case, image) for case, image in images}
    return pairs, [[scans[name] for name in group] for group in groups.groups()]


def _word_lookalikes(modality: str, group: list[tuple[Case, ImageScan]], linked: list[list[str]]) -> Problem:
    named = enumerate_names(f"{case.case_id} (patient {case.patient_id})" for case, _ in group)
    what = f"nearly the same {modality} image under several patients: {named}"
    labels = {case.label for case, _ in group if case.label is not None}
    what += ", with different labels" if len(labels) > 1 else ""
    n_train = sum(case.part == "train" for case, _ in group)
    n_test = len(group) - n_train
    remedy = "Look at them; if they show one patient, give them one patient_id."
    remedy += _word_folds({case.patient_id for case, _ in group if case.part == "train"}, linked)
    if n_train and n_test:
        remedy += f" Results are also reported without the test case{'s' * (n_test > 1)}."
    elif n_test:
        remedy += " Until then each counts as a patient in the test figures."
    return problem("warning", "near-duplicate", group[0][1].files[0], what, remedy=remedy)


def _word_folds(patients: set[str], linked: list[list[str]]) -> str:
    """Say which of the training patients of a group share a fold; a test case alone, which has none, links nobody."""
    if len(patients) < 2:
        return ""
    shared = [sorted(patients & set(names)) for names in linked if len(patients & set(names)) > 1]
    if shared and len(shared[0]) == len(patients):
        return " The training patients are kept in one fold."
    kept = "".join(f" {' and '.join(names)} are kept in one fold." for names in shared)
    return f"{kept} Training patients who are alike through a test case alone are not kept in one fold."


def _link(pairs: list[tuple[Case, Case]], links: Groups, resembling: set[str]) -> None:
    for one, other in pairs:
        if one.part == other.part == "train" and one.patient_id != other.patient_id:
            links.join(one.patient_id, other.patient_id)
        elif one.part != other.part:
            resembling.add(one.case_id if one.part == "test" else other.case_id)


def _gather(problems: list[Problem]) -> list[str]:
    """Word each problem on a line; warnings or notes that say the same of many files of a folder share one."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for number, item in enumerate(problems):
        folder, _, name = item.where.rpartition("/")
        alone = item.severity == "error" or not folder
        groups[item.severity, folder, item.message, str(number) if alone else ""].append(item.where if alone else name)
    lines = []
    for (severity, folder, message, number_alone), names in groups.items():
        if number_alone:
            lines.append(f"{severity} {names[0]}: {message}")
        elif len(names) <= TOLD_ONE_BY_ONE:
            lines += [f"{severity} {folder}/{name}: {message}" for name in names]
        else:
            lines.append(f"{severity} {folder}: {len(names)} files, {enumerate_names(names)}: {message}")
    return lines


def format_verification(verification: Verification, *, limit: int = 200) -> str:
    """Word a verification for people: a table of counts by check, then each problem with its file and remedy."""
    if not verification.problems:
        return "No problem found."
    counts = Counter((item.severity, item.check) for item in verification.problems)
    ordered = sorted(counts.items(), key=lambda item: (SEVERITIES.index(item[0][0]), -item[1], item[0][1]))
    width = max(len(check) for _, check in counts)
    lines = [f"{'severity':8}  {'check':{width}}  count"]
    lines += [f"{severity:8}  {check:{width}}  {count:5d}" for (severity, check), count in ordered]
    told = _gather(verification.problems)
    lines += ["", *told[:limit]]
    hidden = len(told) - limit
    if hidden > 0:
        lines.append(f"... and {hidden} more; her2net_verify --json lists all of them.")
    elif len(told) < len(verification.problems):
        lines.append("her2net_verify --json lists every file.")
    totals = Counter(item.severity for item in verification.problems)
    lines += ["", ", ".join(f"{totals[severity]} {severity}(s)" for severity in SEVERITIES)]
    return "\n".join(lines)
