"""Hold everything that onnxfi says of NVIDIA GPUs to a machine that has one; exit 0 only where all of it holds.

    python scripts/gpu_checklist.py                                   # every check
    python scripts/gpu_checklist.py --only golden,sticky              # some of them
    python scripts/gpu_checklist.py --without second-device,tensorrt  # a machine with one GPU, and no TensorRT
    python scripts/gpu_checklist.py --simulate                        # on a simulated device: that this program works

A check that cannot be made counts as one that does not hold: leave it out by name. `--json FILE` keeps what was found.
docs/how-to/gpus.md says what each check proves.
"""

import argparse
import ctypes
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxfi import OrtEngine
from onnxfi.errors import DeviceError, EngineError  # noqa: F401 (for the processes that are started)
from onnxfi.runtime.engine.cuda import devices
from onnxfi.runtime.engine.device_errors import out_of_memory  # noqa: F401 (likewise)

ROOT = Path(__file__).resolve().parent.parent
MODEL, HALF, DATA = (
    ROOT / "models" / name for name in ("fashion_cnn.onnx", "fashion_cnn_fp16.onnx", "fashion_test.npz")
)
#: Numbers in each row and column of the matrices whose product shows TF32.
SIDE = 512
#: A kernel that writes to an address that no program has, in the language that every driver compiles.
BAD_KERNEL = b"""
.version 6.3
.target sm_75
.address_size 64
.visible .entry bad() {
    .reg .b64 %address;
    .reg .b32 %value;
    mov.u64 %address, 8;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
\0"""
#: A metric that loses the device of one worker, once, where the file is.
LOSES = """
import multiprocessing, os, sys
sys.path.insert(0, {scripts!r})
from gpu_checklist import lose_device
from onnxfi.tasks.task import Metric

def loses(pair):
    if multiprocessing.parent_process() is not None and os.path.exists({once!r}):
        os.unlink({once!r})
        lose_device()
    return 0.0

LOSES = Metric("loses", loses, label="nothing")
"""


class Failed(Exception):
    """A check that does not hold, and why."""


def hold(fact: object, why: str) -> None:
    """Raise where something is not so."""
    if not fact:
        raise Failed(why)


def engine(provider: str = "cuda", **options: object) -> OrtEngine:
    """Return an engine with these options of its provider."""
    return OrtEngine(provider=provider, provider_options=tuple((name, str(value)) for name, value in options.items()))


def images(count: int = 256) -> np.ndarray[Any, Any]:
    """Return the first images of the data."""
    with np.load(DATA) as arrays:
        found = arrays[next(name for name in arrays.files if name != "labels")]
    return found[:count].astype(np.float32)


def outputs(
    made: OrtEngine, model: Path | bytes = MODEL, given: np.ndarray[Any, Any] | None = None
) -> np.ndarray[Any, Any]:
    """Return the first output of a model for the images, or for what is given."""
    session = made.prepare(model)
    fed = images() if given is None else given
    return np.array(next(iter(session.run({session.inputs[0].name: fed}).values())))


def product() -> bytes:
    """Return a model that multiplies by a matrix in which TF32 shows."""
    weight = np.random.default_rng(1).normal(size=(SIDE, SIDE)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", SIDE])], [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    return bytes(made.SerializeToString())


def factors() -> np.ndarray[Any, Any]:
    """Return what is multiplied."""
    return np.random.default_rng(0).normal(size=(64, SIDE)).astype(np.float32)


def in_process(code: str) -> str:
    """Run lines of Python with this module's names in a process of its own; return what they print."""
    lines = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom gpu_checklist import *\n{code}"
    lines += "\nsys.stdout.flush(); os._exit(0)"  # what a lost device leaves may end a process while it is torn down
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    hold(done.returncode == 0, f"a process ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    return done.stdout.strip()


def digest(given: np.ndarray[Any, Any]) -> str:
    """Return the SHA-256 of an array's bytes."""
    return hashlib.sha256(given.tobytes()).hexdigest()


def campaign(
    store: Path, *words: object, model: Path = MODEL, data: object = DATA, **environment: str
) -> list[tuple[Any, ...]]:
    """Run a campaign by its command; return trial, outcome, cause and metrics of each result."""
    command = [sys.executable, "-m", "onnxfi", "run", model, "--data", data, "--samples", 64, *words, "-o", store]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    hold(done.returncode == 0, f"onnxfi run ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    with sqlite3.connect(store) as db:
        return db.execute("SELECT trial, outcome, cause, metrics FROM results ORDER BY trial").fetchall()


def lose_device() -> None:
    """Make an illegal access to memory on device 0 in this process, after which CUDA refuses every call here."""
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    device, context, module, function = ctypes.c_int(0), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    codes = [
        driver.cuInit(0),
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        driver.cuCtxSetCurrent(context),
        driver.cuModuleLoadData(ctypes.byref(module), BAD_KERNEL),
        driver.cuModuleGetFunction(ctypes.byref(function), module, b"bad"),
        driver.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, None, None),
    ]
    if any(codes) or driver.cuCtxSynchronize() != 700:
        raise Failed(f"the kernel that should lose the device did not: the driver's codes are {codes}")


# The checks


def check_device(folder: Path) -> str:
    """The driver finds a device, and the CUDA provider loads."""
    note = engine().prepare(MODEL).note
    hold(devices(), "the driver finds no device")
    hold(note.startswith("CUDAExecutionProvider on device 0"), note)
    return "; ".join(map(str, devices()))


def check_golden(folder: Path) -> str:
    """Golden outputs have the same bits in every session of every process."""
    found = {in_process("for _ in range(2): print(digest(outputs(engine())))") for _ in range(3)}
    hold(len({line for text in found for line in text.splitlines()}) == 1, "six sessions in three processes differ")
    rows = campaign(folder / "golden.db", "--provider", "cuda", "--single", "--trials", 20, "--workers", 0)
    hold(len(rows) == 20, "the campaign did not finish")
    return "six sessions in three processes, and both golden runs of a campaign"


def check_tf32(folder: Path) -> str:
    """TF32 is off unless it is asked for."""
    exact = factors().astype(np.float64) @ numpy_helper.to_array(_weight(product())).astype(np.float64)
    off, on = (outputs(engine(use_tf32=given), product(), factors()) for given in (0, 1))
    usual = outputs(engine(), product(), factors())
    hold(usual.tobytes() == off.tobytes(), "the default is not use_tf32=0")
    far_off, far_on = (float(np.abs(one - exact).max() / np.abs(exact).max()) for one in (off, on))
    hold(far_off < 1e-5, f"without TF32 the product is {far_off:.1e} from the exact one")
    if devices()[0].capability >= (8, 0):
        hold(
            far_on > 3 * far_off, f"use_tf32=1 changes nothing ({far_on:.1e} and {far_off:.1e} from the exact product)"
        )
    return f"largest error {far_off:.1e} of the range without, {far_on:.1e} with"


def _weight(model: bytes) -> Any:
    from onnx import ModelProto

    return ModelProto.FromString(model).graph.initializer[0]


def check_oracle(folder: Path) -> str:
    """Short routes give the rows of whole models, and outputs agree with the CPU's."""
    for target in ("weights", "activations"):
        asked = ("--provider", "cuda", "--single", "--trials", 60, "--workers", 0, "--target", target)
        auto = campaign(folder / f"{target}-auto.db", *asked)
        full = campaign(folder / f"{target}-full.db", *asked, "--route", "full")
        differ = [a[0] for a, b in zip(auto, full, strict=True) if a != b]
        hold(not differ, f"{target}: trials {differ[:5]} differ between --route auto and full")
    host, device = outputs(engine("cpu")), outputs(engine())
    far = float(np.abs(host - device).max() / np.abs(host).max())
    hold(far < 1e-4, f"outputs are {far:.1e} of their range from the CPU's")
    hold((host.argmax(1) == device.argmax(1)).all(), "answers differ from the CPU's")
    return f"120 trials by every route; golden outputs {far:.1e} of their range from the CPU's"


def check_placement(folder: Path) -> str:
    """The runtime itself says which nodes run on the device."""
    note = engine().prepare(MODEL).note
    hold("the runtime does not say" not in note, "this release of ONNX Runtime does not record it; take 1.24 or later")
    hold(" on CUDAExecutionProvider" in note.partition("nodes:")[2], f"no node runs on the device: {note}")
    campaign(store := folder / "placement.db", "--provider", "cuda", "--single", "--trials", 2, "--workers", 0)
    with sqlite3.connect(store) as db:
        kept = json.loads(db.execute("SELECT value FROM meta WHERE key = 'environment'").fetchone()[0])
    hold("nodes:" in kept.get("device", ""), "the store does not keep the placement")
    return note.partition("; ")[2]


def check_memory(folder: Path) -> str:
    """Exhausted memory of a device is reported as that, within its limit, and the process goes on."""
    said = in_process(  # the first limit that a process is given holds for all its sessions
        "limited = engine(gpu_mem_limit=64 << 20)\n"
        "try: outputs(limited, product(), np.zeros((1 << 16, SIDE), np.float32)); print('it fits')\n"
        "except EngineError as error: print('memory' if out_of_memory(error) else error)\n"
        "outputs(limited, product(), factors()); print('goes on')"
    )
    hold(said.splitlines() == ["memory", "goes on"], f"134 MB of output and a limit of 64 MiB: {said[:300]}")
    return "134 MB of output do not fit into a limit of 64 MiB; the same process goes on"


def check_sticky(folder: Path) -> str:
    """A lost device ends its worker alone: the trial is run again, and every outcome is as without it."""
    said = in_process(
        "session = engine().prepare(product()); session.run({'x': factors()}); lose_device()\n"
        "try: session.run({'x': factors()})\nexcept DeviceError as error: print('lost', error)"
    )
    hold(said.startswith("lost"), f"a lost device is not known as that: {said[:200]}")
    in_process("outputs(engine(), product(), factors())")
    once = folder / "once"
    (folder / "loses_device.py").write_text(LOSES.format(scripts=str(Path(__file__).parent), once=str(once)))
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))
    asked = ("--provider", "cuda", "--single", "--trials", 60, "--workers", 1, "--metric", "loses_device:LOSES")
    whole = campaign(folder / "whole.db", *asked, PYTHONPATH=path)
    once.touch()
    again = campaign(folder / "lost.db", *asked, PYTHONPATH=path)
    hold(not once.exists(), "the device was never lost")
    hold(again == whole, "outcomes differ from those of a campaign that kept its device")
    return "60 outcomes are the same where a worker lost its device"


def check_workers(folder: Path) -> str:
    """Workers give the rows of one process."""
    asked = ("--provider", "cuda", "--single", "--trials", 60)
    one = campaign(folder / "none.db", *asked, "--workers", 0)
    for workers in (1, 2 * len(devices())):
        hold(campaign(folder / f"{workers}.db", *asked, "--workers", workers) == one, f"{workers} workers differ")
    return f"0, 1 and {2 * len(devices())} workers"


def check_second_device(folder: Path) -> str:
    """The second device gives the bits of the first, and workers use both."""
    hold(len(devices()) > 1, "there is one device; leave second-device out")
    first, second = (digest(outputs(engine(device_id=number))) for number in (0, 1))
    if devices()[0].capability == devices()[1].capability:
        hold(first == second, "two devices of one kind differ")
    asked = ("--provider", "cuda", "--single", "--trials", 60)
    both = campaign(folder / "both.db", *asked)
    second_alone = campaign(folder / "second.db", *asked, "--workers", 1, "--provider-option", "device_id=1")
    hold(both == second_alone, "outcomes differ between devices")
    return f"{devices()[1]}"


def check_tensorrt(folder: Path) -> str:
    """TensorRT runs whole models on the device that is named, with a golden run that agrees with itself."""
    note = engine("tensorrt", device_id=0).prepare(MODEL).note
    hold("TensorrtExecutionProvider" in note.partition("nodes:")[2], f"TensorRT runs no node: {note}")
    cached = ("--provider-option", "trt_timing_cache_enable=1", "--provider-option", f"trt_timing_cache_path={folder}")
    asked = ("--provider", "tensorrt", "--single", "--trials", 3, "--workers", 0, *cached)
    hold(len(campaign(folder / "tensorrt.db", *asked)) == 3, "the campaign did not finish")
    return note


def check_fp16(folder: Path) -> str:
    """A float16 model has the same bits in each session, and its answers are the CPU's but for few."""
    found = {digest(outputs(engine(), HALF)) for _ in range(3)}
    hold(len(found) == 1, "three sessions differ")
    agree = float((outputs(engine(), HALF).argmax(1) == outputs(engine("cpu")).argmax(1)).mean())
    hold(agree > 0.98, f"only {agree:.1%} of the answers are those of float32")
    return f"{agree:.1%} of the answers are those of float32"


def deep(channels: int) -> bytes:
    """Return a model of eight convolutions, large enough that kernels take longer than what starts them."""
    draw = np.random.default_rng(2)
    names = [f"a{k}" for k in range(9)]
    nodes, weights = [], []
    for k in range(8):
        weight = draw.normal(scale=(2 / (9 * channels)) ** 0.5, size=(channels, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{k}"))
        nodes.append(helper.make_node("Conv", [names[k], f"w{k}"], [f"c{k}"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [names[k + 1]]))
    nodes.append(helper.make_node("GlobalAveragePool", [names[8]], ["p"]))
    nodes.append(helper.make_node("Flatten", ["p"], ["y"]))
    graph = helper.make_graph(
        nodes, "deep", [helper.make_tensor_value_info("a0", TensorProto.FLOAT, ["N", channels, 56, 56])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", channels])], weights,
    )  # fmt: skip
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    return bytes(made.SerializeToString())


def check_speed(folder: Path) -> str:
    """Trials are measured in golden runs: one by a short route takes no longer than two."""
    model, store = folder / "deep.onnx", folder / "speed.db"
    model.write_bytes(deep(2 if "ONNXFI_SIMULATED_CUDA" in os.environ else 64))
    session = engine().prepare(model)
    port = session.inputs[0]
    fed = np.random.default_rng(0).normal(size=(32, *map(int, (port.shape or ())[1:]))).astype(np.float32)
    session.run({port.name: fed})
    begun = time.perf_counter()
    for _ in range(20):
        session.run({port.name: fed})
    golden_s = (time.perf_counter() - begun) / 20
    asked = ("--samples", 32, "--batch", 32, "--provider", "cuda", "--single", "--trials", 200, "--workers", 0)
    campaign(store, *asked, model=model, data="synthetic")
    with sqlite3.connect(store) as db:
        times = [seconds for (seconds,) in db.execute("SELECT time_s FROM results")]
    share = float(np.median(times)) / golden_s
    hold(share < 2, f"a trial takes {share:.2f} golden runs of {golden_s * 1e3:.2f} ms")
    return (
        f"a golden run of {len(fed)} images takes {golden_s * 1e3:.2f} ms, the median of 200 trials {share:.2f} of that"
    )


CHECKS: dict[str, Callable[[Path], str]] = {
    "device": check_device, "golden": check_golden, "tf32": check_tf32, "oracle": check_oracle,
    "placement": check_placement, "memory": check_memory, "sticky": check_sticky, "workers": check_workers,
    "second-device": check_second_device, "tensorrt": check_tensorrt, "fp16": check_fp16, "speed": check_speed,
}  # fmt: skip


def names(text: str) -> list[str]:
    """Return the checks that a list names."""
    found = [name for name in text.split(",") if name]
    if unknown := [name for name in found if name not in CHECKS]:
        raise argparse.ArgumentTypeError(f"no check {unknown[0]!r}; there are {', '.join(CHECKS)}")
    return found


def simulated() -> int:
    """Run this program again with a simulated device in the place of the CUDA provider."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from simulated_cuda import Simulation, environment

    words = [word for word in sys.argv[1:] if word != "--simulate"]
    given = environment(Simulation(devices=2))
    return subprocess.run([sys.executable, __file__, *words], env={**os.environ, **given}, check=False).returncode


def main() -> int:
    """Run the checks, and print what each found."""
    parser = argparse.ArgumentParser(description="Hold what onnxfi says of NVIDIA GPUs to this machine.")
    parser.add_argument("--only", type=names, default=[*CHECKS], help="these checks, with commas")
    parser.add_argument("--without", type=names, default=[], help="all checks but these")
    parser.add_argument("--simulate", action="store_true", help="on a simulated device")
    parser.add_argument("--json", type=Path, help="a file for what was found")
    given = parser.parse_args()
    if given.simulate:
        return simulated()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in (name for name in given.only if name not in given.without):
            try:
                held, said = True, CHECKS[name](Path(folder))
            except Exception as error:
                held, said = False, " ".join(f"{type(error).__name__}: {error}".split())
            found[name] = {"holds": held, "found": said}
            print(f"{'holds' if held else 'FAILS':6} {name:14} {said}", flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if found and all(one["holds"] for one in found.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
