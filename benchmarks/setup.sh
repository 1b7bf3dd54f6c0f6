#!/bin/bash
# Unpacks what pack.sh packed, in the folder that holds it. Then `. ./env.sh` sets the paths and enters the checkout.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$here/site" "$here/main" "$here/data"
XZ_OPT=-T0 tar xJf "$here/tensorflow.tar.xz" -C "$here/site"
tar xzf "$here/main.tgz" -C "$here/main"
for part in "$here"/data-*.tar; do
  if [ -e "$part" ]; then tar xf "$part" -C "$here/data"; fi
done
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$here/site" "$here"/wheels/*.whl
cat > "$here/env.sh" << EOF
export PYTHONPATH=$here/site TF_CPP_MIN_LOG_LEVEL=3 KERAS_BACKEND=\${KERAS_BACKEND:-jax} PYTHONUNBUFFERED=1 MRI_DATA=$here/data
cd $here/main
EOF
. "$here/env.sh"
python3 -c "import numpy, jax, tensorflow, keras, cv2, nibabel; print(numpy.__version__, jax.__version__, tensorflow.__version__, keras.__version__, jax.devices())"
