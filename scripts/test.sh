#!/usr/bin/env bash
# Every test that needs no training framework and is not marked slow: style, spelling, types, floors, doctests, core tests.
#   bash scripts/test.sh [PYTEST ARGUMENTS]
# Those marked slow, which look at what seldom changes, and every property once more with ten times the inputs:
#   bash scripts/test.sh slow [PYTEST ARGUMENTS]
# Those that need one, in an environment of their own (.venv-frameworks, 2.5 GB) with the versions of frameworks.txt:
#   bash scripts/test.sh frameworks [PYTEST ARGUMENTS]
source "$(dirname "$0")/venv.sh"

frameworks() {
  # On Linux pip's own torch brings CUDA, gigabytes of it. The one for CPUs lies on an index of PyTorch's, which is asked
  # where it can be reached; with an index of one's own, PIP_EXTRA_INDEX_URL says it.
  local index=https://download.pytorch.org/whl/cpu
  if [ ! -e .venv-frameworks/.installed"$1" ] && [ -z "${PIP_EXTRA_INDEX_URL:-}" ] &&
    "${PYTHON:-python3}" -c "import urllib.request as u; u.urlopen('$index/torch/', timeout=5)" 2>/dev/null; then
    export PIP_EXTRA_INDEX_URL=$index
  fi
  PIP_CONSTRAINT=scripts/frameworks.txt venv .venv-frameworks "$1"
}

if [ "${1:-}" = frameworks ]; then
  shift
  frameworks "[test,torch,keras,tensorflow,sklearn]"
  # Without what it asks for beside torch, which would bring another torch and is not used here.
  .venv-frameworks/bin/python -c "import snntorch" 2>/dev/null ||
    PIP_CONSTRAINT=scripts/frameworks.txt .venv-frameworks/bin/python -m pip install --quiet --no-deps snntorch
  # A framework is imported once in a worker: tests of a file stay together.
  OMP_NUM_THREADS=1 exec .venv-frameworks/bin/python -m pytest -q -n 2 --dist loadfile -m frameworks tests "$@"
fi
venv .venv "[test,docs]"
PATH="$PWD/.venv/bin:$PATH"
# Hundreds of processes import what is here and what pytest makes of it: compiled once, also where Python is set to leave
# no byte code behind by itself.
unset PYTHONDONTWRITEBYTECODE
# Two workers: the suite is made for two cores. One thread each, so that they do not fight over them. The one that has
# nothing left to do takes from the other.
export OMP_NUM_THREADS=1
two=(pytest -q -n 2 --dist worksteal)

if [ "${1:-}" = slow ]; then
  shift
  exec "${two[@]}" -m "slow or hypothesis" --hypothesis-profile=thorough --timeout=1200 "$@"
fi
python -m compileall -q onnxfi converters
ruff check .
ruff format --check --quiet .
codespell
# Types are looked at beside the tests, so that neither core waits for the other; their errors are shown last.
types=$(mktemp)
trap 'rm -f "$types"' EXIT
mypy > "$types" 2>&1 &
failed=0
"${two[@]}" -m "not slow" "$@" || failed=$?
wait $! || failed=1
cat "$types"
exit "$failed"
