# Sourced by the other scripts: `venv FOLDER EXTRAS` makes a virtual environment with onnxfi installed editable.
# A second call is fast: it installs again only where the Python, pyproject.toml or the extras are others.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv() {
  local folder=$1 extras=$2 python=${PYTHON:-python3} stamp
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "onnxfi needs Python 3.11 or newer; $python is $("$python" -V 2>&1). Set PYTHON=python3.11, say." >&2
    exit 2
  }
  stamp="$PWD $("$python" -V) $(cksum < pyproject.toml)"
  if [ "$(cat "$folder/.stamp" 2>/dev/null)" != "$stamp" ]; then
    rm -rf "$folder"
    "$python" -m venv "$folder"
    echo "$stamp" > "$folder/.stamp"
  fi
  if [ ! -e "$folder/.installed$extras" ]; then
    echo "installing onnxfi$extras into $folder …"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -e ".$extras"
    touch "$folder/.installed$extras"
  fi
}
