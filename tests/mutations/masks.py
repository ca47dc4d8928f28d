"""Damaged masks, and masks that do not fit their image."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from raw_factory import box_mask, write_png

from her2net.paths import DatasetPaths
from mutations.case import PLAN, VERIFY, Kind, Mutation
from mutations.tools import (
    MRI_MASK,
    US,
    US_MASK,
    become,
    cut_share,
    link,
    png,
    raw,
    replace_file,
    save_picture,
    volume,
)

MASK = Kind("mask", (VERIFY, PLAN))
refused, accepted = MASK.refused, MASK.accepted


def draw(array: np.ndarray):  # type: ignore[no-untyped-def]
    """Save another picture as the mask."""
    return lambda d: write_png(d.raw / US_MASK, array)


def jpeg(lossy: bool):  # type: ignore[no-untyped-def]
    """Let the modality be JPEG, and so the mask of one case; compressed, its edges blur."""

    def damage(d: DatasetPaths) -> None:
        from mutations.tools import change_ending

        change_ending(d, "US", ".jpg")
        mask = Image.open(d.raw / US_MASK)
        (d.raw / US_MASK).unlink()
        values = np.asarray(mask) * 255 if lossy else np.full((48, 64), 255, np.uint8)
        Image.fromarray(values).save(d.raw / "masksTr/US/C003.jpg", quality=60)

    return damage


def coloured() -> bytes:
    colour = np.zeros((48, 64, 3), np.uint8)
    colour[12:30, 20:44, 2] = 1
    buffer = io.BytesIO()
    Image.fromarray(colour).save(buffer, "PNG")
    return buffer.getvalue()


def second_mask(d: DatasetPaths) -> None:
    write_png(d.raw / US_MASK, box_mask((48, 64), (12, 20), (30, 44)))
    replace_file(d.raw / "masksTr/US/C003.nii.gz", (d.raw / MRI_MASK).read_bytes())


def no_modality_masks(d: DatasetPaths) -> None:
    (d.raw / "masksTr/US").rename(d.raw.parent / "moved_away")


BOX = box_mask((48, 64), (12, 20), (30, 44))
MUTATIONS: list[Mutation] = [
    refused("empty", draw(np.zeros((48, 64), np.uint8)), US_MASK, "marks nothing"),
    refused("empty volume", volume(MRI_MASK, np.zeros_like), MRI_MASK, "marks nothing"),
    refused("negative values only", volume(MRI_MASK, lambda a: -a.astype(np.int16)), MRI_MASK, "marks nothing"),
    refused("one row too many", draw(np.pad(BOX, ((0, 1), (0, 0)))), US_MASK, "another size"),
    refused("rows and columns swapped", draw(np.ascontiguousarray(BOX.T)), US_MASK, "transpose it"),
    refused("one slice too few", volume(MRI_MASK, lambda a: a[1:]), MRI_MASK, "another size"),
    refused("one pixel", draw(np.ones((1, 1), np.uint8)), US_MASK, "another size"),
    refused("other spacing", volume(MRI_MASK, lambda a: a, spacing=(1, 1, 1)), MRI_MASK, "another spacing"),
    refused("outside the image", volume(MRI_MASK, lambda a: a, origin=(500, 0, 0)), MRI_MASK, "another origin"),
    refused("mirrored direction", volume(MRI_MASK, lambda a: a, direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1)), MRI_MASK,
            "another direction"),
    refused("NaN", volume(MRI_MASK, lambda a: np.where(a > 0, np.nan, 0).astype(np.float32)), MRI_MASK, "NaN"),
    refused("4D", volume(MRI_MASK, lambda a: np.stack([a, a])), MRI_MASK, "more than three dimensions"),
    refused("complex", volume(MRI_MASK, lambda a: a.astype(np.complex64)), MRI_MASK, "more than one number"),
    refused("truncated volume", raw(MRI_MASK, cut_share(0.5)), MRI_MASK, "truncated"),
    refused("truncated picture", raw(US_MASK, cut_share(0.5)), US_MASK, "damaged"),
    refused("0 bytes", become(US_MASK, b""), US_MASK, "0 bytes"),
    refused("text instead", become(US_MASK, b"contour 1 2 3"), US_MASK, "not a readable picture"),
    refused("bomb", become(US_MASK, png(20_000, 10_000, 1, rows=bytes(2501) * 10_000)), US_MASK, "too large"),
    refused("JPEG with blurred edges", jpeg(lossy=True), "masksTr/US/C003.jpg", "JPEG and not binary"),
    refused("two masks of one case", second_mask, US_MASK, "a second mask"),
    refused("folder named like a mask", lambda d: ((d.raw / US_MASK).unlink(), (d.raw / US_MASK).mkdir()), US_MASK,
            "is not a file"),
    refused("link to itself", link(US_MASK, "C003.png"), US_MASK, "is not a file"),
    accepted("one voxel", draw(box_mask((48, 64), (12, 20), (13, 21))), "a warning: lesions may be small", US_MASK,
             "only 1 voxel"),
    accepted("one voxel in a volume", volume(MRI_MASK, lambda a: box_mask(a.shape, (3, 9, 9), (4, 10, 10))),
             "a warning: lesions may be small", MRI_MASK, "only 1 voxel"),
    accepted("one voxel in the corner", draw(box_mask((48, 64), (47, 63), (48, 64))), "a warning: lesions may be small",
             US_MASK, "only 1 voxel"),
    accepted("everything", draw(np.ones((48, 64), np.uint8)), "a warning: it may be inverted", US_MASK, "100%"),
    accepted("255 instead of 1", draw(BOX * 255), "every value above 0 is lesion"),
    accepted("several labels", draw(BOX * 2 + box_mask((48, 64), (0, 0), (5, 5))), "every value above 0 is lesion",
             US_MASK, "not binary"),
    accepted("negative and positive values", volume(MRI_MASK, lambda a: a.astype(np.int16) * 2 - 1),
             "every value above 0 is lesion", MRI_MASK, "from -1 to 1"),
    accepted("probabilities", volume(MRI_MASK, lambda a: a.astype(np.float32) * 0.3), "every value above 0 is lesion"),
    accepted("16 bits", save_picture(US_MASK, lambda p: Image.fromarray(np.asarray(p).astype(np.uint16) * 65535)),
             "every value above 0 is lesion"),
    accepted("dark colour", become(US_MASK, coloured()), "in a coloured mask any colour counts"),
    accepted("palette", save_picture(US_MASK, lambda p: p.convert("P")), "in a coloured mask any colour counts"),
    accepted("several lesions", draw(BOX + box_mask((48, 64), (40, 50), (45, 55))), "the box holds all of them"),
    accepted("missing", lambda d: (d.raw / US_MASK).unlink(), "a warning: the whole image is taken", "masksTr/US",
             "1 of 8 images have no mask"),
    accepted("all of a modality missing", no_modality_masks, "a warning: whole images are taken", "masksTr/US",
             "8 of 8 images have no mask"),
    accepted("of no case", lambda d: (d.raw / US_MASK).rename(d.raw / "masksTr/US/C003_0000.png"),
             "a warning: it is not used", "masksTr/US/C003_0000.png", "without a row"),
    accepted("JPEG of one value", jpeg(lossy=False), "nothing to blur", "masksTr/US/C003.jpg", "100%"),
    refused("of the whole image, which is one value", lambda d: (draw(np.ones((48, 64), np.uint8))(d),
            replace_file(d.raw / US, png(64, 48, rows=(b"\0" + bytes(64)) * 48))), US, "same value"),
]  # fmt: skip
