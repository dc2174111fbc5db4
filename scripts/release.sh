#!/usr/bin/env bash
# The distributions of this commit in dist/, fit to be published: built from a clean copy, checked, installed in an empty
# environment, where the demo runs. Nothing is uploaded: `twine upload dist/*` is yours.
#   REPOSITORY=https://host/owner/onnxfi bash scripts/release.sh
# The address is where the sources are published under the tag vVERSION: the links and pictures of the README become
# absolute ones of that tag, and the index shows it as the project's. Without it only a rehearsal is made, in
# build/rehearsal, whose links lead nowhere on an index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=$([ -n "${REPOSITORY:-}" ] && echo dist || echo build/rehearsal)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

[ -z "$(git status --porcelain)" ] || { echo "there are changes that are not committed; commit them first" >&2; exit 2; }
mkdir "$work/source"
git archive HEAD | tar -x -C "$work/source"
"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet --disable-pip-version-check build twine
"$work/tools/bin/python" "$work/source/scripts/index_page.py" "$work/source" "${REPOSITORY:-}"
rm -rf "$out"
"$work/tools/bin/python" -m build --outdir "$out" "$work/source" > "$work/build.log" 2>&1 || { cat "$work/build.log" >&2; exit 1; }
"$work/tools/bin/python" -m twine check --strict "$out"/*

# As a user installs it, from each of the two, and in a folder where no source lies.
mkdir "$work/elsewhere"
for made in "$(ls "$PWD/$out"/*.whl)" "$(ls "$PWD/$out"/*.tar.gz)"; do
  rm -rf "$work/user"
  "$python" -m venv "$work/user"
  "$work/user/bin/pip" install --quiet --disable-pip-version-check "$made[cpu]"
  "$work/user/bin/pip" check
  (cd "$work/elsewhere" && "$work/user/bin/onnxfi" doctor > "$work/doctor.txt") || { cat "$work/doctor.txt" >&2; exit 1; }
  (cd "$work/elsewhere" && "$work/user/bin/onnxfi" demo > "$work/demo.txt") || { cat "$work/demo.txt" >&2; exit 1; }
  grep "80 of 80 trials" "$work/demo.txt" > "$work/seen.txt" || { cat "$work/demo.txt" >&2; exit 1; }
  [ -z "$(ls "$work/elsewhere")" ] || { echo "the demo left files: $(ls "$work/elsewhere")" >&2; exit 1; }
done
ls -l "$out"
