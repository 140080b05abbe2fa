#!/usr/bin/env bash
# Resolves requirements.lock (every version and hash) from pyproject.toml. Needs the network.
set -euo pipefail
bin="$1"
cd "$(dirname "$0")/.."
"$bin/pip" install --quiet --disable-pip-version-check uv
"$bin/uv" pip compile pyproject.toml --extra server --group dev --universal --python-version 3.11 \
  --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" \
  --output-file requirements.lock
