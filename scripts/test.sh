#!/usr/bin/env bash
# Every test that needs no training framework: style, types, floors, doctests, core tests.
#   bash scripts/test.sh [PYTEST ARGUMENTS]
source "$(dirname "$0")/venv.sh"
venv .venv "[test]"
PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check --quiet .
mypy
# Two workers: the suite is made for two cores. One thread each, so that they do not fight over them.
OMP_NUM_THREADS=1 pytest -q -n 2 "$@"
