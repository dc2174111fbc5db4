"""`onnxfi inject` as a whole: what is written, what is printed, and that lists replay and undo byte for byte."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser
from onnx.external_data_helper import convert_model_to_external_data

Run = Callable[..., Any]
MODELS = ("fashion_cnn", "fashion_attention", "fashion_gru")
FAULTS = (
    "flip", "burst:k=3", "stuck-at-0", "stuck-at-1", "set-word:word=0x7f800000", "random-word", "zero", "sign-flip",
    "set:value=nan", "scale:factor=-3", "noise:sigma=0.1",
)  # fmt: skip
MATMUL = "g (float[N,3] x) => (float[N,3] y) <float[3,3] w = {1,2,3,4,5,6,7,8,9}> { y = MatMul(x, w) }"


def changed_bits(one: Path, other: Path) -> int:
    """Bits in which two files of one length differ."""
    a, b = (np.frombuffer(path.read_bytes(), np.uint8) for path in (one, other))
    assert len(a) == len(b)
    return int(np.bitwise_count(a ^ b).sum())


def digest(folder: Path, *names: str) -> str:
    """The digest of a model and its data files: that of all of them, one after the other."""
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()


def done(ran: Any) -> str:
    """The output of a command that succeeded."""
    assert (ran.code, ran.err) == (0, ""), ran
    return str(ran.out)


def weights(path: Path) -> dict[str, Any]:
    """The initializers of a model, as onnx reads them."""
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


# How much is faulty, and where


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("flags", "bits"),
    [
        ("--ber 1e-4", None),
        ("--ber 0", 0),
        ("--count 17", 17),
        ("--count 2000 --bits exponent", 2000),
        ("--count 2 --per-tensor", None),
    ],
)
def test_as_many_bits_as_drawn_differ_and_nothing_else(
    run: Run, here: Path, models: Path, name: str, flags: str, bits: int | None
) -> None:
    path = models / f"{name}.onnx"
    original = path.read_bytes()
    found = run("inject", path, *flags.split(), "--json").json
    assert changed_bits(path, here / f"{name}.faulty.onnx") == found["drawn"]
    assert bits in (None, found["drawn"])
    assert path.read_bytes() == original
    onnx.checker.check_model(onnx.load(here / f"{name}.faulty.onnx"))
    if "--per-tensor" in flags:
        targets = run("inspect", path, "--json").json["targets"]
        faulty = [fault["target"] for fault in found["faults"]]
        assert faulty == [t["target"] for t in targets for _ in range(2)]
        assert found["expected"] == found["drawn"] == 2 * len(targets)


def test_a_rate_of_one_flips_every_bit(run: Run, here: Path, models: Path) -> None:
    done(run("inject", models / "fashion_cnn.onnx", "--ber", 1, "--include", "fc2"))
    before, after = weights(models / "fashion_cnn.onnx"), weights(here / "fashion_cnn.faulty.onnx")
    for name, array in before.items():
        words, others = array.view(np.uint32), after[name].view(np.uint32)
        assert np.array_equal(~words if name.startswith("fc2") else words, others)


def test_faults_are_injected_at_named_sites(run: Run, here: Path, models: Path) -> None:
    sites = {("conv1.weight", (3, 0, 1, 2)): 30, ("conv1.weight", (0, 0, 0, 0)): 0, ("fc2.bias", (9,)): 31}
    words = [w for (name, at), bit in sites.items() for w in ("--site", f"{name}[{','.join(map(str, at))}]:{bit}")]
    done(run("inject", models / "fashion_cnn.onnx", *words))
    before, after = weights(models / "fashion_cnn.onnx"), weights(here / "fashion_cnn.faulty.onnx")
    for (name, at), bit in sites.items():
        before[name] = before[name].copy()
        before[name].view(np.uint32)[at] ^= np.uint32(1 << bit)
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes()


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_does_what_it_says(run: Run, here: Path, models: Path, fault: str) -> None:
    bit = ":22" if fault.startswith(("flip", "burst", "stuck")) else ""
    out = done(run("inject", models / "fashion_cnn.onnx", "--site", f"fc2.weight[5]{bit}", "--fault", fault))
    files = (models / "fashion_cnn.onnx", here / "fashion_cnn.faulty.onnx")
    before, after = (weights(file)["fc2.weight"].ravel()[5] for file in files)
    word, value = int(before.view(np.uint32)), np.float32(before)
    expected = {
        "flip": word ^ 1 << 22, "burst:k=3": word ^ 7 << 22, "stuck-at-0": word & ~(1 << 22),
        "stuck-at-1": word | 1 << 22, "set-word:word=0x7f800000": 0x7F800000, "zero": 0, "sign-flip": word ^ 1 << 31,
        "set:value=nan": 0x7FC00000, "scale:factor=-3": int(np.float32(-3 * np.float64(value)).view(np.uint32)),
    }  # fmt: skip
    assert int(after.view(np.uint32)) == expected.get(fault, int(after.view(np.uint32)))
    if fault == "noise:sigma=0.1":
        assert 0 < abs(after - before) < 0.5
    assert f"{fault}, sites 1, seed 0" in out


def test_the_same_seed_gives_the_same_faults_and_another_others(run: Run, here: Path, models: Path) -> None:
    for flags in ("--ber 1e-5", "--count 20", "--count 2 --per-tensor", "--count 20 --fault random-word"):
        found = {}
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            words = ["inject", models / "fashion_gru.onnx", *flags.split(), "--seed", seed, "-o", f"{name}.onnx"]
            found[name] = run(*words, "--json").json["faults"]
        assert found["a"] == found["b"] != found["c"]
        assert (here / "a.onnx").read_bytes() == (here / "b.onnx").read_bytes() != (here / "c.onnx").read_bytes()


# Where it is written


def test_the_default_output_lies_in_the_working_directory(run: Run, here: Path, models: Path) -> None:
    done(run("inject", models / "fashion_cnn.onnx", "--count", 1, "--save-faults", "l.jsonl"))
    assert {p.name for p in here.iterdir()} == {"fashion_cnn.faulty.onnx", "l.jsonl"}
    done(run("inject", "fashion_cnn.faulty.onnx", "--faults", "l.jsonl", "--undo"))
    assert (here / "fashion_cnn.faulty.restored.onnx").read_bytes() == (models / "fashion_cnn.onnx").read_bytes()


def test_an_output_that_is_there_is_replaced(run: Run, here: Path, models: Path) -> None:
    (here / "f.onnx").write_text("old")
    (here / "link.onnx").symlink_to("kept.onnx")
    (here / "kept.onnx").write_text("kept")
    for name in ("f.onnx", "link.onnx"):
        out = done(run("inject", models / "fashion_cnn.onnx", "--count", 1, "-o", name))
        assert out.endswith(f"wrote {name}, sha256 {digest(here, name)}\n")
    assert sorted(p.name for p in here.iterdir()) == ["f.onnx", "kept.onnx", "link.onnx"]
    assert (here / "kept.onnx").read_text() == "kept"


def test_a_folder_with_a_strange_name(run: Run, here: Path, save: Callable[..., str]) -> None:
    folder = here / "my models [v2] ünï"
    folder.mkdir()
    shutil.move(save("-m.onnx", MATMUL), folder / "-m.onnx")
    done(
        run(
            "inject", folder / "-m.onnx", "--count", 1, "-o", folder / "f f.onnx", "--save-faults", folder / "l l.jsonl"
        )
    )
    done(run("inject", folder / "-m.onnx", "--faults", folder / "l l.jsonl", "-o", folder / "g.onnx"))
    assert (folder / "f f.onnx").read_bytes() == (folder / "g.onnx").read_bytes()


@pytest.fixture
def external(here: Path, models: Path) -> Path:
    """A shipped model with its weights in two files beside it."""
    model = onnx.load(models / "fashion_cnn.onnx")
    convert_model_to_external_data(model, all_tensors_to_one_file=True, location="first.bin", size_threshold=64)
    onnx.save(model, here / "one.onnx")
    model = onnx.load(here / "one.onnx", load_external_data=False)
    half = [tensor for tensor in model.graph.initializer if tensor.external_data][4:]
    (here / "second.bin").write_bytes((here / "first.bin").read_bytes())
    for tensor in half:
        next(e for e in tensor.external_data if e.key == "location").value = "second.bin"
    onnx.save(model, here / "two.onnx")
    return here


@pytest.mark.parametrize(("name", "data"), [("one", ["first.bin"]), ("two", ["first.bin", "second.bin"])])
def test_external_data_is_copied_and_patched(
    run: Run, external: Path, models: Path, name: str, data: list[str]
) -> None:
    before = {p.name: p.read_bytes() for p in external.iterdir()}
    words = ["inject", f"{name}.onnx", "--count", 50, "-o", "f.onnx", "--save-faults", "l.jsonl"]
    found = run(*words, "--json").json
    written = [f"f.onnx.data{f'.{k}' if k else ''}" for k in range(len(data))]
    assert {p.name for p in external.iterdir()} - set(before) == {"f.onnx", "l.jsonl", *written}
    assert all((external / file).read_bytes() == content for file, content in before.items())
    assert sum(changed_bits(external / a, external / b) for a, b in zip(data, written, strict=True)) == 50
    assert found["digest"] == digest(external, f"{name}.onnx", *data)
    assert found["faulty_digest"] == digest(external, "f.onnx", *written)
    done(run("inject", f"{name}.onnx", "--faults", "l.jsonl", "-o", "f.onnx"))
    assert found["faulty_digest"] == digest(external, "f.onnx", *written)
    done(run("inject", "f.onnx", "--faults", "l.jsonl", "--undo", "-o", "r.onnx"))
    restored = weights(external / "r.onnx")
    for tensor, array in weights(models / "fashion_cnn.onnx").items():
        assert array.tobytes() == restored[tensor].tobytes()


def test_external_data_runs(run: Run, external: Path, models: Path) -> None:
    words = ["--site", "fc2.bias[3]:30", "--data", models / "fashion_test.npz", "--samples", 50, "--json"]
    inside = run("inject", models / "fashion_cnn.onnx", *words).json
    outside = run("inject", "two.onnx", *words).json
    assert (inside["golden"], inside["faulty"]) == (outside["golden"], outside["faulty"])


# Lists: saved, replayed, undone


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "flags",
    [
        "--count 5",
        "--count 200 --per-tensor",
        *(pytest.param(more, marks=pytest.mark.slow) for more in ("--count 1500", "--ber 3e-3 --include conv")),
    ],
)
def test_a_list_replays_and_undoes_byte_for_byte(run: Run, here: Path, models: Path, fault: str, flags: str) -> None:
    path = models / "fashion_cnn.onnx"
    words = flags.split()
    if "--per-tensor" in words:
        words += ["--include", "2.weight"]  # the biases have fewer words
    done(run("inject", path, *words, "--fault", fault, "--seed", 5, "-o", "f.onnx", "--save-faults", "l.jsonl"))
    done(run("inject", path, "--faults", "l.jsonl", "-o", "g.onnx", "--save-faults", "k.jsonl"))
    assert (here / "f.onnx").read_bytes() == (here / "g.onnx").read_bytes() != path.read_bytes()
    assert (here / "l.jsonl").read_bytes() == (here / "k.jsonl").read_bytes()
    out = done(run("inject", "f.onnx", "--faults", "l.jsonl", "--undo", "-o", "r.onnx"))
    assert (here / "r.onnx").read_bytes() == path.read_bytes()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in out


def test_a_replay_prints_what_the_draw_printed(run: Run, models: Path) -> None:
    for name in MODELS:
        first = done(run("inject", models / f"{name}.onnx", "--ber", "1e-5", "--save-faults", "l.jsonl"))
        assert done(run("inject", models / f"{name}.onnx", "--faults", "l.jsonl")) == first


def test_a_list_without_faults_replays_and_undoes(run: Run, here: Path, models: Path) -> None:
    path = models / "fashion_cnn.onnx"
    out = done(run("inject", path, "--ber", "1e-12", "--save-faults", "l.jsonl"))
    assert "drawn 0\nwrote" in out
    assert done(run("inject", path, "--faults", "l.jsonl", "-o", "g.onnx", "--save-faults", "k.jsonl"))
    done(run("inject", "g.onnx", "--faults", "k.jsonl", "--undo", "-o", "r.onnx"))
    assert (here / "l.jsonl").read_bytes() == (here / "k.jsonl").read_bytes()
    assert (here / "g.onnx").read_bytes() == (here / "r.onnx").read_bytes() == path.read_bytes()


def merged(*lists: Path) -> str:
    """Several lists as one of several trials."""
    header, *lines = lists[0].read_text().splitlines()
    for number, more in enumerate(lists[1:], 2):
        lines += [json.dumps(json.loads(line) | {"trial": number}) for line in more.read_text().splitlines()[1:]]
    return "\n".join([header, *lines]) + "\n"


@pytest.mark.parametrize("count", [4, 700])
def test_the_trials_of_a_list_are_injected_together(run: Run, here: Path, models: Path, count: int) -> None:
    """Two trials in different tensors: 1,400 faults, which no recipe of either gives, are saved and replayed too."""
    path = models / "fashion_cnn.onnx"
    for name in ("fc1", "conv2"):
        done(run("inject", path, "--count", count, "--include", name, "--save-faults", f"{name}.jsonl"))
    (here / "both.jsonl").write_text(merged(here / "fc1.jsonl", here / "conv2.jsonl"))
    found = run("inject", path, "--faults", "both.jsonl", "-o", "f.onnx", "--save-faults", "l.jsonl", "--json").json
    assert found["drawn"] == changed_bits(path, here / "f.onnx") == 2 * count
    done(run("inject", path, "--faults", "l.jsonl", "-o", "g.onnx"))
    done(run("inject", "f.onnx", "--faults", "l.jsonl", "--undo", "-o", "r.onnx"))
    assert (here / "f.onnx").read_bytes() == (here / "g.onnx").read_bytes()
    assert (here / "r.onnx").read_bytes() == path.read_bytes()


def test_a_list_that_was_shortened_by_hand_is_what_it_now_says(run: Run, here: Path, models: Path) -> None:
    path = models / "fashion_cnn.onnx"
    done(run("inject", path, "--count", 9, "--save-faults", "l.jsonl"))
    lines = (here / "l.jsonl").read_text().splitlines()
    (here / "l.jsonl").write_text("\n".join(lines[:4]) + "\n")
    assert "drawn 3\n" in done(run("inject", path, "--faults", "l.jsonl", "-o", "f.onnx", "--save-faults", "k.jsonl"))
    done(run("inject", "f.onnx", "--faults", "k.jsonl", "--undo", "-o", "r.onnx"))
    assert (here / "r.onnx").read_bytes() == path.read_bytes()


def test_shapes_that_were_named_replay(run: Run, here: Path, save: Callable[..., str]) -> None:
    """The only target of the model is one that no selector finds unless it is named."""
    save("m.onnx", "g (float[N,3] x) => (float[N,3] y) <int64[2] to = {-1, 3}> { y = Reshape(x, to) }")
    done(run("inject", "m.onnx", "--site", "to[1]:4", "-o", "f.onnx", "--save-faults", "l.jsonl"))
    done(run("inject", "m.onnx", "--faults", "l.jsonl", "-o", "g.onnx"))
    done(run("inject", "f.onnx", "--faults", "l.jsonl", "--undo", "-o", "r.onnx"))
    assert weights(here / "f.onnx")["to"].tolist() == [-1, 19]
    assert (here / "f.onnx").read_bytes() == (here / "g.onnx").read_bytes()
    assert (here / "r.onnx").read_bytes() == (here / "m.onnx").read_bytes()


def test_a_number_that_changes_its_length_is_noted(run: Run, here: Path) -> None:
    head = '<ir_version: 10, opset_import: ["": 21]>'
    model = parser.parse_model(head + "g (int64[N] x) => (int64[N] y) { y = Add(x, w) }")
    model.graph.initializer.append(onnx.TensorProto(name="w", data_type=7, dims=[3], int64_data=[1, 2, 3]))
    onnx.save(model, "m.onnx")
    out = done(run("inject", "m.onnx", "--site", "w[1]:40", "-o", "f.onnx", "--save-faults", "l.jsonl"))
    assert "were rewritten" in out
    assert weights(here / "f.onnx")["w"].tolist() == [1, 2 + (1 << 40), 3]
    done(run("inject", "f.onnx", "--faults", "l.jsonl", "--undo", "-o", "r.onnx"))
    assert (here / "r.onnx").read_bytes() == (here / "m.onnx").read_bytes()


def test_a_pattern_replays_and_undoes(run: Run, here: Path, models: Path) -> None:
    (here / "column.json").write_text('{"version": 1, "shape": "column"}')
    path = models / "fashion_cnn.onnx"
    words = ["--fault", "pattern:file=column.json", "--include", "fc", "--op", "Gemm", "--exclude", "bias"]
    found = run("inject", path, "--count", 40, *words, "-o", "f.onnx", "--save-faults", "l.jsonl", "--json").json
    assert found["drawn"] == 40 < found["faults_total"] == len(found["faults"])
    done(run("inject", path, "--faults", "l.jsonl", "-o", "g.onnx"))
    done(run("inject", "f.onnx", "--faults", "l.jsonl", "--undo", "-o", "r.onnx"))
    assert (here / "f.onnx").read_bytes() == (here / "g.onnx").read_bytes()
    assert (here / "r.onnx").read_bytes() == path.read_bytes()


# Golden and faulty outputs


def scores(path: Path, images: Any) -> Any:
    """Return the answers of onnxruntime itself, in the batches that the command takes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"image": images[start : start + 32]})[0] for start in range(0, len(images), 32)]
    return np.concatenate(parts)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rate", ["1e-5", "3e-4"])
def test_golden_against_faulty_is_what_numpy_computes(run: Run, here: Path, models: Path, name: str, rate: str) -> None:
    path, archive = models / f"{name}.onnx", np.load(models / "fashion_test.npz")
    images, labels = archive["image"][:500], archive["labels"][:500]
    words = ["--data", models / "fashion_test.npz", "--samples", 500, "--provider", "cpu"]
    found = run("inject", path, "--ber", rate, *words, "--json").json
    g, f = scores(path, images), scores(here / f"{name}.faulty.onnx", images)
    top_g, top_f = g.argmax(1), np.where(np.isnan(f).any(1), -1, f.argmax(1))
    assert found["golden"]["top1"] == (top_g == labels).mean()
    assert found["faulty"]["top1"] == (top_f == labels).mean()
    assert found["faulty"]["top1_changed"] == (top_f != top_g).mean()
    assert found["faulty"]["sdc1"] == ((top_f != top_g) & np.isfinite(f).all(1)).mean()
    assert found["faulty"]["nonfinite"] == (~np.isfinite(f)).any(1).mean()
    assert found["faulty"]["changed"] == (f.view(np.uint32) != g.view(np.uint32)).mean()
    assert found["golden"]["top5"] == (np.argsort(-g, 1, kind="stable")[:, :5] == labels[:, None]).any(1).mean()
    if np.isfinite(f).all():
        distance = np.abs(f.astype(np.float64) - g)
        assert found["faulty"]["max_abs"] == distance.max()
        norm = np.linalg.norm
        assert found["faulty"]["rel_l2"] == pytest.approx(norm(distance) / norm(g.astype(np.float64)), rel=1e-6)
        cosine = np.sum(g.astype(np.float64) * f) / norm(g.astype(np.float64)) / norm(f.astype(np.float64))
        assert found["faulty"]["cosine"] == pytest.approx(cosine, abs=1e-6)


def test_the_table_shows_the_document_s_numbers(run: Run, models: Path) -> None:
    words = [
        "inject",
        models / "fashion_cnn.onnx",
        "--ber",
        "1e-4",
        "--data",
        models / "fashion_test.npz",
        "--samples",
        200,
    ]
    found, out = run(*words, "--json").json, done(run(*words))
    rows = dict(re.findall(r"^ (\w+) +(?:-|[\d.]+ %|[\de.+-]+) +(.+?) *$", out, re.M))
    for name in ("top1", "top5", "sdc1", "sdc5", "nonfinite", "changed"):
        assert rows[name] == f"{100 * found['faulty'][name]:.2f} %"
    assert rows["cosine"] == f"{found['faulty']['cosine']:.4g}"
    golden = re.search(r"^ top1 +([\d.]+) %", out, re.M)
    assert golden and float(golden[1]) == round(100 * found["golden"]["top1"], 2)
    assert "200 labelled samples of " in out and "output 'logits'; CPUExecutionProvider" in out


def test_what_is_printed_without_data(run: Run, models: Path) -> None:
    out = done(run("inject", models / "fashion_cnn.onnx", "--ber", "1e-6", "--seed", 7))
    lines = out.splitlines()
    assert lines[0] == f"{models / 'fashion_cnn.onnx'}: flip, at a rate of 1e-06 per bit, seed 7"
    drawn = re.fullmatch(r"population 3,387,712 bits, expected 3\.39 faults, drawn (\d+)", lines[1])
    assert drawn
    faulty = [row.split()[-2:] for row in lines if re.match(r" (conv|fc)\d +\d+ +[\d,]+ +\d+ +\d+ *$", row)]
    assert sum(int(faults) for faults, _ in faulty) == sum(int(words) for _, words in faulty) == int(drawn[1])
    assert len(re.findall(r"^ \S+\[\d+\]:\d+ +flip +\S+ → \S+ +0x[\da-f]+ → 0x[\da-f]+ *$", out, re.M)) == min(
        5, int(drawn[1])
    )


def test_the_largest_changes_show_even_the_smallest(run: Run, models: Path) -> None:
    """The lowest bit of a float32 changes its ninth digit."""
    out = done(run("inject", models / "fashion_cnn.onnx", "--site", "conv1.weight[0]:0"))
    row = re.search(r"conv1\.weight\[0\]:0 +flip +(\S+) → (\S+) ", out)
    assert row and row[1] != row[2]


# Fetched models


@pytest.mark.fetched
@pytest.mark.parametrize(
    "name", ["ddddocr_int8", "magika", "rapidocr_cls", "silero_vad", "slanet_plus", "smart_turn_int8"]
)
def test_fetched_models(run: Run, here: Path, fetched: Path, name: str) -> None:
    path = fetched / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"no {path.name}; python scripts/fetch_models.py brings it")
    found = run("inject", path, "--ber", "1e-5", "-o", "f.onnx", "--save-faults", "l.jsonl", "--json").json
    assert found["drawn"] > 5
    if not found["resized"]:
        assert changed_bits(path, here / "f.onnx") == found["drawn"]
    site = found["faults"][0]
    named = f"{site['target']}[{site['index']}]:{site['bits'][0]}"
    assert run("inject", path, "--site", named, "--json").json["faults"] == [site]
    done(run("inject", path, "--faults", "l.jsonl", "-o", "g.onnx"))
    done(run("inject", "f.onnx", "--faults", "l.jsonl", "--undo", "-o", "r.onnx"))
    assert (here / "f.onnx").read_bytes() == (here / "g.onnx").read_bytes()
    assert (here / "r.onnx").read_bytes() == path.read_bytes()
    done(run("inject", path, "--count", 1, "--per-tensor", "-o", "p.onnx"))
