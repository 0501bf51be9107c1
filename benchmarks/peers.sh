#!/usr/bin/env bash
# Installs the servers that bench_serving.py compares with, each into an environment of its own below
# benchmarks/.peers (or $PEERS_DIR), which git ignores. A peer that can't be installed is left out, with a word.
#   benchmarks/peers.sh            all of them
#   benchmarks/peers.sh litserve   only those named
set -u
here=$(cd "$(dirname "$0")" && pwd)
dir=${PEERS_DIR:-$here/.peers}
python=${PYTHON:-python3}
runtime=$(grep -E '^onnxruntime==' "$here/../constraints.txt")

declare -A packages=(
  [litserve]="litserve==0.2.19"
  [mlserver]="mlserver==1.7.1"
  [bentoml]="bentoml==1.4.35"
  [rayserve]="ray[serve]==2.60.0"
  [triton]="nvidia-pytriton==0.7.0" # tritonserver 2.51.0; its Python backend needs libpython of the same version
)
[ $# -gt 0 ] || set -- triton litserve mlserver bentoml rayserve

mkdir -p "$dir"
# Nothing here needs torch; should a peer ask for it, it must not bring a build of several gigabytes.
grep -E '^torch==' "$here/../constraints.txt" >"$dir/no-large-torch.txt"
for name in "$@"; do
  if [ -z "${packages[$name]:-}" ]; then
    echo "unknown peer '$name'; known: ${!packages[*]}" >&2
    exit 2
  fi
  if [ -f "$dir/$name/installed" ]; then
    echo "$name: there already"
    continue
  fi
  rm -rf "${dir:?}/$name"
  "$python" -m venv "$dir/$name" || exit 1
  # An exact version where the registry has it, else the newest: the JSON of the benchmark tells which it was.
  for wanted in "${packages[$name]}" "${packages[$name]%%==*}"; do
    if "$dir/$name/bin/python" -m pip install --quiet --disable-pip-version-check \
      -c "$dir/no-large-torch.txt" "$wanted" "$runtime" numpy; then
      echo "$wanted" >"$dir/$name/installed"
      echo "$name: installed ($wanted)"
      break
    fi
  done
  [ -f "$dir/$name/installed" ] || echo "$name: could not be installed" >&2
done
