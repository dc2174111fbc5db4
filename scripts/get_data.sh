#!/usr/bin/env bash
# Brings the complete Fashion-MNIST (60,000 + 10,000 images) into ./data/fashion-mnist/, without root.
#
#   bash scripts/get_data.sh [FOLDER]
#
# The files come from Debian's package dataset-fashion-mnist (Zalando Research, MIT licence): the installed one
# where there is one, else it is downloaded and unpacked in a temporary folder, and nothing is installed.
# A second run finds the files there and does nothing.
set -euo pipefail

package=dataset-fashion-mnist
cd "$(dirname "$0")/.."
folder=${1:-data/fashion-mnist}

fail() { echo "get_data.sh: $1" >&2; exit 1; }

checksums() {
  cat <<'END'
cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa  t10k-images-idx3-ubyte.gz
8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05  t10k-labels-idx1-ubyte.gz
b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7  train-images-idx3-ubyte.gz
0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056  train-labels-idx1-ubyte.gz
END
}

complete() { [ -d "$1" ] && checksums | (cd "$1" && sha256sum --check --status 2>/dev/null); }

place() { # copy the four files of folder $1, each under its final name only once it is whole
  mkdir -p "$folder"
  for file in $(checksums | cut -c67-); do
    cp "$1/$file" "$folder/.$file.part" && chmod 644 "$folder/.$file.part" && mv "$folder/.$file.part" "$folder/$file"
  done
}

download() { # unsandboxed: apt's own user cannot write into a temporary folder of ours
  (cd "$scratch" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$package" >/dev/null 2>&1)
}

complete "$folder" && { echo "$folder: complete"; exit 0; }

installed=$(dpkg -L "$package" 2>/dev/null | grep -m1 '/t10k-images-idx3-ubyte.gz$' || true)
if [ -n "$installed" ] && complete "$(dirname "$installed")"; then
  place "$(dirname "$installed")"
else
  command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
    fail "no apt-get here; on a Debian or Ubuntu machine run this script and copy its $folder here"
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  if ! download; then # an empty or old package list is the usual reason, and only root may renew it
    [ "$(id -u)" -eq 0 ] || fail "apt-get cannot download $package; run 'sudo apt-get update', then this script again"
    apt-get -qq update >/dev/null 2>&1 || true
    download || fail "apt-get cannot download $package, not even after 'apt-get update'; check 'apt-cache policy $package'"
  fi
  dpkg -x "$scratch"/"$package"_*.deb "$scratch"
  place "$scratch/usr/share/datasets/fashion-mnist"
fi
complete "$folder" || fail "$folder differs from the known checksums; remove that folder and run this script again"
echo "$folder: complete"
