#!/usr/bin/env bash
# Generates the TypeScript stubs from protos/ and the console's bundle that the gateway serves; both are committed.
# --check fails when what is committed differs from what the sources give, and changes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/${VENV:-.venv}/bin:$PATH"
stubs=clients/typescript/src/gen
bundle=gateway/vorta_gateway/console

if [ "${1:-}" != --check ]; then
  npm --silent --prefix clients/typescript run generate
  npm --silent --prefix console run build
  exit
fi
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
npm --silent --prefix clients/typescript run generate -- --output "$out"
npm --silent --prefix console run build -- --outDir "$out/console" --emptyOutDir --logLevel warn
if ! diff -rq "$out/src/gen" "$stubs" >&2 || ! diff -rq "$out/console" "$bundle" >&2; then
  echo "$stubs or $bundle is not current, run \`make generate-web\`" >&2
  exit 1
fi
echo "the TypeScript stubs and the console's bundle are current"
