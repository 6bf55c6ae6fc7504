#!/usr/bin/env bash
# Make the README image from the page that the README's first search writes (with `-k 6`, one full row).
# Needs Chromium.
#
#     docs/make_image.sh [PAGE] [WIDTH,HEIGHT]
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
page="$(realpath "${1:-$root/demo/found.html}")"
profile="$(mktemp -d)"
trap 'rm -rf "$profile"' EXIT
chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --hide-scrollbars --user-data-dir="$profile" \
    --screenshot="$root/docs/assets/demo.png" --window-size="${2:-1100,600}" "file://$page" 2> /dev/null
python3 - "$root/docs/assets/demo.png" << 'PY' || true  # fewer colours: a smaller file
import sys
from PIL import Image
Image.open(sys.argv[1]).convert("RGB").quantize(128).save(sys.argv[1], optimize=True)
PY
ls -l "$root/docs/assets/demo.png"
