"""Disks that are full, read-only or gone, and files that are damaged: a clear message, and the former state intact."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from her2net import pipeline
from her2net.archive.licence import read_licence
from her2net.artefact import replacing, sweep_temporaries, write_bytes, write_csv
from her2net.errors import ArchiveError, CacheError, StaleArtefactError, WriteError
from her2net.paths import DatasetPaths
from her2net.plan.schema import PreprocessingPlan
from her2net.preprocess.cache import CaseFiles, build_cache, explain_staleness, load_cache
from her2net.preprocess.layout import create
from her2net.project import load_project
from her2net.train.checkpoint import LATEST, PREVIOUS, find_damage, read_checkpoint, read_latest, save_latest

CAN_MOUNT = hasattr(os, "geteuid") and os.geteuid() == 0 and bool(shutil.which("mount"))
FULL = OSError(errno.ENOSPC, "No space left on device")


def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    if not CAN_MOUNT or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("nothing may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    yield from mounted(tmp_path / "disk", "size=256k")


def state(epoch: int, n: int = 1000) -> dict:
    return {"made_from": {"a": "1"}, "epochs_done": epoch, "model": {"w": torch.full((n,), float(epoch))}}


def test_the_former_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")

    def fail_halfway() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.ENOSPC, "Free some space"), (errno.EROFS, "read-only"), (errno.ESTALE, "network drive is gone"), (errno.EIO, "disk")],
)
def test_a_failing_disk_is_worded_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, told: str
) -> None:
    path = tmp_path / "metrics.csv"
    write_csv(path, ["a"], [{"a": 1}])

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(WriteError, match=rf"metrics.csv: cannot be written .*its former content is untouched. .*{told}"):
        write_csv(path, ["a"], [{"a": 2}])
    assert path.read_text() == "a\n1\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_keeps_the_former_file(small_disk: Path) -> None:
    path = small_disk / "a.bin"
    write_bytes(path, bytes(100_000))
    with pytest.raises(WriteError, match="No space left on device"):
        write_bytes(path, bytes(200_000))
    assert path.stat().st_size == 100_000
    assert len(list(small_disk.iterdir())) == 1


def test_a_read_only_disk_is_named(tmp_path: Path) -> None:
    for folder in mounted(tmp_path / "disk", "size=256k,ro"):
        with pytest.raises(WriteError, match=r"cannot be written \(Read-only file system\)"):
            write_bytes(folder / "sub" / "a.txt", b"x")


def test_a_vanished_folder_comes_back_or_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fold_0" / "a.txt"
    write_bytes(path, b"x")
    shutil.rmtree(path.parent)
    write_bytes(path, b"y")
    assert path.read_bytes() == b"y"
    monkeypatch.setattr(os, "fsync", lambda _: shutil.rmtree(path.parent))
    with pytest.raises(WriteError, match="folder has vanished"):
        write_bytes(path, b"z")


def test_leftovers_of_a_killed_process_are_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.csv.0f0f.tmp", "b.tmp", ".c", "d.csv"):
        (tmp_path / name).touch()
    sweep_temporaries(tmp_path, tmp_path / "absent")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".c", "b.tmp", "d.csv"]


# Checkpoints


def test_the_newest_checkpoint_but_one_is_kept(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        save_latest(tmp_path, state(epoch))
    assert [read_checkpoint(tmp_path / name)["epochs_done"] for name in (LATEST, PREVIOUS)] == [3, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == [LATEST, PREVIOUS]


def test_a_disk_that_fills_up_in_the_middle_of_a_checkpoint_leaves_both_former_ones(small_disk: Path) -> None:
    save_latest(small_disk, state(1))
    save_latest(small_disk, state(2))
    with pytest.raises(WriteError, match=r"checkpoint_latest.pt: cannot be written \(No space left on device\)"):
        save_latest(small_disk, state(3, n=1_000_000))
    assert [read_checkpoint(small_disk / name)["epochs_done"] for name in (LATEST, PREVIOUS)] == [2, 1]
    assert len(list(small_disk.iterdir())) == 2


def test_a_limit_on_file_sizes_is_told_like_a_full_disk(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    save_latest(tmp_path, state(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(WriteError, match="File too large"):
            save_latest(tmp_path, state(2, n=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_checkpoint(tmp_path / LATEST)["epochs_done"] == 1


def test_a_checkpoint_that_reads_back_differently_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_latest(tmp_path, state(1))
    fsync = os.fsync

    def damage(handle: int) -> None:
        os.pwrite(handle, b"\xff", os.fstat(handle).st_size // 2)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(WriteError, match="read back"):
        save_latest(tmp_path, state(2))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / LATEST)["epochs_done"] == 1


def test_every_flipped_byte_of_a_tensor_is_found(tmp_path: Path) -> None:
    """torch alone would load another weight without a word."""
    path = tmp_path / LATEST
    save_latest(tmp_path, state(1))
    sound = path.read_bytes()
    start = sound.index(np.float32(1.0).tobytes() * 8)
    for place in range(start, start + 4000, 97):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        assert not torch.equal(torch.load(path, weights_only=True)["model"]["w"], state(1)["model"]["w"])
        assert find_damage(path)
        with pytest.raises(StaleArtefactError, match="damaged checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 1, 100, 1000, -1])
def test_a_damaged_newest_checkpoint_falls_back_and_never_replaces_the_sound_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: int
) -> None:
    save_latest(tmp_path, state(1))
    save_latest(tmp_path, state(2))
    (tmp_path / LATEST).write_bytes((tmp_path / LATEST).read_bytes()[:keep])
    found = read_latest(tmp_path)
    assert found is not None
    assert found["epochs_done"] == 1
    assert "Falling back to the previous checkpoint" in capsys.readouterr().err
    save_latest(tmp_path, state(3))
    assert [read_checkpoint(tmp_path / name)["epochs_done"] for name in (LATEST, PREVIOUS)] == [3, 1]


# Reports and archives


def fail_after(monkeypatch: pytest.MonkeyPatch, n_good: int) -> list[str]:
    """Let the disk be full once some files have been written; return the list of those."""
    replace, done = os.replace, []

    def full(source: str, target: str) -> None:
        if len(done) >= n_good:
            raise FULL
        done.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    return done


@pytest.mark.parametrize("n_good", [0, 20, 60])
def test_a_disk_that_fills_up_in_the_middle_of_a_report_leaves_the_former_page_whole(
    copied: DatasetPaths, monkeypatch: pytest.MonkeyPatch, n_good: int
) -> None:
    page, record = copied.report.read_bytes(), copied.report.with_name("report.json").read_bytes()
    done = fail_after(monkeypatch, n_good)
    with pytest.raises(WriteError, match=r"cannot be written \(No space left on device\); .* Free some space"):
        pipeline.report(load_project(copied))
    assert len(done) == n_good
    assert copied.report.read_bytes() == page
    assert copied.report.with_name("report.json").read_bytes() == record
    assert not list(copied.report.parent.rglob("*.tmp"))
    assert not list(copied.results.rglob("*.lock"))


def test_a_disk_that_fills_up_in_the_middle_of_an_archive_leaves_the_former_one(copied: DatasetPaths, small_disk: Path) -> None:
    path = small_disk / "model.her2net"
    path.write_bytes(b"former")
    with pytest.raises(ArchiveError, match=r"model\.her2net: cannot be written .*No space left on device"):
        pipeline.export(copied, path, read_licence("CC-BY-4.0"))
    assert path.read_bytes() == b"former"
    assert [p.name for p in small_disk.iterdir()] == ["model.her2net"]


# Caches


def plan(**changes: object) -> PreprocessingPlan:
    values: dict = {"margin": 0.3, "margin_unit": "lesion", "aspect": "keep", "statistics": "crop", "joint_channels": False,
                    "input_vox": [16, 16], "stored_vox": [20, 20]}  # fmt: skip
    return PreprocessingPlan(**(values | changes))


@pytest.fixture
def cases(tmp_path: Path) -> list[CaseFiles]:
    from PIL import Image

    rng, found = np.random.default_rng(0), []
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)).save(tmp_path / f"c{i}.png")
        found.append(CaseFiles(f"c{i}", (tmp_path / f"c{i}.png",), None, f"digest{i}"))
    return found


def test_a_cache_on_a_full_disk_is_refused_and_the_former_one_intact(small_disk: Path, cases: list[CaseFiles]) -> None:
    """HDF5 would crash the interpreter at its end, so this also stands for that nothing of it is left open."""
    path, small, big = small_disk / "US_x.h5", plan(), plan(stored_vox=[400, 400])
    build_cache(path, cases, small, n_workers=1, quiet=True)
    before = path.read_bytes()
    with pytest.raises(WriteError, match=r"US_x.h5: cannot be written .*No space left.*former content is untouched"):
        build_cache(path, cases, big, n_workers=1, quiet=True)
    assert path.read_bytes() == before
    assert [p.name for p in small_disk.iterdir()] == ["US_x.h5"]


def test_a_command_ends_normally_after_the_disk_was_full(small_disk: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from her2net.artefact import replacing\n"
        "from her2net.preprocess.layout import create\n"
        "layout = {'image': ((100, 1000), np.dtype(np.float32))}\n"
        "with replacing(Path(sys.argv[1])) as temporary, create(temporary, layout, {}) as rows:\n"
        "    [rows.put('image', i, np.ones(1000)) for i in range(100)]\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(small_disk / "a.h5")], capture_output=True, text=True, check=False)
    assert done.returncode == 1, "neither a success nor a crash (-11)"
    assert "WriteError" in done.stderr
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_up_between_reserving_and_writing_is_told_too(
    tmp_path: Path, cases: list[CaseFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    from her2net.preprocess.layout import RowWriter

    path = tmp_path / "US_x.h5"
    build_cache(path, cases[:2], plan(), n_workers=1, quiet=True)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(RowWriter, "put", fail)
    with pytest.raises(WriteError, match="No space left"):
        build_cache(path, cases, plan(), n_workers=1, quiet=True)
    assert path.read_bytes() == before


def test_a_killed_writer_leaves_no_cache_that_counts_as_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(KeyError), create(path, {"image": ((2, 3), np.dtype(np.float32))}, {}):
        raise KeyError
    with pytest.raises(CacheError, match="incomplete"):
        load_cache(path, ["c0"])


@pytest.mark.parametrize("field", ["image", "mask", "case_id", "has_mask", "digest", "checksum"])
def test_a_flipped_bit_anywhere_in_a_row_is_found_and_that_row_rebuilt(
    tmp_path: Path, cases: list[CaseFiles], field: str
) -> None:
    import h5py

    path = tmp_path / "US_x.h5"
    build_cache(path, cases, plan(), n_workers=1, quiet=True)
    good = load_cache(path, [c.case_id for c in cases])
    with h5py.File(path, "r") as file:
        place = file[field].id.get_offset() + 2 * (file[field].nbytes // 4)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CacheError, match=r"damaged rows: c2|holds no case c2"):
        load_cache(path, [c.case_id for c in cases])
    assert build_cache(path, cases, plan(), n_workers=1, quiet=True) == 1
    again = load_cache(path, [c.case_id for c in cases])
    assert (again.image == good.image).all()
    assert again.digests == good.digests


def test_the_cache_says_what_has_changed(tmp_path: Path, cases: list[CaseFiles], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "US_x.h5"
    build_cache(path, cases[:3], plan(), n_workers=1, quiet=True)
    assert explain_staleness(path, cases[:3], plan()) == ""
    other = CaseFiles("c0", cases[0].images, None, "other")
    assert explain_staleness(path, [other, cases[1], cases[3]], plan()) == "1 changed: c0; 1 new: c3; 1 gone: c2"
    monkeypatch.setattr("her2net.preprocess.cache.CACHE_VERSION", 99)
    assert "prepares images in another way (version 99" in explain_staleness(path, cases[:3], plan())
