"""Mutating: what is written, where, and that nothing else is."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import protobuf_reader
import pytest
from build_models import chunk, floats, graph, ints, model, model_bytes, node, scalar, tensor_bytes, varint
from external_data import external, numbers, saved
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, helper

from onnxfi.errors import FaultListError, ModelError, OutputError
from onnxfi.faults.faultlist import FaultList
from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.write import output_file
from onnxfi.graph.write.output_file import atomic_files
from onnxfi.graph.write.sequential_file import SequentialFile
from onnxfi.runtime.inject.weights import inject, replay, sample, undo

ROOT = Path(__file__).parents[3]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Numbers of variable length


@given(
    st.lists(st.integers(-128, 127), min_size=1, max_size=60),
    st.lists(st.tuples(st.integers(0, 59), st.integers(0, 7)), min_size=1, max_size=20, unique=True),
    st.booleans(),
)
def test_numbers_that_change_their_length(values: list[int], hits: list[tuple[int, int]], unpacked: bool) -> None:
    words = [v & 0xFF for v in values]
    form = "unpacked" if unpacked else "packed"
    # Enclosing messages of about 128 bytes, so that lengths of lengths change too.
    data = model_bytes(tensor_bytes("w", 3, [len(words)], words, form), behind=chunk(6, b"doc"))
    held = load(data)
    sites = [f"w[{at}]:{bit}" for at, bit in hits if at < len(words)]
    if not sites:
        return
    done = inject(held, sample(held, sites=sites))
    assert done.data is not None
    for at, bit in hits:
        if at < len(words):
            words[at] ^= 1 << bit
    faulty, whole = ModelProto.FromString(done.data), ModelProto.FromString(data)
    assert list(faulty.graph.initializer[0].int32_data) == [w - 256 if w > 127 else w for w in words]
    assert done.resized is (
        sum(len(varint(v)) for v in values) != sum(len(varint(w - 256 if w > 127 else w)) for w in words)
        or any(len(varint(v)) != len(varint(w - 256 if w > 127 else w)) for v, w in zip(values, words, strict=True))
    )
    # A message rewritten is what a writer of protobuf would have written.
    assert done.data == model_bytes(tensor_bytes("w", 3, [len(words)], words, form), behind=chunk(6, b"doc"))
    faulty.graph.initializer[0].ClearField("int32_data")
    whole.graph.initializer[0].ClearField("int32_data")
    assert faulty == whole


def test_a_resized_number_deep_inside_branches_and_functions() -> None:
    inner = graph([node("Constant", outputs=["k"], value_ints=[1, -1])], [helper.make_tensor("q", 3, [2], [1, -1])],
                  inputs=(), outputs=["k"], name="inner" * 30)  # fmt: skip
    outer = graph([node("If", ["c"], ["r"], name="i", then_branch=inner)], inputs=(), outputs=["r"], name="o" * 50)
    function = helper.make_function(
        "own", "F", ["x"], ["y"], [node("Constant", value_int=5)], [helper.make_opsetid("", 20)]
    )
    whole = model([node("If", ["c"], name="o", then_branch=outer)], [floats("w", 40)], functions=[function])
    held = load(whole)
    path = "o.then_branch::i.then_branch::"
    drawn = sample(held, sites=[f"{path}k[0]:63", f"{path}q[1]:7", "function:own:F::y[0]:40", "w[0]:31"])
    done = inject(held, drawn)
    assert done.resized
    found = protobuf_reader.read(done.data or b"")
    assert found[path + "k"].words.tolist() == [1 | 1 << 63, 2**64 - 1]
    assert found[path + "q"].words.tolist() == [1, 0x7F]
    assert found["function:own:F::y"].words.tolist() == [5 | 1 << 40]
    assert found["w"].words.tolist()[0] == 0xBF800000
    # The message is again as protobuf writes it, so all lengths around are right and minimal.
    assert ModelProto.FromString(done.data or b"").SerializeToString(deterministic=True) == done.data


def test_lengths_that_are_not_minimal_stay_where_nothing_grows() -> None:
    tensor = tensor_bytes("w", 3, [2], [1, 2], "packed")
    held = graph([node("Identity", ["w"])], inputs=(), outputs=()).SerializeToString()
    wide = b"\x2a" + bytes([len(tensor) | 128, 128, 0]) + tensor  # the length of the initializer in three bytes
    data = scalar(1, 10) + chunk(8, chunk(1, b"") + scalar(2, 20)) + chunk(7, held + wide)
    found = load(data)
    same = inject(found, sample(found, sites=["w[0]:1"]))
    assert len(same.data or b"") == len(data)
    assert not same.resized
    grown = inject(found, sample(found, sites=["w[0]:7"]))
    assert grown.resized
    assert protobuf_reader.read(grown.data or b"")["w"].words.tolist() == [0x81, 2]


def test_a_stuck_bit_that_meets_its_own_value_changes_nothing() -> None:
    for form in ("raw", "packed", "unpacked"):
        data = model_bytes(tensor_bytes("w", 3, [2], [0xFF, 1], form))
        held = load(data)
        done = inject(held, sample(held, sites=["w[0]:7", "w[1]:0"], fault="stuck-at-1"))
        assert done.data == data
        assert done.digest == done.faulty_digest
        assert [f.changed for f in done.sample.faults] == [False, False]


@pytest.mark.slow
def test_many_resized_numbers_cost_as_a_few() -> None:
    # 200,000 negative numbers of ten bytes, half of which become short: chunks must be joined, not written one by one.
    words = [0xFF] * 200_000
    held = load(model_bytes(tensor_bytes("w", 3, [len(words)], words, "packed")))
    start = time.process_time()  # of this process alone, whatever else the machine does
    done = inject(held, sample(held, count=100_000, fault="zero"))
    assert time.process_time() - start < 30
    assert done.resized
    assert np.count_nonzero(protobuf_reader.read(done.data or b"")["w"].words == 0) == 100_000


def test_several_faults_in_one_word_and_one_byte() -> None:
    for form in ("raw", "packed", "unpacked"):
        held = load(model_bytes(tensor_bytes("w", 22, [5], [1, 2, 3, 4, 5], form)))
        drawn = sample(held, sites=["w[1]:3", "w[0]:0", "w[1]:0", "w[4]:1", "w[0]:3"])
        found = protobuf_reader.read(inject(held, drawn).data or b"")
        assert found["w"].words.tolist() == [8, 0b1011, 3, 4, 7]


# External data


def shared_file(folder: Path) -> Path:
    """Tensors out of order in one file, with holes between them."""
    data = b"\xaa" * 100 + numbers(4) + b"\xbb" * 50 + numbers(2, 10.0) + b"\xcc" * 7
    tensors = [
        external("late", "w_dot_bin".replace("_dot_", "."), [2], offset=166, length=8),
        external("early", "w.bin", [4], offset=100, length=16),
        floats("inside", 3),
    ]
    return saved(folder, tensors, w_dot_bin=data)


def test_external_data_in_one_file(tmp_path: Path) -> None:
    path = shared_file(tmp_path / "in")
    before = files(tmp_path)
    held = load(path)
    assert [t.id for t in held.targets] == ["late", "early", "inside"]
    assert held.digest == hashlib.sha256(path.read_bytes() + (path.parent / "w.bin").read_bytes()).hexdigest()
    out = tmp_path / "out/faulty.onnx"
    out.parent.mkdir()
    listed = tmp_path / "out/faults.jsonl"
    done = inject(held, sample(held, sites=["late[1]:31", "early[0]:0", "inside[2]:31"]), out, save_faults=listed)
    assert {k: v for k, v in files(tmp_path).items() if k.startswith("in/")} == before
    assert sorted(files(out.parent)) == ["faults.jsonl", "faulty.onnx", "faulty.onnx.data"]
    data, old = (out.parent / "faulty.onnx.data").read_bytes(), before["in/w.bin"]
    assert {k: (a, b) for k, (a, b) in enumerate(zip(old, data, strict=True)) if a != b} == {
        100: (0x00, 0x01), 173: (0x41, 0xC1),
    }  # fmt: skip
    faulty, whole = ModelProto.FromString(out.read_bytes()), ModelProto.FromString(path.read_bytes())
    for tensor in whole.graph.initializer[:2]:
        assert tensor.external_data[0].value == "w.bin"
        tensor.external_data[0].value = "faulty.onnx.data"
    assert faulty.graph.initializer[2].raw_data != whole.graph.initializer[2].raw_data
    whole.graph.initializer[2].raw_data = faulty.graph.initializer[2].raw_data
    assert faulty == whole
    assert done.faulty_digest == load(out).digest
    assert not done.resized  # only a name changed its length
    restored = undo(load(out), FaultList.open(listed), tmp_path / "out/back.onnx")
    assert (tmp_path / "out/back.onnx.data").read_bytes() == old
    assert restored.faulty_digest == load(tmp_path / "out/back.onnx").digest


def test_undo_under_the_old_name_restores_every_byte(tmp_path: Path) -> None:
    path = saved(tmp_path / "in", [external("w", "m.onnx.data", [4])], m_dot_onnx_dot_data=numbers(4))
    done = inject(load(path), sample(load(path), count=5), tmp_path / "faulty.onnx", save_faults=tmp_path / "f.jsonl")
    (tmp_path / "back").mkdir()
    undo(load(tmp_path / "faulty.onnx"), FaultList.open(tmp_path / "f.jsonl"), tmp_path / "back/m.onnx")
    assert files(tmp_path / "back") == files(tmp_path / "in")
    assert done.digest == load(tmp_path / "back/m.onnx").digest


def test_several_files_are_numbered_in_the_order_of_first_reference(tmp_path: Path) -> None:
    branch = graph([], [external("deep", "sub/d.bin", [1])], inputs=(), outputs=["deep"])
    nodes = [
        node("If", ["c"], ["r"], name="if", then_branch=branch),
        node("Constant", outputs=["k"], value=external("", "c.bin", [2])),
        node("Gather", ["z", "a"]),
    ]
    z, a, b = external("z", "b.bin", [1], offset=4), external("a", "./a.bin", [2], 7), external("b", "b.bin", [1])
    held = model(nodes, [z, a, b])
    for name, data in {"a.bin": bytes(16), "b.bin": numbers(2), "c.bin": numbers(2), "sub/d.bin": numbers(1)}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "m.onnx"
    path.write_bytes(held.SerializeToString())
    found = load(path)
    order = ["b.bin", "a.bin", "c.bin", "sub/d.bin"]
    assert [s.path for s in found.external] == [tmp_path / name for name in order]
    whole = path.read_bytes() + b"".join((tmp_path / name).read_bytes() for name in order)
    assert found.digest == hashlib.sha256(whole).hexdigest()
    out = tmp_path / "out.onnx"
    inject(found, sample(found, sites=["if.then_branch::deep[0]:31", "z[0]:31", "k[1]:31"]), out)
    names = ["out.onnx.data", "out.onnx.data.1", "out.onnx.data.2", "out.onnx.data.3"]
    assert [(tmp_path / name).stat().st_size for name in names] == [8, 16, 8, 4]
    faulty = protobuf_reader.read(out)
    assert faulty["if.then_branch::deep"].words.tolist() == [0xBF800000]
    assert faulty["z"].words.tolist() == [0xC0000000]
    assert faulty["k"].words.tolist() == [0x3F800000, 0xC0000000]
    assert faulty["a"].words.tolist() == [0, 0]
    assert [s.path for s in load(out).external] == [tmp_path / name for name in names]


def test_one_file_under_two_names_is_one(tmp_path: Path) -> None:
    path = saved(tmp_path, [external("a", "w.bin", [1]), external("b", "./w.bin", [1], offset=4)], w_dot_bin=numbers(2))
    held = load(path)
    assert len(held.external) == 1
    inject(held, sample(held, sites=["a[0]:31", "b[0]:31"]), tmp_path / "o.onnx")
    assert (tmp_path / "o.onnx.data").read_bytes() == (-np.frombuffer(numbers(2), "<f4")).tobytes()
    assert sorted(p.name for p in tmp_path.glob("o.onnx*")) == ["o.onnx", "o.onnx.data"]
    assert {
        e.value for t in protobuf_reader.tensors(protobuf_reader.parse(tmp_path / "o.onnx")) for e in t.external_data
    } >= {"o.onnx.data"}


def test_tensors_that_are_no_targets_keep_their_external_data_too(tmp_path: Path) -> None:
    # Indices of a sparse tensor, training graphs, attributes of other operators, the first of two of one name.
    values, indices = external("sp", "v.bin", [2]), external("", "i.bin", [2], 7)
    held = model(
        [node("ConstantOfShape", ["s"], value=external("", "c.bin", [1]))],
        [external("w", "first.bin", [1]), external("w", "w.bin", [1]), external("odd", "odd.bin", [1], 99)],
        sparse_initializer=[onnx.SparseTensorProto(values=values, indices=indices, dims=[9])],
    )
    held.training_info.add().algorithm.CopyFrom(graph([], [external("t", "t.bin", [1])]))
    (tmp_path / "m.onnx").write_bytes(held.SerializeToString())
    contents = {name: os.urandom(16) for name in ("v", "i", "c", "first", "w", "odd", "t")}
    for name, data in contents.items():
        (tmp_path / f"{name}.bin").write_bytes(data)
    found = load(tmp_path / "m.onnx")
    assert [t.id for t in found.targets] == ["w", "sp"]
    out = tmp_path / "out/o.onnx"
    out.parent.mkdir()
    inject(found, sample(found, sites=["w[0]:0"]), out)
    faulty = protobuf_reader.parse(out)
    kept = {}
    for old, new in zip(protobuf_reader.tensors(held), protobuf_reader.tensors(faulty), strict=True):
        if old.external_data:
            kept[old.external_data[0].value] = (out.parent / new.external_data[0].value).read_bytes()
    assert len(kept) == 7
    for name, data in contents.items():
        assert (kept[f"{name}.bin"] == data) is (name != "w")


def test_only_the_location_changes_whatever_else_the_entries_say(tmp_path: Path) -> None:
    held = external("w", "w.bin", [2], offset=4, length=8, checksum="abc", own="x" * 200)
    path = saved(tmp_path, [held], w_dot_bin=numbers(3))
    inject(load(path), sample(load(path), count=1), tmp_path / ("long" * 30 + ".onnx"))
    (found,) = protobuf_reader.parse(tmp_path / ("long" * 30 + ".onnx")).graph.initializer
    assert {e.key: e.value for e in found.external_data} == {
        "location": "long" * 30 + ".onnx.data", "offset": "4", "length": "8", "checksum": "abc", "own": "x" * 200,
    }  # fmt: skip


def test_a_tensor_of_size_0_in_external_data(tmp_path: Path) -> None:
    path = saved(
        tmp_path, [external("none", "w.bin", [0, 4], offset=4), external("w", "w.bin", [1])], w_dot_bin=numbers(1)
    )
    held = load(path)
    assert [t.size for t in held.targets] == [0, 1]
    inject(held, sample(held, count=1), tmp_path / "o.onnx")
    assert (tmp_path / "o.onnx.data").stat().st_size == 4


def test_a_model_in_memory(tmp_path: Path) -> None:
    held = model([node("Mul", ["x", "w"])], [floats("w", 2)])
    found = load(held)
    assert found.digest == hashlib.sha256(held.SerializeToString(deterministic=True)).hexdigest()
    before = held.SerializeToString()
    inject(found, sample(found, sites=["w[0]:31"]), tmp_path / "o.onnx")
    assert protobuf_reader.read(tmp_path / "o.onnx")["w"].words.tolist() == [0xBF800000, 0x40000000]
    assert held.SerializeToString() == before
    path = saved(tmp_path / "in", [external("w", "w.bin", [1])], w_dot_bin=numbers(1))
    with pytest.raises(OutputError, match="into memory; give an output file"):
        inject(load(path), sample(load(path), count=1))


# Undo and replay


def test_undo_of_a_faulty_model_that_was_touched_is_refused(tmp_path: Path) -> None:
    path, out, listed = (tmp_path / name for name in ("m.onnx", "f.onnx", "f.jsonl"))
    path.write_bytes(model([node("Mul", ["x", "w"])], [floats("w", 4)]).SerializeToString())
    inject(load(path), sample(load(path), count=2), out, save_faults=listed)
    data = bytearray(out.read_bytes())
    data[-1] ^= 1
    out.write_bytes(data)
    with pytest.raises(FaultListError, match="belongs to the faulty model"):
        undo(load(out), FaultList.open(listed), tmp_path / "back.onnx")
    with pytest.raises(FaultListError, match="belongs to the model"):
        replay(load(out), FaultList.open(listed))
    assert not (tmp_path / "back.onnx").exists()


def test_undo_that_would_not_give_the_original_writes_nothing(tmp_path: Path) -> None:
    # −1 as int32 in five bytes is read, but no list can say how the number was written: refused, not silently other.
    tensor = scalar(1, 1) + scalar(2, 6) + chunk(8, b"w") + chunk(5, b"\xff\xff\xff\xff\x0f")
    path, out, listed = (tmp_path / name for name in ("m.onnx", "f.onnx", "f.jsonl"))
    path.write_bytes(model_bytes(tensor))
    inject(load(path), sample(load(path), sites=["w[0]:31"]), out, save_faults=listed)
    with pytest.raises(FaultListError, match=r"the result would be .* nothing was written"):
        undo(load(out), FaultList.open(listed), tmp_path / "back.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.jsonl", "f.onnx", "m.onnx"]


def test_undo_of_faults_that_met_in_one_word(tmp_path: Path) -> None:
    path, out, listed = (tmp_path / name for name in ("m.onnx", "f.onnx", "f.jsonl"))
    path.write_bytes(model_bytes(tensor_bytes("w", 3, [3], [0xFF, 1, 2], "packed")))
    drawn = sample(load(path), sites=[f"w[{k}]:{bit}" for k in range(3) for bit in (7, 0, 3)], fault="stuck-at-0")
    inject(load(path), drawn, out, save_faults=listed)
    assert protobuf_reader.read(out)["w"].words.tolist() == [0x76, 0, 2]
    undo(load(out), FaultList.open(listed), tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == path.read_bytes()


# The place of the output


@pytest.fixture
def simple(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return saved(tmp_path / "in", [external("w", "w.bin", [4]), floats("v", 4)], w_dot_bin=numbers(4))


def refused(path: Path, out: Path | str, message: str) -> None:
    """The output is refused with this message, and nothing anywhere changed."""
    folder = path.parent.parent
    before = files(folder)
    held = load(path)
    with pytest.raises(OutputError, match=message):
        inject(held, sample(held, count=3), out)
    assert files(folder) == before


def test_the_input_is_never_the_output(simple: Path, tmp_path: Path) -> None:
    refused(simple, simple, "is the input itself")
    refused(simple, simple.parent / "../in/m.onnx", "is the input itself")
    refused(simple, simple.parent / "w.bin", "is the input itself")
    (tmp_path / "link.onnx").symlink_to(simple)
    refused(simple, tmp_path / "link.onnx", "is the input itself")
    os.link(simple, tmp_path / "hard.onnx")
    refused(simple, tmp_path / "hard.onnx", "is the input itself")


def test_the_data_file_of_the_output_is_never_one_of_the_input(tmp_path: Path) -> None:
    path = saved(tmp_path / "in", [external("w", "o.onnx.data", [1])], o_dot_onnx_dot_data=numbers(1))
    refused(path, path.parent / "o.onnx", r"o\.onnx\.data' is the input itself")


def test_places_that_cannot_be_written(simple: Path, tmp_path: Path) -> None:
    refused(simple, tmp_path / "nowhere/o.onnx", "no folder .* make it first")
    refused(simple, simple / "o.onnx", "no folder")
    refused(simple, tmp_path, "is a directory; give a file name")
    (tmp_path / "o.onnx.data").mkdir()
    refused(simple, tmp_path / "o.onnx", r"o\.onnx\.data' is a directory")
    refused(simple, tmp_path / ("n" * 300), "cannot be written: File name too long")
    refused(simple, tmp_path / ("n" * 251), "cannot be written: File name too long")  # its data file's name is longer
    refused(simple, tmp_path / "a\0b", "cannot be written: embedded null")


@pytest.mark.parametrize("name", ["n" * 250, "名" * 83, ".onnx", "a b", "-o", "\x1b[31m"])
def test_any_name_that_the_system_takes(simple: Path, tmp_path: Path, name: str) -> None:
    held = load(simple)
    inject(held, sample(held, sites=["w[0]:31"]), tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["in", name, name + ".data"])
    assert protobuf_reader.read(tmp_path / name)["w"].words.tolist()[0] == 0xBF800000


def test_a_folder_without_the_right_to_write(simple: Path, tmp_path: Path) -> None:
    # As another user where this one is root, who may write anywhere.
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut").chmod(0o555)
    if os.geteuid():
        refused(simple, tmp_path / "shut/o.onnx", "cannot be written")
        return
    for folder in (f for f in (tmp_path, *tmp_path.parents) if "pytest-" in str(f)):
        folder.chmod(0o755)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom onnxfi.graph.model.loading import load\n"
        "from onnxfi.runtime.inject.weights import inject, sample\nheld = load(Path(sys.argv[1]))\n"
        "drawn = sample(held, count=1)\nos.setuid(65534)\ninject(held, drawn, sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(simple), str(tmp_path / "shut/o.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode
    assert re.search("OutputError: the folder .*shut' cannot be written; choose another with -o", done.stderr)
    assert not list((tmp_path / "shut").iterdir())


def test_a_fault_list_that_cannot_be_written_leaves_no_model(simple: Path, tmp_path: Path) -> None:
    held = load(simple)
    for listed in (tmp_path / "nowhere/f.jsonl", tmp_path, simple, tmp_path / "o.onnx"):
        before = files(tmp_path)
        with pytest.raises(OutputError):
            inject(held, sample(held, count=1), tmp_path / "o.onnx", save_faults=listed)
        assert files(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here; the simulated one is tested instead")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small(small_disk: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "in", [external("w", "w.bin", [500_000])], w_dot_bin=numbers(500_000))
    refused(path, small_disk / "o.onnx", "disk is full: 2,000,.* bytes are needed .* are free")
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_up_while_it_is_written(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "in", [external("w", "w.bin", [500_000])], w_dot_bin=numbers(500_000))
    monkeypatch.setattr(output_file.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1 << 40}))
    refused(path, small_disk / "o.onnx", "cannot write .*No space left on device; nothing was written")
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("failing", ["write", "flush", "fsync"])
def test_a_disk_that_fails(simple: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        """A stream whose disk is full."""

        def __init__(self, stream: IO[bytes]) -> None:
            self.stream = stream

        def __getattr__(self, name: str) -> Any:
            return fail if name == failing else getattr(self.stream, name)

    opened = Path.open
    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(
            Path, "open", lambda path, *mode, **more: Full(opened(path, *mode, **more)) if mode == ("wb",) else
            opened(path, *mode, **more)
        )  # fmt: skip
    held = load(simple)
    with pytest.raises(OutputError, match="No space left on device; nothing was written"):
        inject(held, sample(held, count=1), tmp_path / "o.onnx")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_an_older_output_is_replaced_at_once(simple: Path, tmp_path: Path) -> None:
    held = load(simple)
    first = inject(held, sample(held, count=4, seed=1), tmp_path / "o.onnx")
    second = inject(held, sample(held, count=4, seed=2), tmp_path / "o.onnx")
    assert first.faulty_digest != second.faulty_digest == load(tmp_path / "o.onnx").digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "o.onnx", "o.onnx.data"]


@pytest.mark.parametrize("sites", [["w[700000]:3"], ["w[1]:0", "w[700000]:3"]])
def test_digests_are_those_of_the_files_wherever_the_first_difference_lies(tmp_path: Path, sites: list[str]) -> None:
    numbers_ = np.arange(720_000, dtype=np.float32)
    held = helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(numbers_, "w")])
    source, out = tmp_path / "m.onnx", tmp_path / "f.onnx"
    onnx.save(helper.make_model(held), source)
    opened = load(source)
    done = inject(opened, sample(opened, sites=sites), out, save_faults=tmp_path / "l.jsonl")
    assert done.faulty_digest == hashlib.sha256(out.read_bytes()).hexdigest()
    assert opened.digest_known, "found while the copy was written"
    assert done.digest == opened.digest == hashlib.sha256(source.read_bytes()).hexdigest()


def test_the_digest_of_the_model_is_found_when_it_is_asked_for(simple: Path, tmp_path: Path) -> None:
    held = load(simple)
    done = inject(held, sample(held, count=1), tmp_path / "o.onnx")
    assert not held.digest_known
    assert done.digest == load(simple).digest


def test_an_input_that_changes_meanwhile_is_noticed(simple: Path, tmp_path: Path) -> None:
    held = load(simple)
    drawn = sample(held, count=1)
    (simple.parent / "w.bin").write_bytes(numbers(5))
    with pytest.raises(ModelError, match="changed while it was being read"):
        inject(held, drawn, tmp_path / "o.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_an_interrupt_closes_no_file_that_a_thread_still_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    count = 1 << 18
    source = saved(tmp_path / "in", [external("w", "w.bin", [count])], w_dot_bin=numbers(count))
    steps, write, close = list[str](), SequentialFile.write, SequentialFile.close

    def slow(file: SequentialFile, chunk: Any) -> None:
        time.sleep(0.05)
        write(file, chunk)
        steps.append("written")

    def closed(file: SequentialFile) -> None:
        steps.append("closed")
        close(file)

    def interrupt(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    monkeypatch.setattr(SequentialFile, "write", slow)
    monkeypatch.setattr(SequentialFile, "close", closed)
    with pytest.raises(KeyboardInterrupt):
        inject(load(source), sample(load(source), count=1), tmp_path / "o.onnx", progress=interrupt)
    assert steps[-1] == "closed" and not (tmp_path / "o.onnx").exists()


def test_progress_counts_every_byte(simple: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    inject(load(simple), sample(load(simple), count=1), tmp_path / "o.onnx", progress=lambda *n: calls.append(n))
    total = simple.stat().st_size + 16
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


# Large files

LARGE = pytest.mark.skipif(
    "ONNXFI_LARGE_TESTS" not in os.environ, reason="hashes 28 GB twice, some minutes; ONNXFI_LARGE_TESTS=1 runs it"
)


def sparse_model(folder: Path, size: int) -> Path:
    """A model whose external data is a file of holes with a few numbers in it."""
    path = saved(folder, [external("w", "w.bin", [size // 4])])
    with (folder / "w.bin").open("wb") as stream:
        stream.truncate(size)
        stream.seek(size // 2)
        stream.write(numbers(1000))
    if (folder / "w.bin").stat().st_blocks * 512 > size // 10:
        pytest.skip("this disk keeps no holes in files")
    return path


WORK = """
import os, signal, sys
from pathlib import Path
from onnxfi.graph.model.loading import load
from onnxfi.runtime.inject.weights import inject, sample
path, out, count, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
held = load(path)
drawn = sample(held, count=count, seed=seed)
print("ready", flush=True)
kill = (lambda done, total: done > total // 2 and os.kill(os.getpid(), signal.SIGKILL)) if sys.argv[5:] else None
done = inject(held, drawn, out, progress=kill)
# Not ru_maxrss: a process inherits that from the one that started it, and test workers are large.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(done.faulty_digest, int(peak) // 1024)
"""


def start(path: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """A process that injects; with a word `more` it is killed in the middle."""
    command = [sys.executable, "-c", WORK, str(path), str(out), "1000", "5", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [9 << 28, pytest.param(28 << 30, marks=[LARGE, pytest.mark.timeout(1200)])])
def test_a_large_sparse_file_takes_little_memory_and_stays_sparse(tmp_path: Path, size: int) -> None:
    path = sparse_model(tmp_path / "in", size)
    out = tmp_path / "o.onnx"
    process = start(path, out)
    calls, _ = process.communicate()
    assert process.returncode == 0
    digest, memory_mb = calls.split()[1:]
    assert int(memory_mb) < 400
    data = tmp_path / "o.onnx.data"
    assert data.stat().st_size == size
    assert data.stat().st_blocks * 512 < 1010 << 16
    # The faults are where the list says: read those words and no others.
    held = load(path)
    faults = sample(held, count=1000, seed=5).faults
    with data.open("rb") as stream:
        for fault in faults:
            stream.seek(fault.index * 4)
            assert int.from_bytes(stream.read(4), "little") == fault.after
    assert len(digest) == 64


def test_a_kill_in_the_middle_leaves_no_half_file(tmp_path: Path) -> None:
    path = sparse_model(tmp_path / "in", 64 << 20)
    before = hashlib.sha256(path.read_bytes()).hexdigest(), (tmp_path / "in/w.bin").stat().st_mtime_ns
    process = start(path, tmp_path / "o.onnx", "killed")
    assert process.communicate()[0] == "ready\n"
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "o.onnx").exists()
    assert not (tmp_path / "o.onnx.data").exists()
    assert before == (hashlib.sha256(path.read_bytes()).hexdigest(), (tmp_path / "in/w.bin").stat().st_mtime_ns)
    assert list(tmp_path.glob(".onnxfi-*/1")), "a process that is killed cannot remove them"
    with atomic_files([tmp_path / "other.txt"]) as (stream,):
        stream.write(b"whoever writes here next does")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "other.txt"]


def test_the_words_of_a_large_tensor_are_the_same_picked_or_read_one_by_one() -> None:
    words = np.random.default_rng(0).integers(0, 16, 3_000_001).tolist()
    held = load(model_bytes(tensor_bytes("w", 22, [len(words)], words, "raw")))
    target = held.targets[0]
    dense = np.arange(0, len(words), 7)
    assert held.words(target, dense).tolist() == words[::7]
    few = np.array([0, 1, len(words) - 1, 2_097_152, 2_097_151])
    assert held.words(target, few).tolist() == [words[k] for k in few]


def test_what_a_model_is_called_in_messages(simple: Path) -> None:
    held: Model = load(simple)
    assert held.name == str(simple)
    assert load(model([node("Relu", ["x"])], [ints("w", [1])])).name == "the model in memory"
