#!/usr/bin/env bash
# Makes the virtual environment: everything that serving, testing and linting need, at the locked versions.
# PYTHON: the interpreter to start from; VENV: where to put it.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
venv="${VENV:-.venv}"

"$python" - <<'CHECK' || { echo "Vorta needs Python 3.11 or later; set PYTHON to one." >&2; exit 1; }
import sys
raise SystemExit(sys.version_info < (3, 11))
CHECK

if [ ! -x "$venv/bin/pip" ]; then
  if ! "$python" -m venv "$venv" 2>/dev/null; then
    echo "installing the venv module" >&2
    version="$("$python" -c 'import sys; print(f"{sys.version_info.major}.{sys.version_info.minor}")')"
    apt-get update -qq && apt-get install -y -qq "python$version-venv" >/dev/null
    rm -rf "$venv"
    "$python" -m venv "$venv"
  fi
fi
echo "installing the locked dependencies into $venv"
# --no-deps: the lock is the whole closure, and pip 23 would resolve an extra of a locked package to its newest release.
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
if ! command -v c++ >/dev/null && [ "$(id -u)" = 0 ]; then
  echo "installing a C++ compiler, which builds the kernels" >&2
  apt-get update -qq && apt-get install -y -qq g++ >/dev/null || true
fi
"$venv/bin/python" -m vorta_kernels.cpu >/dev/null ||
  echo "Without a C++ compiler models run on ONNX Runtime's operators alone, which are slower." >&2
"$venv/bin/python" -m vorta_gateway.json.native >/dev/null ||
  echo "Without a C++ compiler and Python.h the gateway writes JSON in Python, which is slower." >&2
touch "$venv/.setup-done"
