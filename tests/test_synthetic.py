"""The synthetic cohort holds the effect it claims, inside the lesions only, and the same pixels for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage
from scipy.stats import norm, rankdata, spearmanr

from her2net.errors import Her2netError, RawDataError
from her2net.raw.phantoms import make_mri, make_us
from her2net.raw.synthetic import SEPARATION, SyntheticTruth, make_synthetic_dataset, truth_path

LIGHT = {"us_size": (96, 120), "mri_size": (12, 48, 48)}
MODALITIES = tuple(SEPARATION)


def read(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).astype(float)


def auc(label: np.ndarray, score: np.ndarray) -> float:
    n_positive = label.sum()
    ranks = rankdata(score)[label == 1].sum()
    return (ranks - n_positive * (n_positive + 1) / 2) / (n_positive * (len(label) - n_positive))


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def core_against_rim(folder: Path, modality: str, case_id: str) -> float:
    """Mean of the lesion's core less that of its rim, in its early phase or its only image."""
    if modality == "US":
        image = read(folder / f"imagesTr/US/{case_id}.png")
        inside = read(folder / f"masksTr/US/{case_id}.png") > 0
        spacing = (1.0, 1.0)
        unit = 1.0  # log-compressed already: a difference is a ratio
    else:
        image = read(folder / f"imagesTr/MRI/{case_id}_0001.nii.gz")
        mask = SimpleITK.ReadImage(str(folder / f"masksTr/MRI/{case_id}.nii.gz"))
        inside, spacing = SimpleITK.GetArrayFromImage(mask) > 0, mask.GetSpacing()[::-1]
        unit = image[inside].mean()
    depth = ndimage.distance_transform_edt(inside, sampling=spacing)
    depth /= depth.max()
    return float((image[depth > 0.5].mean() - image[(depth > 0) & (depth < 0.25)].mean()) / unit)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SyntheticTruth]:
    folder = tmp_path_factory.mktemp("raw") / "Dataset999_Synthetic"
    return folder, make_synthetic_dataset(folder, n_train=300, n_test=0, seed=3, **LIGHT)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_simple_readout_sees_the_latent(cohort: tuple[Path, SyntheticTruth], modality: str) -> None:
    folder, truth = cohort
    cases = [case for case in truth.cases if modality in case.latents]
    label = np.array([case.label for case in cases])
    latent = np.array([case.latents[modality] for case in cases])
    seen = np.array([core_against_rim(folder, modality, case.case_id) for case in cases])
    assert spearmanr(seen, latent).statistic > 0.9
    assert auc(label, seen) == pytest.approx(auc(label, latent), abs=0.03)
    assert auc(label, latent) == pytest.approx(truth.latent_auc["oof"][modality])


def test_shape_and_covariates_know_nothing_of_the_label(cohort: tuple[Path, SyntheticTruth]) -> None:
    folder, truth = cohort
    table = np.genfromtxt(folder / "cases.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    label = np.array([case.label for case in truth.cases])
    features = {name: table[name] for name in ("age", "menopausal", "grade")} | {"site": table["site"] == "A"}
    for modality, ending in (("US", ".png"), ("MRI", ".nii.gz")):
        rows = [i for i, case in enumerate(truth.cases) if modality in case.latents]
        masks = [read(folder / f"masksTr/{modality}/{truth.cases[i].case_id}{ending}") > 0 for i in rows]
        edges = [(ndimage.binary_dilation(mask) & ~mask).sum() for mask in masks]
        boxes = [np.ptp(np.argwhere(mask), axis=0) + 1 for mask in masks]
        shapes = {
            "area": [mask.sum() for mask in masks],
            "roughness": [edge / mask.sum() ** 0.5 for edge, mask in zip(edges, masks, strict=True)],
            "aspect": [box[-2] / box[-1] for box in boxes],
            "extent": [mask.sum() / box.prod() for mask, box in zip(masks, boxes, strict=True)],
        }
        for name, values in shapes.items():
            column = np.full(len(label), np.median(values))
            column[rows] = values
            features[f"{modality} {name}"] = column
    standard_error = np.sqrt((len(label) + 1) / (12 * label.sum() * (1 - label).sum()))
    found = {name: round(auc(label, values), 3) for name, values in features.items()}
    assert all(abs(value - 0.5) < 3.5 * standard_error for value in found.values()), found


def test_only_the_inside_of_the_lesion_depends_on_the_sign() -> None:
    for seed in range(5):
        low, high = (make_us(sign, (120, 150), np.random.default_rng(seed)) for sign in (-2.0, 2.0))
        assert np.array_equal(low.mask, high.mask)
        assert not (low.image != high.image)[low.mask == 0].any()
        assert (low.image != high.image).sum() > 0.5 * low.mask.sum()
        dark, bright = (make_mri(sign, (12, 48, 48), np.random.default_rng(seed)) for sign in (-2.0, 2.0))
        assert np.array_equal(dark.mask, bright.mask)
        assert dark.spacing_mm == bright.spacing_mm
        assert np.array_equal(dark.pre, bright.pre)
        assert not (dark.early != bright.early)[dark.mask == 0].any()


@pytest.mark.parametrize("size", [(48, 48), (90, 300), (300, 90)])
def test_lesions_are_whole_at_any_size(size: tuple[int, int]) -> None:
    for seed in range(20):
        mask = make_us(0.0, size, np.random.default_rng(seed)).mask
        volume = make_mri(0.0, (8, size[0] // 2, size[1] // 2), np.random.default_rng(seed)).mask
        for lesion in (mask, volume):
            assert ndimage.label(lesion)[1] == 1
            assert not any(lesion.take(side, axis).any() for axis in range(lesion.ndim) for side in (0, -1))
            assert lesion.sum() > 30


def test_without_effect_the_images_hold_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset998_None"
    truth = make_synthetic_dataset(folder, n_train=200, n_test=0, effect=0, seed=1, **LIGHT)
    assert set(truth.bayes_auc.values()) == {0.5}
    assert truth.fusion_bayes_auc_with_missing == 0.5
    for modality in MODALITIES:
        cases = [case for case in truth.cases if modality in case.latents]
        label = np.array([case.label for case in cases])
        seen = np.array([core_against_rim(folder, modality, case.case_id) for case in cases])
        assert auc(label, seen) == pytest.approx(0.5, abs=0.12)  # three standard errors


def test_the_same_seed_gives_the_same_bytes_whatever_was_made_before(tmp_path: Path) -> None:
    small = {"us_size": (64, 80), "mri_size": (8, 32, 32)}
    made = {}
    for name, options in {"a": {"seed": 5}, "b": {"seed": 6}, "c": {"seed": 5}, "d": {"seed": 5, "n_test": 0}}.items():
        folder = tmp_path / name / "Dataset997_Same"
        make_synthetic_dataset(folder, **{"n_train": 12, "n_test": 4, **small, **options})
        made[name] = files(folder)
    assert made["a"] == made["c"]
    assert made["a"]["imagesTr/US/SYN0001.png"] != made["b"]["imagesTr/US/SYN0001.png"]
    assert all(made["a"][name] == made["d"][name] for name in made["a"] if "Tr/" in name)


def test_the_folder_holds_exactly_what_the_truth_says(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset996_Files"
    truth = make_synthetic_dataset(folder, n_train=50, n_test=30, seed=2, us_size=(64, 64), mri_size=(8, 24, 24))
    expected = {"dataset.json", "cases.csv"}
    for case in truth.cases:
        part = {"oof": "Tr", "test": "Ts"}[case.cohort]
        if "US" in case.latents:
            expected |= {f"{kind}{part}/US/{case.case_id}.png" for kind in ("images", "masks")}
        if "MRI" in case.latents:
            expected |= {f"images{part}/MRI/{case.case_id}_000{channel}.nii.gz" for channel in (0, 1)}
            expected |= {f"masks{part}/MRI/{case.case_id}.nii.gz"}
    assert set(files(folder)) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, truth_path(folder).name]
    assert SyntheticTruth.load(truth_path(folder)) == truth

    assert all(case.latents for case in truth.cases)
    train = [case for case in truth.cases if case.cohort == "oof"]
    assert [sum(m not in case.latents for case in train) for m in ("US", "MRI")] == [2, 4]
    label_of = {case.patient_id: case.label for case in truth.cases}
    assert all(case.label == label_of[case.patient_id] for case in truth.cases)
    assert len(train) - len({case.patient_id for case in train}) == 5
    assert not {case.patient_id for case in train} & {c.patient_id for c in truth.cases if c.cohort == "test"}


def test_bayes_auc_is_that_of_the_latents_in_a_large_sample() -> None:
    from her2net.raw.synthetic import MISSING, _bayes_auc, _fusion_bayes_auc_with_missing

    rng, n, effect = np.random.default_rng(0), 400_000, 0.7
    label = (rng.random(n) < 0.4).astype(int)
    score = {m: d * ((label - 0.5) * effect * d + rng.standard_normal(n)) for m, d in SEPARATION.items()}
    bayes = _bayes_auc(effect)
    for modality in MODALITIES:
        assert bayes[modality] == pytest.approx(auc(label, score[modality]), abs=0.004)
    assert bayes["fusion"] == pytest.approx(auc(label, sum(score.values())), abs=0.004)
    turn = rng.random(n)
    score["US"][turn < MISSING["US"]] = 0
    score["MRI"][turn > 1 - MISSING["MRI"]] = 0
    assert _fusion_bayes_auc_with_missing(effect) == pytest.approx(auc(label, sum(score.values())), abs=0.004)
    full = _bayes_auc(1.0)
    assert full == pytest.approx({"US": 0.85, "MRI": 0.80, "fusion": norm.cdf(1.8913 / np.sqrt(2))}, abs=0.002)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("n_train", 3),
        ("n_test", 2),
        ("effect", -1.0),
        ("effect", float("nan")),
        ("seed", -1),
        ("positive_fraction", 1.0),
        ("us_size", (20, 200)),
        ("mri_size", (16, 64)),
    ],
)
def test_a_value_out_of_range_is_named(tmp_path: Path, option: str, value: object) -> None:
    with pytest.raises(Her2netError, match=option):
        make_synthetic_dataset(tmp_path / "Dataset001_Bad", **{option: value})
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset001_Mine"
    folder.mkdir()
    (folder / "cases.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(RawDataError, match="Dataset001_Mine"):
        make_synthetic_dataset(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["Dataset001_Mine", "cases.csv"]
