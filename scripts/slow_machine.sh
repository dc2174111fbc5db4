#!/usr/bin/env bash
# The core tests as on a slow machine with other work: on one core, at the lowest priority, beside two busy processes.
#   bash scripts/slow_machine.sh [PYTEST ARGUMENTS]
# No test may depend on how fast the machine is; run it when one waits for something, or ends something. Linux.
source "$(dirname "$0")/venv.sh"

venv .venv "[test]"
PATH="$PWD/.venv/bin:$PATH"
unset PYTHONDONTWRITEBYTECODE
core=$(python -c 'import os; print(min(os.sched_getaffinity(0)))')
busy=()
trap 'kill "${busy[@]}" 2> /dev/null || true' EXIT
for _ in 1 2; do
  nice -n 19 taskset -c "$core" python -c 'while True: pass' &
  busy+=($!)
done
OMP_NUM_THREADS=1 nice -n 19 taskset -c "$core" pytest -q -n 2 --dist worksteal -m "not slow" "$@"
