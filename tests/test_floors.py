"""The floors and the house rules that a machine can hold: who imports whom, what nobody does, how long things get."""

from __future__ import annotations

import ast
import dataclasses
import gc
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import onnxfi

ROOT = Path(__file__).parents[1]
FLOORS = (
    "statistics",
    "faults",
    "graph",
    "runtime",
    "tasks",
    "protection",
    "campaign",
    "attacks",
    "analysis",
    "cli",
    "api",
)
#: The rooms of a floor, from the lowest up.
ROOMS = {
    "faults": ("", "hardware"),
    "graph": ("model", "write", "dataflow", "spiking", "passes", "protection", "partition"),
    "runtime": ("engine", "data", "quantize", "inject", "partial", "generation", "proofs", "pipeline"),
    "tasks": ("", "kinds"),
    "campaign": ("spec", "plan", "results", "execute", "proved", "workers", "run", "exhaustive", "report", "gate"),
    "analysis": ("", "planner"),
}
FILES = sorted(path for folder in ("onnxfi", "converters") for path in (ROOT / folder).rglob("*.py"))

#: The lowest floor that may import a package; below it nothing does, above it everything may.
FROM_FLOOR = {"onnx": "graph", "yaml": "runtime", "PIL": "runtime"}
#: Packages that one floor alone imports.
ONE_FLOOR = {
    "onnxruntime": "runtime",
    "click": "cli",
    "rich": "cli",
    "matplotlib": "campaign",
    "jinja2": "campaign",
    "distributed": "campaign",
    "onnx_ir": "converters",
}
#: All that floor 1 stands on.
GROUND = {"numpy", "ml_dtypes", "scipy"}
#: Formats that run what they read, and random numbers that all code shares.
NOBODY = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "random", "secrets_random"}
UNSAFE_YAML = {"load", "load_all", "full_load", "unsafe_load", "Loader", "FullLoader", "UnsafeLoader"}
NO_NAMES = {"manager", "helper", "helpers", "util", "utils", "misc"}

#: 400 lines are the alarm of CONTRIBUTING.md; no idea is split to obey it, so the test holds what nobody should pass.
MOST_LINES, MOST_FUNCTION_LINES, MOST_MODULES = 600, 60, 15
#: Words of our own where the field has others: inject, faulty, activation, worker, batch, segment, report.
NO_WORDS = re.compile(r"\b_?(strik(?:e|es|ing)|struck|in flight|flown|flying|crew|parcels?|urns?|told|pieces?)\b", re.I)
#: Words that open no docstring: they describe a question, not what a function does or a class is.
NO_OPENINGS = ("What", "Whether", "How", "Those", "Which", "Where", "That")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    gc.disable()  # a million nodes that stay: looking for circles among them takes longer than to make them
    try:
        return tuple(ast.walk(tree(path)))
    finally:
        gc.enable()


def every_file(rule: Callable[[Path], None]) -> Callable[[], None]:
    """One test of a rule that holds for each file."""

    def each() -> None:
        for path in FILES:
            rule(path)

    return each


def floor(path: Path) -> str:
    """The folder of onnxfi that a file lies in; "" for those at the top, "converters" for the converters."""
    parts = path.relative_to(ROOT).parts
    return "converters" if parts[0] == "converters" else parts[1] if len(parts) > 2 else ""


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever it does, also by name (`import_module("…")`)."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # converters/ is installed under another name, onnxfi.converters, so that only it imports its own so.
            here = floor(path) == "converters"
            assert node.level == 0 or (here and node.level == 1), f"{path}, line {node.lineno}: imports are absolute"
            module = ".".join(filter(None, ("onnxfi.converters" if node.level else "", node.module)))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).endswith(("import_module", "__import__")):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def attributes(path: Path) -> Iterator[tuple[int, str]]:
    """Every dotted name that a file uses (`np.random.Philox`), with its line."""
    for node in nodes(path):
        if isinstance(node, ast.Attribute):
            yield node.lineno, dotted(node)


def dotted(node: ast.expr) -> str:
    """A dotted name as it is written; of other expressions the names after them."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


# ------------------------------------------------------------------------------------------------ who imports whom


@every_file
def test_a_floor_imports_itself_and_the_floors_below(path: Path) -> None:
    here = floor(path)
    for module in imported(path):
        parts = module.split(".")
        if parts[0] != "onnxfi" or here in ("", "converters"):
            continue
        assert len(parts) > 1, f"{path}: `from onnxfi import …` could be any floor; name the module"
        if parts[1] == "converters":
            assert path.name == "convert.py" and here == "cli", f"{path}: only cli/convert.py imports the converters"
        elif parts[1] in FLOORS:
            assert FLOORS.index(parts[1]) <= FLOORS.index(here), f"{path} imports {module}, a floor above its own"
        else:
            assert (
                parts[1] in ("errors", "extensions", "file_fields", "isolated_call", "numbers") or module == "onnxfi"
            ), f"{path} imports {module}, which lies on no floor"


def rooms() -> Iterator[tuple[str, str, str, Path]]:
    """Every module in a room with its floor, its room ("" between the rooms) and its path."""
    for name, path in modules().items():
        parts = name.split(".")[1:-1]
        if parts and parts[0] in ROOMS:
            yield name, parts[0], ".".join(parts[1:]), path


def test_a_room_imports_itself_and_the_rooms_below() -> None:
    place = {name: (here, ROOMS[here].index(room)) for name, here, room, _ in rooms()}
    for name, here, _, path in rooms():
        above = [other for other in imported(path) if other in place and place[other][0] == here]
        above = [other for other in above if place[other] > place[name]]
        assert not above, f"{path} imports {above}, of rooms above its own"


def test_every_room_has_its_place() -> None:
    assert {(here, room) for _, here, room, _ in rooms()} == {(here, room) for here in ROOMS for room in ROOMS[here]}
    assert not [
        path for path in modules().values() if len(path.relative_to(ROOT).parts) > 3 and floor(path) not in ROOMS
    ]


@every_file
def test_packages_are_imported_on_their_floors(path: Path) -> None:
    here = floor(path)
    for package in {module.split(".")[0] for module in imported(path)}:
        assert package not in NOBODY, f"{path} imports {package}"
        if here in FLOORS and package in FROM_FLOOR:
            assert FLOORS.index(here) >= FLOORS.index(FROM_FLOOR[package]), f"{path} imports {package}"
        if package in ONE_FLOOR and here != "converters":
            assert here == ONE_FLOOR[package], f"{path} imports {package}; only {ONE_FLOOR[package]} does"
        if here in ("statistics", "faults"):
            assert package in GROUND | {"onnxfi"} | sys.stdlib_module_names, f"{path} imports {package}"
        if here == "":
            assert package in {"onnxfi", "pytest"} | sys.stdlib_module_names, f"{path} imports {package}"


def modules() -> dict[str, Path]:
    """Every module of onnxfi by its name."""
    paths = [path for path in FILES if floor(path) != "converters" and path.name != "__init__.py"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def test_no_imports_go_in_a_circle() -> None:
    """Not even where a function imports, or for types alone."""
    named = modules()
    imports = {name: {other for other in imported(path) if other in named} - {name} for name, path in named.items()}
    while free := [name for name, others in imports.items() if not others]:
        imports = {name: others.difference(free) for name, others in imports.items() if name not in free}
    assert not imports, f"these import each other: {sorted(imports)}"


def test_a_folder_holds_about_a_dozen_modules() -> None:
    folders = Counter(path.parent for path in modules().values() if path.parent.name != "cli")
    assert max(folders.values()) <= MOST_MODULES, folders.most_common(3)


def test_every_folder_is_a_floor() -> None:
    assert {path.name for path in (ROOT / "onnxfi").iterdir() if path.is_dir()} - {"__pycache__"} == set(FLOORS)


def test_importing_onnxfi_loads_nothing_heavy() -> None:
    heavy = ["onnx", "onnx_ir", "onnxruntime", "numpy", "ml_dtypes", "scipy", "click", "rich", "yaml"]
    code = f"import sys, onnxfi; dir(onnxfi); print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "[]"


def test_the_runtime_reports_nothing_to_its_maker(tmp_path: Path) -> None:
    """Not from a program that imports onnxfi: no device id or queue of events is left, in the home folder or elsewhere."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT")}
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "LOCALAPPDATA", "TEMP"), str(tmp_path))
    code = "import onnxfi.pytest_plugin, onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=kept | places
    )
    assert ran.stdout == "1\n"
    assert list(tmp_path.rglob("*")) == []


def test_what_a_user_says_of_reports_to_the_runtimes_maker_counts() -> None:
    code = "import onnxfi, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    said = os.environ | {"ORT_DISABLE_TELEMETRY": "0"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=said)
    assert ran.stdout == "0\n"


def test_floor_one_works_without_onnx_and_scipy() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['onnx', 'onnx_ir', 'onnxruntime', 'scipy']))\n"
        "from onnxfi import Selector, Target, parse_fault\n"
        "from onnxfi.faults.trials import Sampler, draw_faults\n"
        "from onnxfi.faults.words import WORDS\n"
        "space = Selector().space([Target('w', WORDS['bfloat16'], (100,))])\n"
        "print(len(draw_faults(space, Sampler('ber', rate=0.1, seed=0), parse_fault('flip'))))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(ran.stdout) > 100


# ------------------------------------------------------------------------------------------------ what nobody does


@every_file
def test_no_print_no_shared_chance_no_unsafe_formats(path: Path) -> None:
    for line, name in attributes(path):
        where = f"{path}, line {line}: {name}"
        head, _, tail = name.partition(".random.")
        if head in ("np", "numpy"):
            assert tail.split(".")[0].split("(")[0] == "Philox", f"{where}; all chance is Philox raw words"
        assert not (name.startswith("yaml.") and name.split(".")[1] in UNSAFE_YAML), f"{where}; safe_load reads no code"
        assert not name.endswith((".Generator", ".default_rng", ".RandomState")), (
            f"{where}; all chance is Philox raw words"
        )
    for node in nodes(path):
        where = f"{path}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            assert called not in ("print", "eval", "exec", "breakpoint"), f"{where}: {called}"
            allowed = any(k.arg == "allow_pickle" and getattr(k.value, "value", True) for k in node.keywords)
            assert not allowed, f"{where}: pickle is not a format"


@every_file
def test_names_say_what_a_thing_is(path: Path) -> None:
    names = [path.stem]
    for node in nodes(path):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.append(node.name)
    for name in names:
        spaced = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
        assert not NO_NAMES & set(spaced.split("_")), f"{path}: {name}"


# ------------------------------------------------------------------------------------------------ what outlives a call

#: Objects at the top of a module that change: the worker that a process is (worker.py says why it is found by a name).
#: A ContextVar is none: it holds what one thread is in, for a block.
OUTLIVING = {"THIS_WORKER"}
#: Types of the standard library whose instances are there to be changed.
CHANGING = {"list", "dict", "set", "bytearray", "deque", "defaultdict", "Counter", "OrderedDict", "WeakSet", "local"}
CHANGING |= {"Lock", "RLock", "Condition", "Event", "Semaphore", "BoundedSemaphore", "Barrier", "Queue", "SimpleQueue"}
CHANGING |= {"WeakKeyDictionary", "WeakValueDictionary", "count", "cycle", "iter", "open"}
#: Methods that change a list, a dict or a set.
CHANGES = {"append", "extend", "insert", "pop", "popitem", "remove", "discard", "clear", "update", "setdefault", "add"}
CHANGES |= {"sort", "reverse", "appendleft", "popleft", "intersection_update", "difference_update"}
#: A cached function is a function of its arguments (and of what is installed) alone, and gives what nobody can change.
#: These have an effect, once for the same arguments: the environment of a runtime keeps the arena that it was given;
#: a model that came through a dry run does so again.
ONCE = {"share_device_arena", "_share_arena", "_pass"}


def changing_classes() -> set[str]:
    """The classes of the house whose instances may change: all but frozen dataclasses, enumerations and errors."""
    found = set()
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                fixed = any("frozen=True" in ast.unparse(one) for one in node.decorator_list)
                fixed |= any(ast.unparse(base).endswith(("Enum", "Error", "Exception")) for base in node.bases)
                found |= set() if fixed else {node.name}
    return found


def bound(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """Every name that statements bind, with its value."""
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield ast.unparse(target), node.value


def changed_names(path: Path) -> Iterator[tuple[str, int]]:
    """Every name whose value a function of a module changes without having bound it, and the line."""
    classes = [node.body for node in nodes(path) if isinstance(node, ast.ClassDef)]
    for function in (node for body in (tree(path).body, *classes) for node in body):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        inside = list(ast.walk(function))
        own = {node.arg for node in inside if isinstance(node, ast.arg)}
        own |= {node.id for node in inside if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        for node in inside:
            changed: ast.expr | None = None
            if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
                changed = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
                changed = node.func.value
            if isinstance(changed, ast.Name) and changed.id not in own:
                yield changed.id, node.lineno


def test_nothing_outlives_a_call() -> None:
    """A worker, a pool and a run own what they keep; a module and a class hold constants."""
    changing = CHANGING | changing_classes()
    for path in FILES:
        constants = dict(bound(tree(path).body))
        fields = [pair for node in nodes(path) if isinstance(node, ast.ClassDef) for pair in bound(node.body)]
        for name, value in (*constants.items(), *fields):
            made = ast.unparse(value.func).split(".")[-1] if isinstance(value, ast.Call) else ""
            assert made not in changing or name in OUTLIVING, f"{path}: {name} is a {made}, which may change"
        for name, value in fields:
            assert not isinstance(value, ast.List | ast.Dict | ast.Set), f"{path}: all objects share {name}"
        for name, line in changed_names(path):
            assert name not in constants, f"{path}, line {line}: {name} of this module is changed"
        assert not [node for node in nodes(path) if isinstance(node, ast.Global)], f"{path} has a global statement"


def test_what_is_cached_is_a_function_of_its_arguments() -> None:
    changing = {"list", "dict", "set", "None", *changing_classes()}
    for path in FILES:
        for node in nodes(path):
            for one in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if re.match(r"(functools\.)?(lru_)?cache\b", ast.unparse(one)):
                    assert isinstance(node, ast.FunctionDef) and node.returns is not None
                    given = re.sub(r"\btype\[.*?\]", "", ast.unparse(node.returns))
                    fixed = node.name in ONCE or changing.isdisjoint(re.findall(r"\w+", given))
                    assert fixed, f"{path}: {node.name} is cached and returns {given}, which may change"


# ------------------------------------------------------------------------------------------------ what tests touch

#: Names of the standard library that begin with an underscore and are there to be used; those of notebooks end with one.
OPEN_TO_ALL = {"_exit", "_replace", "_obj"}
PRIVATE = re.compile(r"_[A-Za-z]\w*(?<!_)")


def private_touches(path: Path) -> Iterator[tuple[int, str]]:
    """Every private name of something else that a test uses, imports or replaces, with its line."""
    for node in nodes(path):
        if isinstance(node, ast.Attribute) and not dotted(node.value).endswith(("self", "cls")):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnxfi"):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).endswith(("setattr", "getattr", "delattr")):
            named = [one.value for one in node.args[:2] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            yield from ((node.lineno, part) for name in named for part in name.split("."))


def test_tests_touch_no_private_names() -> None:
    """A test that looks inside holds the code as it is, not what it does; what it needs deserves a public name."""
    for path in (ROOT / "tests").rglob("*.py"):
        for line, name in private_touches(path):
            assert not PRIVATE.fullmatch(name) or name in OPEN_TO_ALL, f"{path}, line {line}: {name} is private"


# ------------------------------------------------------------------------------------------------ where tests lie

#: Modules whose tests lie in the file of another one: parts of one thing that is tested as a whole.
TESTED_WITH = {
    "analysis/planner/option_effects.py": "analysis/planner/test_plan_protection.py",
    "analysis/planner/recorded_trials.py": "analysis/planner/test_plan_protection.py",
    "analysis/verdict.py": "analysis/test_assess.py",
    "analysis/vulnerability.py": "analysis/test_assess.py",
    "campaign/plan/mapped_list.py": "campaign/plan/test_coded_weights.py",
    "campaign/report/ranking_text.py": "campaign/run/test_ranking.py",
    "campaign/run/campaign_record.py": "campaign/run/test_runner.py",
    "campaign/run/trial_limits.py": "campaign/run/test_runner.py",
    "cli/assess.py": "analysis/test_assess.py",
    "runtime/proofs/quantised_layers.py": "runtime/proofs/test_integer_faults.py",
    "cli/diff.py": "cli/test_integrity.py",
    "cli/fit.py": "analysis/test_fit.py",
    "cli/manifest.py": "cli/test_integrity.py",
    "cli/plan_protection.py": "analysis/planner/test_plan_protection.py",
    "cli/verify.py": "cli/test_integrity.py",
    "graph/protection/alarms.py": "graph/protection/test_redundant_layers.py",
    "protection/coded_memory.py": "protection/test_memory_codes.py",
    "protection/protection.py": "protection/test_protect.py",
    "protection/protections.py": "protection/test_protect.py",
    "runtime/pipeline/pipeline_answers.py": "runtime/pipeline/test_pipeline.py",
    "runtime/pipeline/later_stages.py": "runtime/pipeline/test_pipeline.py",
    "runtime/pipeline/open_stages.py": "runtime/pipeline/test_open_pipeline.py",
}


def test_each_module_has_its_test_file() -> None:
    """A module onnxfi/a/b.py is tested in tests/a/test_b.py, so that nobody looks for its tests."""
    for path in FILES:
        parts = path.relative_to(ROOT).parts
        place = ROOT.joinpath("tests", *(parts[1:-1] if parts[0] == "onnxfi" else parts[:-1]))
        own, other = place / f"test_{path.name}", TESTED_WITH.get("/".join(parts[1:]))
        if path.name not in ("__init__.py", "__main__.py"):
            assert own.exists() or other, f"{path} has no {own.relative_to(ROOT)}; test it there"
            assert not other or (ROOT / "tests" / other).exists(), f"{path} is tested nowhere: no tests/{other}"


def test_no_two_public_classes_share_a_name() -> None:
    found: dict[str, list[str]] = {}
    for path in (path for path in FILES if path.is_relative_to(ROOT / "onnxfi")):  # those of converters are twins
        for node in nodes(path):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


# ------------------------------------------------------------------------------------------------ how long things get


@every_file
def test_modules_and_functions_fit_the_eye(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{path} has {lines} lines; {MOST_LINES} is the alarm"
    for node in nodes(path):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                text = node.body[0]
                length -= (text.end_lineno or 0) - text.lineno + 1
            assert length <= MOST_FUNCTION_LINES, f"{path}: {node.name} has {length} lines"


@every_file
def test_modules_and_what_they_offer_are_explained(path: Path) -> None:
    if not path.read_text(encoding="utf-8").strip():
        return
    assert ast.get_docstring(tree(path)) or path.name == "__main__.py", f"{path} does not say what it is for"
    for node in tree(path).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name} is not explained"


def test_the_words_are_those_of_the_field() -> None:
    """CONTRIBUTING.md has the vocabulary."""
    folders = ("docs", "examples", "models", "scripts", "tests")
    others = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".md", ".py", ".sh")]
    for path in [*FILES, *others, *ROOT.glob("*.md")]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            words = re.sub(r"\btest_\w+", lambda name: name[0].replace("_", " "), line) if "test_" in line else line
            found = NO_WORDS.search(words)
            assert not found or path == Path(__file__), (
                f"{path}, line {number}: {found and found[0]!r}; see the vocabulary"
            )


def test_docstrings_say_what_a_thing_is_or_does() -> None:
    others = [path for folder in ("scripts", "tests", "examples") for path in (ROOT / folder).rglob("*.py")]
    for path in (*FILES, *others):
        _check_openings(path)


def _check_openings(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node) or ""
            opening = text.split(" ", 1)[0]
            where = f"{path}, line {getattr(node, 'lineno', 1)}"
            assert opening not in NO_OPENINGS, f"{where} opens with {opening!r}: {text.splitlines()[0]}"


# ------------------------------------------------------------------------------------------------ the public names


@pytest.mark.parametrize("name", onnxfi.__all__)
def test_public_names_resolve_and_have_numpydoc_sections(name: str) -> None:
    thing = getattr(onnxfi, name)
    assert thing is getattr(importlib.import_module(thing.__module__), thing.__name__)
    found = sections(inspect.getdoc(thing) or "")
    assert ">>> " in found.get("Examples", ""), f"{name} has no example that the tests run"
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    if not isinstance(thing, type):
        assert documented(found, "Parameters") == list(inspect.signature(thing).parameters), name
        assert found.get("Returns"), f"{name} does not say what it returns"
    elif issubclass(thing, Exception):
        assert "Parameters" not in found
    else:
        names = documented(found, "Attributes") or documented(found, "Parameters")
        assert names, f"{name} documents no parameter or attribute"
        # A campaign is made of flat fields, which docs/reference/spec.md lists.
        assert {f.name for f in fields if not f.name.startswith("_")} <= {*names} or "fields" in names, name


def test_public_names_of_the_converters_have_numpydoc_sections() -> None:
    """Their frameworks need not be installed, so their source is read."""
    for path in (ROOT / "converters").glob("*.py"):
        for node in tree(path).body:
            if isinstance(node, ast.FunctionDef) and node.name == "convert":
                found, taken = sections(ast.get_docstring(node) or ""), node.args
                given = [a.arg for a in (*taken.args, *taken.kwonlyargs, *filter(None, [taken.kwarg]))]
                assert documented(found, "Parameters") == given and found.get("Returns") and found.get("Raises"), path
            if isinstance(node, ast.ClassDef) and node.name.endswith("AwareTraining"):
                found = sections(ast.get_docstring(node) or "")
                assert found.get("Parameters") and ">>> " in found.get("Examples", ""), path


def sections(text: str) -> dict[str, str]:
    """Return the sections of a numpydoc docstring by their titles."""
    parts = re.split(r"^(\w+)\n-{3,}$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def documented(found: Mapping[str, str], title: str) -> list[str]:
    """Return the names that a section of parameters describes, in order."""
    entries = re.findall(r"^(\S.*?)(?: : .*)?$", found.get(title, ""), flags=re.M)
    return [name.strip("*") for entry in entries for name in entry.split(", ")]


def test_the_list_of_public_names_is_the_list() -> None:
    assert list(onnxfi.__all__) == sorted(onnxfi.__all__) == dir(onnxfi)
    stub = ast.parse((ROOT / "onnxfi" / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    assert sorted(alias.name for node in imports for alias in node.names) == list(onnxfi.__all__)
    assert all(alias.asname == alias.name for node in imports for alias in node.names)  # else a checker hides it
    with pytest.raises(AttributeError, match="module 'onnxfi' has no attribute 'sampel'"):
        onnxfi.sampel  # noqa: B018
