#!/usr/bin/env bash
# The packages of formats/requirements.txt beside those of .cache/python, then the matrix into docs/formats-matrix.md.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.cache/formats
if [ ! -e "$venv/ready" ] || [ formats/requirements.txt -nt "$venv/ready" ]; then
  .cache/python/bin/python -m venv "$venv"
  site=$(echo "$PWD"/.cache/python/lib/python3*/site-packages)
  echo "$site" > "$(echo "$venv"/lib/python3*/site-packages)/base.pth"
  "$venv/bin/pip" install -q -r formats/requirements.txt
  touch "$venv/ready"
fi
exec "$venv/bin/python" formats/matrix.py docs/formats-matrix.md
