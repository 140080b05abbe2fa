#!/usr/bin/env bash
# Scans our code (bandit) and the locked dependencies (pip-audit). Dependencies that could not be looked up count as a
# failure: the second part needs the network.
set -euo pipefail
bin="$1"
cd "$(dirname "$0")/.."
echo "bandit: our code"
"$bin/bandit" --quiet --recursive --severity-level medium --exclude clients/python/vorta/v1 clients server gateway kernels benchmarks
echo "pip-audit: the locked dependencies"
"$bin/pip-audit" --strict --require-hashes --disable-pip --requirement requirements.lock
