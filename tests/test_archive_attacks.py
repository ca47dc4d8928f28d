"""Model archives that came by e-mail: each is refused with exit code 2 and one message, and leaves nothing anywhere."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from archive_factory import Parts, entry, make_model, snapshot, take_apart, with_tiny_network, write_made_archive

from her2net.archive.vectors import TOLERANCE
from her2net.cli import import_, predict
from her2net.paths import Roots

WEIGHTS = "weights/US/fold_0.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An honest archive."""
    root = tmp_path_factory.mktemp("made")
    with with_tiny_network():
        yield write_made_archive(root / "good.her2net", make_model(root))


@pytest.fixture
def parts(good: Path) -> Parts:
    """Its members, to be changed."""
    return take_apart(good)


@pytest.fixture
def attack(tmp_path: Path, roots: Roots, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable:
    """Import a file in a folder of its own; return the message, after asserting that nothing else happened."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))

    def run(write: Callable[[Path], object], name: str = "bad.her2net") -> str:
        write(here / name)
        before = snapshot(tmp_path)
        assert import_.main([name]) == 2
        shown = capsys.readouterr()
        assert snapshot(tmp_path) == before
        assert not roots.results.exists()
        assert shown.out == ""
        assert shown.err.startswith("Error: ")
        assert shown.err.count("Error:") == 1
        assert "Traceback" not in shown.err
        assert all(c.isprintable() or c == "\n" for c in shown.err)
        (here / name).unlink()
        return shown.err

    return run


def change_tensors(content: bytes, change: Callable[[dict[str, torch.Tensor]], object]) -> bytes:
    tensors = safetensors.torch.load(content)
    change(tensors)
    return safetensors.torch.save(tensors)


def change_header(content: bytes, change: Callable[[dict], object]) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def test_the_honest_archive_is_accepted(parts: Parts, roots: Roots, tmp_path: Path) -> None:
    """Taken apart and put together it passes; so what the others are refused for is what was done to them."""
    assert import_.main([str(parts.write(tmp_path / "again.her2net"))]) == 0
    assert {p.name for p in roots.results.rglob("*") if p.is_file()} == {"model.her2net", "model_card.md"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../evil.txt", "leads out of the archive"), ("weights/../../evil", "leads out of the archive"),
        ("..\\evil.txt", "leads out of the archive"), ("/tmp/evil.txt", "an absolute path"),
        ("\\evil.txt", "an absolute path"), ("C:\\evil.txt", "an absolute path"), ("folder/", "a folder"),
        ("weights/US/fold_0.pt", "has no place in it"), ("run.py", "has no place in it"),
        ("Plan.json", "upper and lower case"), ("plan.json", "is there 2 times"), ("a\x1b[2Jb", "no plain file name"),
    ],
)  # fmt: skip
def test_a_member_that_no_archive_has(parts: Parts, attack: Callable, name: str, said: str) -> None:
    info = entry("x")
    info.filename = name
    parts.entries.append((info, b"evil"))
    with pytest.warns(UserWarning, match="Duplicate") if name == "plan.json" else _nothing():
        message = attack(parts.write)
    assert said in message


def test_a_surplus_member_is_refused_though_the_manifest_lists_it(parts: Parts, attack: Callable) -> None:
    parts.put("weights/US/fold_0.pt", pickle.dumps([1]))
    assert "'weights/US/fold_0.pt' has no place in it" in attack(parts.write)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mode": 0o120777}, "a symbolic link"), ({"mode": 0o040755}, "a folder"), ({"mode": 0o060600}, "a device"),
        ({"mode": 0o010600}, "a device"), ({"extra": struct.pack("<HH", 0x000D, 16) + b"\0" * 12 + b"/etc"}, "extra fields"),
        ({"comment": b"hello"}, "a comment"),
    ],
)  # fmt: skip
def test_a_member_that_is_no_plain_file(parts: Parts, attack: Callable, fields: dict, said: str) -> None:
    content = parts.members.pop("model_card.md")
    parts.entries.append((entry("model_card.md", **fields), content))
    assert said in attack(parts.write)


def test_an_encrypted_member(good: Path, attack: Callable) -> None:
    content = bytearray(good.read_bytes())
    content[6] |= 1  # flags of the first local header and of the first central one
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in attack(lambda path: path.write_bytes(content))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_tar_file_with_a_hard_or_symbolic_link(attack: Callable, kind: bytes) -> None:
    def write(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            link = tarfile.TarInfo("plan.json")
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)

    assert "not a model archive" in attack(write)


@pytest.mark.parametrize("member", ["model_card.md", WEIGHTS])
def test_a_bomb(parts: Parts, attack: Callable, member: str) -> None:
    parts.members.pop(member)
    info = entry(member, compress_type=zipfile.ZIP_DEFLATED)
    parts.entries.append((info, bytes(50_000_000)))
    assert "is compressed (1,0" in attack(parts.write)


def test_overlapping_members_that_share_their_bytes(good: Path, attack: Callable) -> None:
    """The bomb without compression: many entries that point to one content."""
    content = bytearray(good.read_bytes())
    first = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", first + 4)
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    assert "belong to none, or members overlap" in attack(lambda path: path.write_bytes(content))


def test_a_list_of_members_that_would_fill_the_memory(attack: Callable) -> None:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for i in range(25_000):
                archive.writestr(entry(f"{i}"), b"")

    assert "its list of members is too long" in attack(write)


@pytest.mark.parametrize(("prefix", "suffix"), [(b"#!/bin/sh\n", b""), (b"", b"tail"), (b"", b"PK\x05\x06" + bytes(18))])
def test_bytes_before_or_behind_the_archive(parts: Parts, attack: Callable, prefix: bytes, suffix: bytes) -> None:
    parts.prefix, parts.suffix = prefix, suffix
    assert "model archive" in attack(parts.write)


def test_bytes_hidden_between_the_members(good: Path, attack: Callable) -> None:
    content = good.read_bytes()
    directory = content.index(b"PK\x01\x02")
    hidden = content[:directory] + b"hidden" + content[directory:]
    end = bytearray(hidden)
    end[-6:-2] = struct.pack("<I", directory + 6)
    assert "belong to none" in attack(lambda path: path.write_bytes(end))


@pytest.mark.parametrize("kept", [0, 3, 21, 22, 1000, 0.5, -99, -22, -1])
def test_a_truncated_file(good: Path, attack: Callable, kept: float) -> None:
    content = good.read_bytes()
    length = int(kept * len(content)) if isinstance(kept, float) else kept
    assert "not a model archive, or cut short" in attack(lambda path: path.write_bytes(content[:length]))


def test_what_is_no_archive_at_all(attack: Callable) -> None:
    assert "cut short" in attack(lambda path: path.write_text("hello " * 100))
    assert "not a sound model archive" in attack(lambda path: zipfile.ZipFile(path, "w").writestr(entry("a"), b"a"))


def test_a_missing_file_and_a_folder(tmp_path: Path, roots: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_.main([str(tmp_path / "none.her2net")]) == 2
    assert import_.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("Error: ") == 2


@pytest.mark.parametrize("name", [WEIGHTS, "plan.json", "thresholds.json", "licence.txt", "test_vectors.safetensors"])
def test_a_wrong_hash(parts: Parts, attack: Callable, name: str) -> None:
    content = bytearray(parts.members[name])
    content[-20] ^= 1
    parts.members[name] = bytes(content)
    assert f"{name} is not what the manifest says: its SHA-256 differs" in attack(parts.write)


def test_a_flipped_bit_on_the_way(good: Path, attack: Callable) -> None:
    content = bytearray(good.read_bytes())
    content[len(content) // 2] ^= 1
    assert "is damaged" in attack(lambda path: path.write_bytes(content))


class Evil:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("make", [lambda: pickle.dumps(Evil()), lambda: _torch_bytes(Evil()), lambda: b""])
def test_a_pickle_in_place_of_weights(parts: Parts, attack: Callable, make: Callable[[], bytes]) -> None:
    parts.put(WEIGHTS, make())
    assert "not a safetensors file" in attack(parts.write)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.popitem(), "is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "none of the model's"),
        (lambda t: t.update({"head.fc.bias": torch.zeros(3)}), "expected F32 (2,)"),
        (lambda t: t.update({"head.fc.bias": torch.zeros(2, dtype=torch.float64)}), "found 'F64"),
        (lambda t: t.update({"head.fc.bias": torch.tensor([0.0, float("nan")])}), "NaN or infinity"),
        (lambda t: t.update({"head.fc.bias": torch.tensor([0.0, float("inf")])}), "NaN or infinity"),
    ],
)
def test_tensors_that_are_not_the_model_s(parts: Parts, attack: Callable, change: Callable, said: str) -> None:
    parts.put(WEIGHTS, change_tensors(parts.members[WEIGHTS], change))
    assert said in attack(parts.write)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h["head.fc.bias"].update(shape=[1 << 40]), "found 'F32 (1099511627776,)'"),
        (lambda h: h["head.fc.bias"].update(data_offsets=[0, 1 << 50]), "not a sound safetensors file"),
        (lambda h: h["head.fc.bias"].update(data_offsets=h["head.fc.weight"]["data_offsets"]), "not a sound safetensors file"),
        (lambda h: h.update(__metadata__={"note": "x"}), "header cannot be read"),
        (lambda h: h.update(x=[1]), "header cannot be read"),
        (lambda h: h["head.fc.bias"].pop("shape"), "header cannot be read"),
    ],
)
def test_headers_that_claim_what_is_not_there(parts: Parts, attack: Callable, change: Callable, said: str) -> None:
    parts.put(WEIGHTS, change_header(parts.members[WEIGHTS], change))
    assert said in attack(parts.write)


def test_a_header_without_end(parts: Parts, attack: Callable) -> None:
    parts.put(WEIGHTS, (1 << 60).to_bytes(8, "little") + b"{}")
    assert "first 8 bytes are no length" in attack(parts.write)
    deep = b"[" * 900_000
    parts.put(WEIGHTS, len(deep).to_bytes(8, "little") + deep)
    assert "header cannot be read" in attack(parts.write)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("manifest.json", {"schema_version": 99}, "schema_version is 99"),
        ("plan.json", {"schema_version": 99}, "schema_version is 99"),
        ("fingerprint.json", {"schema_version": 2}, "schema_version is 2"),
        ("manifest.json", {"preprocessing_version": 99}, "prepared by version 99"),
        ("manifest.json", {"surprise": 1}, "surprise"),
        ("manifest.json", {"licence": "\x1b[2J"}, "licence"),
        ("manifest.json", {"her2net_version": "\x1b[2J"}, "her2net_version"),
        ("manifest.json", {"tta": {}}, "manifest's tta"),
        ("plan.json", {"name": "../../outside"}, "'../../outside' holds '/'"),
        ("plan.json", {"dataset": "../Dataset001_X"}, "holds '/'"),
        ("plan.json", {"dataset": "Elsewhere"}, "not named like Dataset001_Name"),
        ("plan.json", {"class_names": ["no\x1b[2J", "yes"]}, "not printable"),
        ("plan.json", {"class_names": ["a", "b", "c"]}, "one weight per class"),
        ("thresholds.json", {"models": {}}, "thresholds of no model"),
        ("fusion.json", {"models": []}, "other members"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(parts: Parts, attack: Callable, name: str, change: dict, said: str) -> None:
    parts.change_json(name, change)
    message = attack(parts.write)
    assert said in message or name == "fusion.json"


def test_a_modality_named_like_a_way_out(parts: Parts, attack: Callable) -> None:
    """Prediction tables are named after modalities, so a name from elsewhere must not be a path."""
    for name in ("plan.json", "fingerprint.json", "thresholds.json"):
        text = parts.members[name].decode()
        parts.change_json(name, json.loads(text.replace('"MG"', '"../../MG"')))  # wherever it stands: in the subsets, too
    assert "the modality name '../../MG' holds '/'" in attack(parts.write)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("training", "network"), "posix.system", "network 'posix.system' is unknown"),
        (("training", "network"), "resnet18_3d", "is 3-dimensional"),
        (("inference", "batch_size"), 10**9, "a batch of"),
        (("preprocessing", "input_vox"), [8, 8], "less than network"),
        (("file_ending",), ".exe", "file_ending must be one of"),
    ],
)
def test_a_plan_that_asks_for_too_much(parts: Parts, attack: Callable, place: tuple, value: object, said: str) -> None:
    modalities = json.loads(parts.members["plan.json"])["modalities"]
    section = modalities["US"]
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    if place[-1] == "input_vox":
        section["stored_vox"] = value
    parts.change_json("plan.json", {"modalities": modalities})
    assert said in attack(parts.write)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": 1, "a": 2}', b'{"a": NaN}', b"\xff\xfe", b"[]", b"null", b" " * (5 << 20)])
@pytest.mark.parametrize("name", ["manifest.json", "plan.json"])
def test_json_that_is_none(parts: Parts, attack: Callable, name: str, content: bytes) -> None:
    parts.put(name, content)
    assert name in attack(parts.write)


@pytest.mark.parametrize("key", ["US/fold_0", "MG/mean", "fusion/2"])
def test_wrong_test_vectors(parts: Parts, attack: Callable, key: str) -> None:
    name = "test_vectors.safetensors"
    parts.put(name, change_tensors(parts.members[name], lambda t: t[key].add_(5 * TOLERANCE)))
    message = attack(parts.write)
    assert f"{key} by 5e-05" in message
    assert "must not be used" in message


def test_weights_that_were_exchanged_are_found_by_the_test_vectors(parts: Parts, attack: Callable) -> None:
    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["head.fc.bias"][0] += 1e-3

    parts.put(WEIGHTS, change_tensors(parts.members[WEIGHTS], nudge))
    message = attack(parts.write)
    assert "US/fold_0 by" in message
    assert "fusion" not in message


def test_fusion_weights_that_were_exchanged_are_found_by_the_test_vectors(parts: Parts, attack: Callable) -> None:
    models = json.loads(parts.members["fusion.json"])["models"]
    models[2]["intercepts"] = [0.2]
    parts.change_json("fusion.json", {"models": models})
    assert "fusion/2 by" in attack(parts.write)


def test_rounding_is_no_attack(parts: Parts, roots: Roots, tmp_path: Path) -> None:
    name = "test_vectors.safetensors"
    parts.put(name, change_tensors(parts.members[name], lambda t: t["fusion/0"].add_(0.5 * TOLERANCE)))
    assert import_.main([str(parts.write(tmp_path / "rounded.her2net"))]) == 0


def test_a_prediction_refuses_what_an_import_refuses(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts.put(WEIGHTS, _torch_bytes(Evil()))
    (tmp_path / "in" / "US").mkdir(parents=True)
    parts.write(tmp_path / "bad.her2net")
    before = snapshot(tmp_path)
    assert predict.main(["--model", str(tmp_path / "bad.her2net"), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 2
    assert "not a safetensors file" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("seed", range(20))
def test_a_few_random_bytes_change_nothing_unnoticed(good: Path, attack: Callable, seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = np.frombuffer(good.read_bytes(), np.uint8).copy()
    small = [content.size - 4000, content.size]  # the list of members and the manifest: what is parsed
    content[rng.integers(*small, size=3)] = rng.integers(0, 256, size=3)
    if content.tobytes() != good.read_bytes():
        attack(lambda path: path.write_bytes(content.tobytes()))


def _torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _nothing():  # type: ignore[no-untyped-def]
    from contextlib import nullcontext

    return nullcontext()


FOREST, LINEAR = "tables/RAD-US/fold_0.json", "tables/CLIN/fold_1.json"


def change_tree(tree: dict, **change: Any) -> dict:
    """Change node 0 of a tree that has one, e.g. `left=0`: it leads to itself."""
    return tree | {key: [value, *tree[key][1:]] for key, value in change.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"left": 0}, "lead nowhere"), ({"right": -1}, "lead nowhere"), ({"right": 10**30}, "lead nowhere"),
        ({"term": 99}, "lead nowhere"), ({"term": -2}, "lead nowhere"), ({"threshold": "x"}, "valid number"),
        ({"probs": [0.7, 0.7]}, "do not end in probabilities"), ({"probs": [1.0]}, "do not end in"),
        ({"probs": [-1.0, 2.0]}, "do not end in"),
    ],
)  # fmt: skip
def test_a_tree_without_an_end(parts: Parts, attack: Callable, change: dict, said: str) -> None:
    record = json.loads(parts.members[FOREST])
    record["model"]["trees"] = [change_tree(tree, **change) for tree in record["model"]["trees"]]
    parts.put(FOREST, json.dumps(record).encode())
    assert said in attack(parts.write)


def test_a_forest_that_fills_the_memory(parts: Parts, attack: Callable) -> None:
    """Trees are padded to the largest: a few large and many small ones make much of a small file."""
    record = json.loads(parts.members[FOREST])
    leaf = {"term": [-1], "threshold": [0.0], "left": [0], "right": [0], "probs": [[0.5, 0.5]]}
    record["model"]["trees"] = [{key: value * 3000 for key, value in leaf.items()}, *[leaf] * 7000]
    parts.put(FOREST, json.dumps(record).encode())
    assert "its trees are too large" in attack(parts.write)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": [[1e300, 1.0]]}, "weights beyond"), ({"weights": [[1.0]]}, "expected weights of shape (1, 2)"),
        ({"weights": []}, "expected weights"), ({"intercepts": [0.0, 0.0]}, "expected weights"), ({"n_classes": 3}, "is for 3 classes"),
        ({"intercepts": [float("nan")]}, "NaN"), ({"intercepts": [0.3]}, "does not give the probabilities"), ({"code": "x"}, "code"),
    ],
)  # fmt: skip
def test_weights_that_are_none(parts: Parts, attack: Callable, change: dict, said: str) -> None:
    record = json.loads(parts.members[LINEAR])
    record["model"] |= change
    parts.put(LINEAR, json.dumps(record).encode())
    assert said in attack(parts.write)


@pytest.mark.parametrize(
    ("place", "change", "said"),
    [
        ("columns", {"name": "patient_id"}, "'patient_id' is none of the plan's"),
        ("columns", {"kind": "binary"}, "is none of the plan's"), ("columns", {"fill": "x"}, "cannot be encoded"),
        ("columns", {"knots": [2.0, 1.0], "scores": [0.0, 1.0]}, "cannot be encoded"),
        ("columns", {"knots": [1.0]}, "cannot be encoded"), ("terms", {"column": "size"}, "is of no column"),
        ("terms", {"sd": 0.0}, "vary"), ("terms", {"level": "x"}, "is of no column"),
    ],
)  # fmt: skip
def test_columns_that_are_none(parts: Parts, attack: Callable, place: str, change: dict, said: str) -> None:
    record = json.loads(parts.members[LINEAR])
    record["model"]["encoding"][place][0] |= change
    parts.put(LINEAR, json.dumps(record).encode())
    assert said in attack(parts.write)


def test_table_models_have_to_be_those_of_the_plan(parts: Parts, attack: Callable) -> None:
    forest, linear = parts.members[FOREST], parts.members[LINEAR]
    parts.put(LINEAR, parts.members["tables/CLIN/fold_0.json"])
    assert "is of 'CLIN' fold '0'" in attack(parts.write)
    parts.put(LINEAR, json.dumps(json.loads(linear) | {"environment": {"mirp": "=1+1"}}).encode())
    assert "names a version that is none" in attack(parts.write)
    parts.put(LINEAR, json.dumps(json.loads(linear) | {"settings": json.loads(forest)["settings"]}).encode())
    assert "its settings are not those of the plan" in attack(parts.write)
    parts.put(LINEAR, linear)
    parts.put("tables/CLIN/fold_2.json", linear)
    assert "'tables/CLIN/fold_2.json' has no place in it" in attack(parts.write)


@pytest.mark.parametrize(("change", "said"), [({"spacing_mm": [1e-6, 9.0]}, "0.02 to 100"), ({"bins": 10**9}, "at most 1024")])
def test_radiomics_that_fills_the_memory(parts: Parts, attack: Callable, change: dict, said: str) -> None:
    plan = json.loads(parts.members["plan.json"])
    plan["tables"]["RAD:US"]["radiomics"] |= change
    parts.put("plan.json", json.dumps(plan).encode())
    assert said in attack(parts.write)


def test_radiomics_of_another_version(parts: Parts, attack: Callable) -> None:
    parts.change_json("manifest.json", {"features_version": 1})
    assert "radiomics is computed by version 1, here by version" in attack(parts.write)
