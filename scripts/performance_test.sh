#!/usr/bin/env bash
# Serves the default model and puts locust's load on it: fails on a status other than 200, on 150 tokens/s or less of a
# stream, and on a request of a second or more. USERS and SECONDS_LONG can be set.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="$1"
folder="$(mktemp -d)"
"$bin/vorta" serve --grpc-port 0 --http-port 0 --data-dir "$folder" --log-level INFO 2>"$folder/log" &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null || true; rm -rf "$folder"' EXIT
for _ in $(seq 600); do
  url="$(sed -n 's/.*INFO vorta_server.app serving .*\(http:\/\/[^,]*\),.*/\1/p' "$folder/log")"
  [ -n "$url" ] && break
  kill -0 $server 2>/dev/null || { cat "$folder/log" >&2; exit 1; }
  sleep 0.5
done
[ -n "$url" ] || { cat "$folder/log" >&2; exit 1; }
"$bin/locust" -f benchmarks/locustfile.py --headless --only-summary --users "${USERS:-4}" --spawn-rate 4 \
  --run-time "${SECONDS_LONG:-20}s" --host "$url"
