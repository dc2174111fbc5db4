#!/usr/bin/env bash
# The lowest versions that pyproject.toml declares, together in an environment of their own (.venv-floor), and a small part
# of the tests on them:
#   bash scripts/floor.sh [PYTEST ARGUMENTS]
source "$(dirname "$0")/venv.sh"

lowest=$(mktemp)
trap 'rm -f "$lowest"' EXIT
"${PYTHON:-python3}" - > "$lowest" <<'EOF'
import re
import tomllib

with open("pyproject.toml", "rb") as stream:
    project = tomllib.load(stream)["project"]
extras = (project["optional-dependencies"][name] for name in ("cpu", "gpu", "images", "report", "detection", "distributed"))
for line in sum(extras, start=project["dependencies"]):
    print(re.sub(r"\[.*?\]", "", line).replace(">=", "=="))  # a constraint has no extras
EOF
PIP_CONSTRAINT=$lowest venv .venv-floor "[images,report,detection,distributed]"
[ -e .venv-floor/.tests ] || {
  .venv-floor/bin/python -m pip install --quiet --disable-pip-version-check hypothesis jsonschema pytest pytest-timeout
  touch .venv-floor/.tests
}
[ "$#" -gt 0 ] || set -- tests/faults/test_words.py tests/graph/dataflow/test_type_inference.py tests/cli/test_eval.py
OMP_NUM_THREADS=1 .venv-floor/bin/python -m pytest -q "$@"
