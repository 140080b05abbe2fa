#!/usr/bin/env bash
# Prints the path of a Chromium or Chrome that starts (CHROMIUM_BIN, when set, alone); fails when there is none.
set -euo pipefail
for name in ${CHROMIUM_BIN:-chromium chromium-browser google-chrome-stable google-chrome}; do
  # Ubuntu's chromium-browser may be a stub that only tells of a snap.
  if path="$(command -v "$name")" && "$path" --version >/dev/null 2>&1; then
    echo "$path"
    exit 0
  fi
done
exit 1
