"""Preprocess an MRI case: her2net against MONAI, nibabel + SciPy, SimpleITK's mere reading, and nnU-Net v2.

    python benchmarks/preprocess.py [--rounds 7]

Case: 120 x 320 x 320 int16 and its mask, compressed at level 6 as dcm2niix and nibabel write it; mask box and 50 voxels
around it, z-score of the crop, 96 x 96 x 96, written. One thread. her2net writes its cache, with digests and
checksums; the rivals write a NumPy file. Interpolation differs by design (her2net: cubic with antialiasing; MONAI:
trilinear; SciPy and nnU-Net: cubic spline), so results must agree in their crop and correlate, not equal each other.

nnU-Net gets the crop as an array, and so does her2net; its time includes its own cropping to nonzero voxels and copies.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813
from harness import Row, compare, finish, refuse, take_turns
from scipy import ndimage

from her2net.plan.schema import PreprocessingPlan
from her2net.preprocess.cache import CaseFiles, build_cache, load_cache
from her2net.preprocess.prepare import prepare_arrays
from her2net.raw.images import Volume

SHAPE, SIZE, MARGIN, N_CASES = (120, 320, 320), (96, 96, 96), 50, 4
PLAN = PreprocessingPlan(
    margin=MARGIN, margin_unit="px", aspect="squash", statistics="crop", joint_channels=False,
    input_vox=list(SIZE), stored_vox=list(SIZE),
)  # fmt: skip


def make_case(folder: Path, k: int) -> tuple[Path, Path]:
    """Write one volume (smooth tissue, fine texture, air around it) and its mask, as nibabel does."""
    rng = np.random.default_rng(k)
    tissue = ndimage.zoom(rng.normal(size=tuple(n // 10 for n in SHAPE)), 10, order=1) * 120 + 400
    body = np.hypot(*np.meshgrid(np.linspace(-1, 1, 320), np.linspace(-1, 1, 320))) < 0.95
    volume = np.where(body, tissue + rng.normal(0, 12, SHAPE), rng.integers(0, 8, SHAPE)).astype(np.int16)
    mask = np.zeros(SHAPE, np.uint8)
    mask[50:70, 140:179, 150:193] = 1
    files = folder / f"image{k}.nii.gz", folder / f"mask{k}.nii.gz"
    for path, array in zip(files, (volume, mask), strict=True):
        nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), np.eye(4)), path)
    return files


def her2net_files(cases: list[tuple[Path, Path]], out: Path) -> Callable[[], object]:
    """Read, prepare and write the cache."""
    files = [CaseFiles(f"c{k}", (image,), mask, str(k)) for k, (image, mask) in enumerate(cases)]

    def run() -> None:
        out.unlink(missing_ok=True)
        build_cache(out, files, PLAN, n_workers=1, quiet=True)

    return run


def monai_files(cases: list[tuple[Path, Path]], out: Path) -> Callable[[], object]:
    """The same by MONAI's dictionary transforms."""
    from monai import transforms as t

    keys = ["image", "mask"]
    chain = t.Compose([
        t.LoadImaged(keys), t.EnsureChannelFirstd(keys),
        t.CropForegroundd(keys, source_key="mask", margin=MARGIN, allow_smaller=True),
        t.NormalizeIntensityd("image"), t.Resized(keys, SIZE, mode=("trilinear", "nearest")),
    ])  # fmt: skip

    def run() -> np.ndarray:
        for image, mask in cases:
            result = np.asarray(chain({"image": image, "mask": mask})["image"])
            np.save(out, result)
        return result[0].transpose(2, 1, 0)

    return run


def naive_files(cases: list[tuple[Path, Path]], out: Path) -> Callable[[], object]:
    """The same as most scripts do it: nibabel, NumPy, SciPy's cubic zoom."""

    def run() -> np.ndarray:
        for image, mask in cases:
            volume, lesion = nibabel.load(image).get_fdata(), nibabel.load(mask).get_fdata() > 0
            place = np.argwhere(lesion)
            low, high = np.maximum(place.min(0) - MARGIN, 0), np.minimum(place.max(0) + 1 + MARGIN, volume.shape)
            crop = volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            crop = (crop - crop.mean()) / crop.std()
            result = ndimage.zoom(crop, np.array(SIZE) / crop.shape, order=3, grid_mode=True, mode="nearest")
            np.save(out, result.astype(np.float32))
        return result.transpose(2, 1, 0)

    return run


def read_only(cases: list[tuple[Path, Path]]) -> Callable[[], object]:
    """SimpleITK reads the image, the mask too, and nothing else happens."""
    return lambda: [sitk.GetArrayFromImage(sitk.ReadImage(path)) for case in cases for path in case]


def nnunet(crop: np.ndarray, resampler: str) -> Callable[[], object]:
    """nnU-Net's preprocessor on the crop, with a target spacing that gives 96 x 96 x 96."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    options = {"is_seg": False, "force_separate_z": False}
    if resampler == "resample_data_or_seg_to_shape":
        options |= {"order": 3, "order_z": 0}
    settings = {"spacing": [a / b for a, b in zip(crop.shape, SIZE, strict=True)],
                "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
                "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []}}  # fmt: skip
    for what in ("data", "seg"):
        settings |= {f"resampling_fn_{what}": resampler, f"resampling_fn_{what}_kwargs": options | {"is_seg": what == "seg"}}
    configuration = ConfigurationManager(settings)
    plans = PlansManager({"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
                          "foreground_intensity_properties_per_channel": {"0": {}}})  # fmt: skip
    worker = DefaultPreprocessor(verbose=False)
    data = crop[None]
    return lambda: worker.run_case_npy(data, None, {"spacing": [1.0, 1.0, 1.0]}, plans, configuration, {})[0][0]


def check(name: str, ours: np.ndarray, theirs: np.ndarray, least: float) -> None:
    """Refuse results of another crop or scale."""
    correlation = float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]) if ours.shape == theirs.shape else 0.0
    mean = float(abs(ours.mean() - theirs.mean())) if ours.shape == theirs.shape else float("inf")
    if correlation < least or mean > 0.02:
        refuse(f"{name} gives {theirs.shape}, correlation {correlation:.3f}, means apart by {mean:.3f}")
    print(f"  {name}: correlation with her2net {correlation:.4f}")


def run(rounds: int) -> list[Row]:
    """Check and time both groups."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = [make_case(folder, k) for k in range(N_CASES)]
        cache, other = folder / "cache.h5", folder / "other.npy"
        variants = {"ours": her2net_files(cases, cache), "MONAI": monai_files(cases, other),
                    "naive": naive_files(cases, other), "read": read_only(cases)}  # fmt: skip
        variants["ours"]()
        stored = load_cache(cache, [f"c{N_CASES - 1}"]).image[0, 0].astype(np.float32)
        check("MONAI", stored, variants["MONAI"](), 0.97)
        check("nibabel + SciPy", stored, variants["naive"](), 0.97)
        cost = take_turns(variants, rounds)
        image = sitk.GetArrayFromImage(sitk.ReadImage(cases[0][0]))
    rows = [
        compare("MRI case from files: MONAI dictionary transforms", cost["ours"], cost["MONAI"], target=3, per=N_CASES),
        compare("MRI case from files: nibabel + SciPy order 3", cost["ours"], cost["naive"], target=5, per=N_CASES),
        compare("MRI case from files: SimpleITK merely reading", cost["ours"], cost["read"], target=1.8, at_least=False,
                per=N_CASES, note="image and mask, which her2net reads and checks both"),
    ]  # fmt: skip
    crop = np.ascontiguousarray(image[:, 90:229, 100:243])
    volume = Volume(crop[None])
    arrays = {
        "ours": lambda: prepare_arrays(volume, None, PLAN).image[0].astype(np.float32),
        "default": nnunet(crop, "resample_data_or_seg_to_shape"), "torch": nnunet(crop, "resample_torch_fornnunet"),
    }  # fmt: skip
    for key in ("default", "torch"):
        check(f"nnU-Net {key}", arrays["ours"](), np.asarray(arrays[key]()), 0.97)
    cost = take_turns(arrays, rounds)
    note = "nnU-Net's time includes its crop to nonzero, a segmentation of its own and copies"
    return [
        *rows,
        compare("array in memory: nnU-Net default (order 3)", cost["ours"], cost["default"], target=20, note=note),
        compare("array in memory: nnU-Net torch resampler", cost["ours"], cost["torch"], target=4, note=note),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    raise SystemExit(finish(run(parser.parse_args().rounds)))
