#!/usr/bin/env bash
# Installs what the tests of the GPU kernels and of the cuda runner need, none of which needs a GPU. VENV: into where.
set -euo pipefail
cd "$(dirname "$0")/.."
pip="${VENV:-.venv}/bin/pip"

echo "installing torch, Triton and nvcc into ${VENV:-.venv}, for the tests of the GPU kernels"
"$pip" install --quiet --disable-pip-version-check -r requirements-torch.txt
if [ "$(uname -sm)" = "Linux x86_64" ]; then
  "$pip" install --quiet --disable-pip-version-check --no-deps -r requirements-kernels.txt
else
  echo "Triton and nvcc are for Linux on x86-64: the tests of the kernels themselves will be skipped here." >&2
fi
touch "${VENV:-.venv}/.kernels-done"
