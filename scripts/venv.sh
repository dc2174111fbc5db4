# Sourced by the other scripts: `venv FOLDER EXTRAS` makes a virtual environment with onnxfi installed editable, and
# ONNX Runtime: onnxruntime-gpu where there are wheels of it, since it serves CPUs as well, so that tests on a GPU run
# where there is one; else onnxruntime. RUNTIME=onnxruntime takes the other one, which is a tenth of the download.
# A second call is fast: it installs again only where the Python, pyproject.toml or the extras are others.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv() {
  local folder=$1 extras=$2 python=${PYTHON:-python3} runtime stamp
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "onnxfi needs Python 3.11 or newer; $python is $("$python" -V 2>&1). Set PYTHON=python3.11, say." >&2
    exit 2
  }
  case "${RUNTIME:-$("$python" -c 'import platform; print(platform.system(), platform.machine())')}" in
    "Linux x86_64" | "Windows AMD64" | onnxruntime-gpu) runtime=onnxruntime-gpu ;;
    *) runtime=onnxruntime ;;
  esac
  stamp="$PWD $("$python" -V) $runtime $(cksum < pyproject.toml)"
  if [ "$(cat "$folder/.stamp" 2>/dev/null)" != "$stamp" ]; then
    rm -rf "$folder"
    "$python" -m venv "$folder"
    echo "$stamp" > "$folder/.stamp"
  fi
  if [ ! -e "$folder/.installed$extras" ]; then
    echo "installing onnxfi$extras into $folder …"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -e ".$extras" "$runtime>=1.23"
    touch "$folder/.installed$extras"
  fi
}
