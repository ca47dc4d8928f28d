"""Every kind of image file reads into the same form, and every damaged one is refused by name."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image
from raw_factory import box_mask, smooth_noise, write_png, write_volume

from her2net.errors import RawDataError
from her2net.raw import images
from her2net.raw.images import is_3d, read_image, read_mask

GREY = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64)
NIFTI_DIM, NIFTI_PIXDIM, NIFTI_OFFSET = 40, 76, 108


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


def test_which_endings_are_volumes() -> None:
    assert [is_3d(e) for e in (".png", ".nii.gz", ".NII", ".tif", ".nrrd")] == [False, True, True, False, True]


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp", ".jpg"])
def test_flat_grey_pictures(tmp_path: Path, ending: str) -> None:
    grey = np.full((48, 64), 77, np.uint8)
    volume = read_image([save(tmp_path / f"a{ending}", Image.fromarray(grey))])
    assert (volume.array.shape, volume.array.dtype, volume.spacing_mm) == ((1, 48, 64), np.uint8, None)
    np.testing.assert_allclose(volume.array[0], grey, atol=2 if ending == ".jpg" else 0)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_sixteen_bits_are_kept(tmp_path: Path, ending: str) -> None:
    volume = read_image([save(tmp_path / f"a{ending}", Image.fromarray((GREY * 20).astype(np.uint16)))])
    assert volume.array.dtype == np.uint16
    np.testing.assert_array_equal(volume.array[0], GREY * 20)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "1", "CMYK"])
def test_colour_becomes_one_grey_channel(tmp_path: Path, mode: str) -> None:
    grey = box_mask((48, 64), (5, 6), (20, 30)) * 255
    picture = (
        Image.fromarray(grey).convert("RGB").convert(mode) if mode != "LA" else Image.fromarray(grey).convert("LA")
    )
    volume = read_image([save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), picture)])
    assert (volume.array.shape, volume.array.dtype) == ((1, 48, 64), np.uint8)
    np.testing.assert_allclose(volume.array[0], grey, atol=1)


def test_luminance_is_that_of_itu_r_601(tmp_path: Path) -> None:
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[..., 0] = 200
    assert read_image([save(tmp_path / "a.png", Image.fromarray(colour))]).array.max() == round(0.299 * 200)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64, np.int32])
def test_volumes(tmp_path: Path, ending: str, dtype: type) -> None:
    array = np.arange(8 * 24 * 20).reshape(8, 24, 20) % 251
    write_volume(tmp_path / f"a{ending}", array.astype(dtype), spacing_xyz=(0.5, 0.75, 3), origin=(1, 2, 3))
    volume = read_image([tmp_path / f"a{ending}"])
    expected = {np.float64: np.float32, np.int32: np.int16}.get(dtype, dtype)
    assert (volume.array.shape, volume.array.dtype) == ((1, 8, 24, 20), expected)
    assert volume.spacing_mm == pytest.approx((3, 0.75, 0.5))
    assert volume.origin == pytest.approx((1, 2, 3))
    np.testing.assert_array_equal(volume.array[0], array)


def test_channels_are_stacked_and_must_share_a_grid(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"a_{i:04d}.nii.gz" for i in range(3)]
    for path in paths:
        write_volume(path, smooth_noise(rng, (8, 24, 24)))
    assert read_image(paths).array.shape == (3, 8, 24, 24)
    write_volume(paths[1], smooth_noise(rng, (8, 24, 24)), spacing_xyz=(0.8, 0.8, 3))
    with pytest.raises(RawDataError, match=r"a_0001.nii.gz: the channels do not share a grid.*2.5 x 0.8 x 0.8 mm"):
        read_image(paths)
    write_volume(paths[1], smooth_noise(rng, (8, 24, 25)))
    with pytest.raises(RawDataError, match="size 8 x 24 x 25"):
        read_image(paths)


def test_extra_axes_of_one_are_dropped_and_others_refused(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(1, 8, 24, 24)).astype(np.float32)
    write_volume(tmp_path / "a.nii.gz", array)
    assert read_image([tmp_path / "a.nii.gz"]).array.shape == (1, 8, 24, 24)
    write_volume(tmp_path / "b.nii.gz", np.concatenate([array, array]))
    with pytest.raises(RawDataError, match=r"more than three dimensions.*24 x 24 x 8 x 2"):
        read_image([tmp_path / "b.nii.gz"])


def test_a_slice_stays_a_volume(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", np.ones((1, 24, 24), np.uint8))
    assert read_image([tmp_path / "a.nii.gz"]).array.shape == (1, 1, 24, 24)


def test_masks_of_pictures_may_be_volumes_of_one_slice(tmp_path: Path) -> None:
    expected = box_mask((48, 64), (5, 6), (20, 30))
    write_png(tmp_path / "image.png", GREY.astype(np.uint8))
    image = read_image([tmp_path / "image.png"])
    write_volume(tmp_path / "mask.nii.gz", expected[np.newaxis] * 3)
    write_png(tmp_path / "mask.png", expected)
    for name in ("mask.nii.gz", "mask.png"):
        mask = read_mask(tmp_path / name, image)
        assert mask.array.dtype == bool
        np.testing.assert_array_equal(mask.array, expected > 0)
    write_png(tmp_path / "turned.png", np.ascontiguousarray(expected.T))
    with pytest.raises(RawDataError, match="rows and columns are swapped"):
        read_mask(tmp_path / "turned.png", image)


def test_a_dark_colour_in_a_mask_counts(tmp_path: Path) -> None:
    picture = Image.fromarray(box_mask((48, 64), (5, 6), (20, 30)), mode="P")
    picture.putpalette([0, 0, 0, 0, 0, 1])
    picture.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").array.sum() == 15 * 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing_xyz": (0.8, 0.8, 3.0)}, "spacing"),
        ({"origin": (5, 0, 0)}, "origin"),
        ({"direction": (-1, 0, 0, 0, 1, 0, 0, 0, 1)}, "direction"),
    ],
)
def test_a_mask_elsewhere_in_space_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    write_volume(tmp_path / "image.nii.gz", smooth_noise(np.random.default_rng(0), (8, 24, 24)))
    write_volume(tmp_path / "mask.nii.gz", box_mask((8, 24, 24), (2, 6, 7), (6, 15, 17)), **change)
    with pytest.raises(RawDataError, match=f"does not lie on its image.*{message}"):
        read_mask(tmp_path / "mask.nii.gz", read_image([tmp_path / "image.nii.gz"]))


def damaged(path: Path, offset: int, code: str, value: float) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into("<" + code, content, offset, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "code", "value", "message"),
    [
        (0, "i", 7, "not a NIfTI file"),
        (NIFTI_DIM, "h", 9, "9 dimensions"),
        (NIFTI_DIM + 2, "h", -5, "impossible size"),
        (NIFTI_DIM + 2, "h", 32000, "truncated"),
        (NIFTI_PIXDIM + 4, "f", 0.0, "voxel spacing is impossible"),
        (NIFTI_PIXDIM + 4, "f", -1.0, "voxel spacing is impossible"),
        (NIFTI_PIXDIM + 4, "f", float("nan"), "voxel spacing is impossible"),
        (NIFTI_OFFSET, "f", float("inf"), "header is damaged"),
        (70, "h", 32, "not readable as a volume|more than one number|truncated"),
    ],
)
def test_impossible_headers_are_refused(tmp_path: Path, offset: int, code: str, value: float, message: str) -> None:
    path = tmp_path / "a.nii"
    write_volume(path, smooth_noise(np.random.default_rng(0), (8, 24, 24)))
    damaged(path, offset, code, value)
    with pytest.raises(RawDataError, match=message):
        read_image([path])


def test_a_header_that_claims_terabytes_reserves_none(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii", np.zeros((8, 24, 24), np.int16))
    for axis in range(3):
        damaged(tmp_path / "a.nii", NIFTI_DIM + 2 + 2 * axis, "h", 32000)
    with pytest.raises(RawDataError, match="too large"):
        read_image([tmp_path / "a.nii"])
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    with pytest.raises(RawDataError, match="too large"):
        read_image([tmp_path / "a.nii.gz"])
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 90000 90000 90000\nencoding: raw\nendian: little\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + b"x" * 100)
    with pytest.raises(RawDataError):
        read_image([tmp_path / "a.nrrd"])


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".bmp", ".nii", ".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.95])
def test_truncated_files_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], ending: str, share: float
) -> None:
    path = tmp_path / f"a{ending}"
    noise = np.random.default_rng(0).integers(0, 200, (8, 24, 24)).astype(np.uint8)
    if is_3d(ending):
        write_volume(path, noise)
    else:
        write_png(path, noise[0])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(RawDataError, match=r"a\."):
        read_image([path])
    assert capfd.readouterr().err == ""


def test_a_flipped_byte_in_a_compressed_volume_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_volume(path, np.random.default_rng(0).integers(0, 200, (8, 24, 24)).astype(np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(RawDataError, match=r"damaged|truncated|cannot be read"):
        read_image([path])


def test_animations_and_pages_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray((GREY % (200 + i)).astype(np.uint8)) for i in range(3)]
    for name in ("a.png", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(RawDataError, match=r"animated or has several pages; found '3 frames', expected 1"):
            read_image([tmp_path / name])


def test_bombs_are_refused_before_they_unfold(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "a.png")
    with pytest.raises(RawDataError, match="too large"):
        read_image([tmp_path / "a.png"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nrrd", b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: /etc/hosts\n\n"),
        (
            "a.mha",
            b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = x.raw\n",
        ),
    ],
)
def test_headers_that_point_elsewhere_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RawDataError, match="voxels lie in another file"):
        read_image([tmp_path / name])


def test_sheared_axes_are_refused(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((4, 20, 20), np.uint8))
    image.SetDirection((1, 0.4, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    with pytest.raises(RawDataError, match="sheared"):
        read_image([tmp_path / "a.mha"])


def test_colour_volumes_are_refused(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((4, 20, 20, 3), np.uint8), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    with pytest.raises(RawDataError, match="more than one number"):
        read_image([tmp_path / "a.nii.gz"])


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(RawDataError, match="is not a file"):
        read_image([tmp_path / "a.png"])
    with pytest.raises(RawDataError, match="no such file"):
        read_image([tmp_path / "b.png"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_sound_compressed_volume_is_decompressed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    array = np.arange(5 * 20 * 24).reshape(5, 20, 24).astype(dtype)
    write_volume(tmp_path / "a.nii.gz", array)
    monkeypatch.setattr(images, "check_nifti", lambda path: pytest.fail("walked through the file a second time"))
    assert np.array_equal(read_image([tmp_path / "a.nii.gz"]).array[0], array)


@pytest.mark.parametrize("place", ["voxel", "checksum", "length"])
def test_what_disagrees_with_its_checksum_is_refused(tmp_path: Path, place: str) -> None:
    path = tmp_path / "a.nii.gz"
    write_volume(path, np.arange(5 * 20 * 24, dtype=np.int16).reshape(5, 20, 24))
    content = bytearray(gzip.decompress(path.read_bytes()))
    packed = bytearray(gzip.compress(bytes(content), 0))  # level 0: voxels stand in the file as they are
    packed[{"voxel": len(packed) // 2, "checksum": -8, "length": -4}[place]] ^= 1
    path.write_bytes(packed)
    with pytest.raises(RawDataError, match=r"a.nii.gz: .*(damaged|truncated)"):
        read_image([path])


def test_several_members_and_bytes_after_the_voxels_are_read_as_before(tmp_path: Path) -> None:
    array = np.arange(5 * 20 * 24, dtype=np.int16).reshape(5, 20, 24)
    write_volume(tmp_path / "a.nii.gz", array)
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(content + b"more"))
    for name in ("b", "c"):
        assert np.array_equal(read_image([tmp_path / f"{name}.nii.gz"]).array[0], array)
