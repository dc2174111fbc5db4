"""Hold campaigns to their promises for as long as wanted: kills, stops, damage, hostile places, memory, the same rows.

    python scripts/soak.py kills --count 146     # SIGKILL at any moment: no trial lost, none twice
    python scripts/soak.py stops --count 42      # Ctrl-C and SIGTERM: exit 130, nothing left, the same rows
    python scripts/soak.py damage --count 600    # a store with another bit or without its end: refused, or as it was
    python scripts/soak.py places                # external data that leaves the model's folder: every verb refuses it
    python scripts/soak.py same                  # workers, hash seeds, folders, memory: the same rows
    python scripts/soak.py memory --count 20000  # a long campaign takes no more memory than a short one

Each prints what it did and what it found, and ends with exit code 1 where a promise was not kept. Moments are drawn
from --seed. docs/explanation/robustness.md has the figures.
"""

import argparse
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxfi.campaign.results.store import Store
from onnxfi.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
MODEL, DATA = ROOT / "models" / "fashion_cnn.onnx", ROOT / "models" / "fashion_test.npz"
#: In no two stores of a campaign the same: where and how fast it was run.
APART = ("environment", "memory_bytes", "timeout_s")


def command(*words: object) -> list[str]:
    """onnxfi with these words, as one would type it."""
    return [sys.executable, "-m", "onnxfi", *map(str, words)]


def campaign(store: Path, trials: int, *more: object) -> list[str]:
    """A campaign on the shipped network into a store."""
    fixed = ("--data", DATA, "--samples", 20, "--single", "--trials", trials, "-o", store)
    return command("run", MODEL, *fixed, *more)


def ran(words: Sequence[str], **how: Any) -> subprocess.CompletedProcess[str]:
    """A command that is waited for."""
    return subprocess.run(words, capture_output=True, text=True, check=False, **how)


def rows(store: Path) -> dict[str, list[Any]]:
    """All that a store holds but times and what was apart, held against its checksums first."""
    found = {}
    with Store.open(store) as opened:
        for table in ("meta", "strata", "plan", "results", "errors"):
            names = [row[1] for row in opened.db.execute(f"PRAGMA table_info({table})")]
            kept = ", ".join(name for name in names if not name.endswith("_s") and name != "checksum")
            found[table] = opened.db.execute(f"SELECT {kept} FROM {table} ORDER BY 1").fetchall()
    found["meta"] = [row for row in found["meta"] if row[0] not in APART]
    return found


def whole(folder: Path, trials: int) -> tuple[dict[str, list[Any]], float]:
    """Return the results of an undisturbed run, and its duration in seconds."""
    begun = time.monotonic()
    done = ran(campaign(folder / "whole.db", trials))
    assert done.returncode == 0, done.stderr
    return rows(folder / "whole.db"), time.monotonic() - begun


def listens(process: subprocess.Popen[str]) -> None:
    """Wait until a command is past the start of its interpreter, whose own end by a signal nobody can word."""
    while process.poll() is None:
        caught = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "SigCgt" in line)
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.01)


def interrupted(
    given: argparse.Namespace, folder: Path, ends: Sequence[signal.Signals]
) -> tuple[int, Counter[str], int]:
    """Disturb campaigns until `count` signals were sent: how many campaigns, what went wrong, what files were left."""
    rng, (right, seconds) = random.Random(given.seed), whole(folder, given.trials)
    sent, campaigns, wrong = 0, 0, Counter[str]()
    scratch = folder / "tmp"
    scratch.mkdir()
    here = os.environ | {"TMPDIR": str(scratch)}
    while sent < given.count:
        store, held = folder / f"{campaigns}.db", 0
        while True:
            words = campaign(store, given.trials, "--workers", rng.choice([0, 1, 2]))
            process = subprocess.Popen(words, env=here, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            listens(process)
            try:
                said = process.communicate(timeout=rng.uniform(0, 1.2 * seconds) if sent < given.count else None)[1]
                wrong["not done, exit " + str(process.returncode)] += process.returncode != 0
                break
            except subprocess.TimeoutExpired:
                end = rng.choice(list(ends))
                process.send_signal(end)
                said = process.communicate()[1]
                sent += 1
            if end != signal.SIGKILL:
                wrong[f"a stop with exit {process.returncode}"] += process.returncode not in (130, 0, -end)
                if "Traceback" in said:
                    wrong["a traceback: " + said[-3000:]] += 1
            if store.exists() and store.stat().st_size:
                try:
                    now = len(rows(store)["results"])
                except InputError as error:
                    if "holds no campaign yet" not in str(error):
                        wrong[f"after a signal: {error}"] += 1
                    now = held
                wrong["results lost that were written"] += now < held
                held = now
        campaigns += 1
        wrong["other rows in the end"] += rows(store) != right
        store.unlink()
    return campaigns, +wrong, len([path for path in scratch.rglob("*") if path.is_file()])


def kills(given: argparse.Namespace, folder: Path) -> bool:
    """SIGKILL at any moment."""
    campaigns, wrong, _ = interrupted(given, folder, [signal.SIGKILL])
    summary = dict(wrong) or "no result lost, the same rows in the end"
    print(f"{given.count} SIGKILLs in {campaigns} campaigns of {given.trials:,} trials: {summary}")
    return not wrong


def stops(given: argparse.Namespace, folder: Path) -> bool:
    """Ctrl-C and SIGTERM at any moment."""
    campaigns, wrong, left = interrupted(given, folder, [signal.SIGINT, signal.SIGTERM])
    summary = dict(wrong) or "exit 130, the same rows in the end"
    print(f"{given.count} stops in {campaigns} campaigns of {given.trials:,} trials: {summary}; {left} files left")
    return not wrong and not left


def damage(given: argparse.Namespace, folder: Path) -> bool:
    """One bit of a store is another, or its end is missing."""
    right, _ = whole(folder, given.trials)
    data, rng, found = (folder / "whole.db").read_bytes(), random.Random(given.seed), Counter[str]()
    for number in range(given.count):
        other = bytearray(data)
        if number % 6:
            other[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            del other[-rng.randrange(1, len(data)) :]
        (folder / "other.db").write_bytes(other)
        try:
            found["as it was" if rows(folder / "other.db") == right else "OTHER NUMBERS"] += 1
        except InputError:
            found["refused"] += 1
        except Exception as error:
            found[f"A TRACEBACK: {error!r}"] += 1
    print(f"{given.count} damaged stores of {len(data):,} bytes: {dict(found)}")
    return set(found) <= {"refused", "as it was"}


def hostile(folder: Path) -> list[str]:
    """Places of external data that are none of a model's business, one made of links included."""
    secret = folder / "secret.bin"
    secret.write_bytes(b"SECRET!!" * 512)
    home = folder / "in"
    (home / "sub").mkdir(parents=True)
    (home / "soft.bin").symlink_to(secret)
    (home / "up").symlink_to("..")
    (home / "sub" / "deep.bin").symlink_to("../../secret.bin")
    (home / "chain").symlink_to("soft.bin")
    os.link(secret, home / "hard.bin")
    os.mkfifo(home / "pipe")
    climbs = ["../secret.bin", "sub/../../secret.bin", "./../secret.bin", "sub/../sub/../../secret.bin"]
    climbs += ["../in/../secret.bin", "..//secret.bin", "sub//..//..//secret.bin", "../" * 40 + str(secret)[1:]]
    roots = [str(secret), f"/{secret}", f"//{secret}", f"/.{secret}", f"file://{secret}", f"/proc/self/root{secret}"]
    roots += ["/proc/self/environ", "/etc/passwd", "/dev/zero", "/dev/stdin", "~/secret.bin", "/proc/self/cwd/.."]
    links = ["soft.bin", "up/secret.bin", "sub/deep.bin", "chain", "hard.bin", "pipe", "."]
    return [*climbs, *roots, *links, "..", "..\\secret.bin", "secret.bin\0.bin"]


def places(given: argparse.Namespace, folder: Path) -> bool:
    """External data that leaves the folder of its model, seen by every verb that opens one."""
    found, wrong = Counter[str](), list[str]()
    where, model, limit_s = hostile(folder), folder / "in" / "m.onnx", given.limit_s
    inner = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "xy"]
    for place in where:
        tensor = numpy_helper.from_array(np.zeros((8, 8), np.float32), "w")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=place)
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        graph = helper.make_graph([node], "g", inner[:1], inner[1:], [tensor])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        model.write_bytes(made.SerializeToString())
        before = sorted(folder.rglob("*"))
        verbs = [
            ("inspect", model), ("inject", model, "--count", 1, "-o", folder / "o.onnx"), ("eval", model),
            ("instrument", model, "--all", "-o", folder / "p.onnx"),
            ("quantize", model, "--mode", "dynamic", "-o", folder / "q.onnx"),
            ("run", model, "--single", "--trials", 3, "--workers", 0, "-o", folder / "o.db"),
        ]  # fmt: skip
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(lambda words: ran(command(*words), stdin=subprocess.DEVNULL, timeout=limit_s), verbs))
        new = [path.name for path in sorted(folder.rglob("*")) if path not in before]
        for words, one in zip(verbs, done, strict=True):
            refused = one.returncode == 2 and one.stderr.count("\n") == 1 and not one.stdout
            leaked = "SECRET" in one.stdout + one.stderr or bool(new)
            found["LEAKED" if leaked else "refused" if refused else "OTHERWISE"] += 1
            if leaked or not refused:
                wrong.append(f"{words[0]} {place!r}: exit {one.returncode}, {one.stderr.strip()[-200:]} {new}")
    print(f"{len(where)} places x 6 verbs: {dict(found)}", *wrong, sep="\n  ")
    return not wrong


def same(given: argparse.Namespace, folder: Path) -> bool:
    """One campaign by other workers, hash seeds, folders and amounts of memory."""
    right, wrong = whole(folder, given.trials)[0], list[str]()
    far = folder / "another folder"
    far.mkdir()
    ways: list[tuple[str, tuple[object, ...], dict[str, str]]] = [
        *((f"{n} workers", ("--workers", n), {}) for n in (0, 1, 2, 3)),
        *((f"hash seed {n}", ("--workers", 1), {"PYTHONHASHSEED": str(n)}) for n in (0, 1, 4711)),
        ("no memory kept", ("--workers", 1, "--memory", "1kB"), {}),
        ("much memory kept", ("--workers", 1, "--memory", "4GiB"), {}),
    ]
    for number, (name, more, env) in enumerate(ways):
        store = far / f"{number}.db"
        done = ran(campaign(store, given.trials, *more), cwd=far, env=os.environ | env)
        if done.returncode or rows(store) != right:
            wrong.append(name)
    print(f"{len(ways)} ways to run {given.trials:,} trials: {wrong or 'the same rows by each'}")
    return not wrong


def memory(given: argparse.Namespace, folder: Path) -> bool:
    """Return the memory of one process while it runs many trials."""
    process = subprocess.Popen(
        campaign(folder / "long.db", given.count, "--workers", 0), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seen: list[tuple[int, int]] = []
    while process.poll() is None:
        time.sleep(0.5)
        try:
            summary = Path(f"/proc/{process.pid}/status").read_text()
            held = next(line.split()[1] for line in summary.splitlines() if line.startswith("VmRSS"))
            with sqlite3.connect(f"file:{folder / 'long.db'}?mode=ro", uri=True) as db:
                seen.append((db.execute("SELECT count(*) FROM results").fetchone()[0], int(held) >> 10))
            db.close()
        except (OSError, StopIteration, sqlite3.Error):
            continue
    during = [(done, mb) for done, mb in seen if given.count // 10 <= done < given.count]
    if process.returncode or len(during) < 2:
        print(f"exit {process.returncode}, seen {len(during)} times; take more trials")
        return False
    begun, most = during[0], max(mb for _, mb in during)
    print(f"{given.count:,} trials: {begun[1]} MB after {begun[0]:,} of them, {most} MB at most from there on")
    return most < begun[1] + 32


WAYS: dict[str, tuple[Callable[[argparse.Namespace, Path], bool], int]] = {
    "kills": (kills, 20), "stops": (stops, 20), "damage": (damage, 200), "places": (places, 0), "same": (same, 0),
    "memory": (memory, 20_000),
}  # fmt: skip


def main() -> int:
    """Run what is asked for; 1 where a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("way", choices=[*WAYS, "all"])
    parser.add_argument("--count", type=int, help="signals, stores or trials (default: few)")
    parser.add_argument("--trials", type=int, default=300, help="trials of a campaign (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=float, default=60.0, help="seconds that a refusal may take (%(default)s)")
    given = parser.parse_args()
    kept = True
    for name in WAYS if given.way == "all" else [given.way]:
        check, usual = WAYS[name]
        folder = Path(tempfile.mkdtemp(prefix="soak-"))
        try:
            asked = argparse.Namespace(**vars(given) | {"count": given.count or usual})
            kept &= check(asked, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return not kept


if __name__ == "__main__":
    sys.exit(main())
