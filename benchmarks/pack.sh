#!/bin/bash
# Packs what a GPU machine without a package index needs to run this application, in parts that can be carried one by one.
#
#   benchmarks/pack.sh OUT [FOLDER ...]     OUT/part.00, part.01, ...; each FOLDER is unpacked there as data/<its name>
#
# The machine is x86-64 Linux with Python 3.12, NumPy, JAX with CUDA, PyTorch, matplotlib, pandas and headless OpenCV, as images for CUDA
# work have them. Packed are TensorFlow's CPU build (tf.data needs it), Keras and the readers as wheels, the checkout's last commit, and the
# folders. There: cat part.* | tar x && bash setup.sh && . ./env.sh && python3 benchmarks/gpu.py
#
# OUT keeps TensorFlow, which takes minutes to pack. It comes first in the parts, so only the last parts change with a commit. Variables:
# PART_BYTES, the most bytes of a part; PRESET, that of xz; PIP, the command of a pip for any Python version.
set -euo pipefail
if [ $# -lt 1 ]; then
  echo "pack.sh: error: Expected a folder for the parts. Received: none. Give one: benchmarks/pack.sh OUT [FOLDER ...]" >&2
  exit 2
fi
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
root=$(cd "$(dirname "$0")/.." && pwd)
for folder in "$@"; do
  if [ ! -d "$folder" ]; then
    echo "pack.sh: error: Expected a folder of data. Received: $folder. Name one that exists." >&2
    exit 2
  fi
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip=${PIP:-python3 -m pip}

# download FOLDER NAME...: wheels of the versions that requirements.lock names, for that machine.
download() {
  local folder=$1 platforms=() wanted=()
  shift
  for number in 28 27 24 17; do platforms+=(--platform "manylinux_2_${number}_x86_64"); done
  for name in "$@"; do
    local version
    version=$(sed -n "s/^${name%-cpu}==\([^ ]*\).*/\1/p" "$root/requirements.lock" | tail -n 1)
    wanted+=("$name${version:+==$version}")
  done
  $pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
    --platform manylinux2014_x86_64 --platform any -d "$folder" "${wanted[@]}"
}

if [ ! -e "$out/tensorflow.tar.xz" ]; then
  download "$work" tensorflow-cpu
  # Headers are a third of the files and nothing runs them. The libraries left out here are loaded by no import of ours.
  unzip -qo "$work"/tensorflow_cpu-*.whl -d "$work/tensorflow" \
    -x 'tensorflow/include/*' 'tensorflow/compiler/tf2xla/ops/*.so' 'tensorflow/compiler/mlir/stablehlo/*.so'
  # A quarter of the largest library is names for debuggers.
  if command -v strip > /dev/null; then find "$work/tensorflow" -name '*.so*' -exec strip --strip-all {} +; fi
  tar c --sort=name -C "$work/tensorflow" . | xz -T0 --x86 --lzma2=preset="${PRESET:-6}" > "$work/tensorflow.tar.xz"
  mv "$work/tensorflow.tar.xz" "$out/"
fi
if [ ! -e "$out/wheels" ]; then
  download "$work/wheels" keras optree namex nibabel astunparse gast google-pasta termcolor isal tqdm monai
  mv "$work/wheels" "$out/"
fi
mkdir "$work/pack"
cp "$root/benchmarks/setup.sh" "$work/pack/"
git -C "$root" archive HEAD -- . ':!images' ':!docs' | gzip -n > "$work/pack/main.tgz"
for folder in "$@"; do
  folder=$(cd "$folder" && pwd)
  tar cf "$work/pack/data-$(basename "$folder").tar" -C "$(dirname "$folder")" "$(basename "$folder")"
done
rm -f "$out"/part.*
tar c --sort=name -C "$out" tensorflow.tar.xz wheels -C "$work/pack" . | split -b "${PART_BYTES:-57000000}" -d - "$out/part."
ls -l "$out"/part.*
