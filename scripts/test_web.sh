#!/usr/bin/env bash
# Runs the tests of the TypeScript client and the console, and those with the npm packages of other servers, against the
# server in VENV; the browser's in Chromium.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="$PWD/${VENV:-.venv}"
export PATH="$venv/bin:$PATH" VORTA_BIN="$venv/bin/vorta"
CHROMIUM_BIN="$(scripts/find_chromium.sh)" || CHROMIUM_BIN=""
export CHROMIUM_BIN

scripts/generate_web.sh --check
for package in clients/typescript console tests/web; do
  npm --silent --prefix "$package" test
done
if [ -z "$CHROMIUM_BIN" ]; then
  printf '%s\n' "" "##########" \
    "# SKIPPED: the client's tests in a browser and all of the console's page, for no Chromium was found." \
    "# Install one, or name it in CHROMIUM_BIN, and run \`make test-web\` again." "##########" >&2
fi
