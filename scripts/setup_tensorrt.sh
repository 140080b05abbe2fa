#!/usr/bin/env bash
# Makes the environment of `make test-tensorrt`: the main one (BASE), and beside it what requirements-tensorrt.txt has.
# PYTHON: the main environment's interpreter; VENV: where to put the new one.
set -euo pipefail
cd "$(dirname "$0")/.."
base_python="${PYTHON:-.venv/bin/python}"
venv="${VENV:-.venv-trt}"

[ -x "$venv/bin/pip" ] || "$base_python" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r requirements-tensorrt.txt
folder_of='import sysconfig; print(sysconfig.get_paths()["purelib"])'
base="$("$base_python" -c "$folder_of")"
packages="$("$venv/bin/python" -c "$folder_of")"
# The main environment's packages, those installed as links to this folder included.
echo "import site; site.addsitedir('$base')" >"$packages/vorta-main.pth"

rtx="$packages/onnxruntime_ep_nv_tensorrt_rtx"
bindings="$packages/tensorrt_bindings"
link() { ln -sf "../$(basename "$rtx")/$(basename "$1")" "$bindings/$2"; }
# The bindings look for TensorRT's libraries beside themselves first.
link "$(ls "$rtx"/libtensorrt_rtx.so.1.*)" libnvinfer.so.11
link "$(ls "$rtx"/libtensorrt_onnxparser_rtx.so.1.*)" libnvonnxparser.so.11
# RTX has no plugins, and the graphs need none.
echo 'int initLibNvInferPlugins(void *logger, const char *name_space) { return 1; }' |
  cc -shared -fPIC -x c - -o "$bindings/libnvinfer_plugin.so.11"
"$venv/bin/python" -c 'import tensorrt_bindings; print("TensorRT", tensorrt_bindings.__version__, "builds here")'
touch "$venv/.setup-done"
