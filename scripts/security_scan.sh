#!/usr/bin/env bash
# Scans our code (bandit) and the locked dependencies (pip-audit, which needs the advisory database's service).
set -euo pipefail
bin="$1"
cd "$(dirname "$0")/.."
"$bin/bandit" --quiet --recursive --severity-level medium --exclude clients/python/vorta/v1 clients server benchmarks
if ! "$bin/pip-audit" --require-hashes --disable-pip --requirement requirements.lock; then
  echo "pip-audit found vulnerable dependencies, or could not reach the advisory service (see above)" >&2
  exit 1
fi
