#!/usr/bin/env bash
# Downloads what a GPU host without network may lack of the server's packages: h200_packages.sh PIP TARGET.
# For Python 3.12 on Linux x86-64, at the locked versions, unpacked into TARGET. What comes with torch, transformers and
# onnx is left out: such a host has it, and a second copy would hide it.
set -euo pipefail
pip=$1 target=$2
names=(annotated-types annotated-doc googleapis-common-protos grpcio grpcio-channelz grpcio-health-checking
  grpcio-reflection h11 httptools llguidance msgspec orjson prometheus-client protobuf pydantic pydantic-core
  pydantic-settings python-dotenv pyzmq shtab typing-extensions typing-inspection uvicorn uvloop wsproto click)
wanted=$(mktemp)
trap 'rm -f "$wanted"' EXIT
for name in "${names[@]}"; do
  sed -nE "s/^(${name}==[^ ]+).*/\1/p" requirements.lock >> "$wanted"
done
rm -rf "$target"
"$pip" install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary=:all: --target "$target" \
  --python-version 3.12 --implementation cp --platform manylinux_2_34_x86_64 --platform manylinux_2_31_x86_64 --platform manylinux_2_28_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --requirement "$wanted"
# It travels: nothing that is not imported, no debug symbols.
rm -rf "$target"/bin "$target"/*/tests
find "$target" \( -name '*.c' -o -name '*.pyx' -o -name '*.pxd' \) -delete
find "$target" -name '*.so*' -type f -exec strip --strip-debug {} +
du -sh "$target"
