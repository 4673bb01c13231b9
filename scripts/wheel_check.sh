#!/usr/bin/env bash
# Installs the wheel in dist/ into a new environment of each CPython from 3.10 to 3.13 that is here, and tries it: the
# command, the package, a store that is read; and, with the torch of .cache, a training in two sessions.
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=$(realpath dist/ckptd-*.whl)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
example=$PWD/examples/python/nanogpt.py
torch=$(.cache/python/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
own=$(.cache/python/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
tried=0
for version in 3.10 3.11 3.12 3.13; do
  python=$(command -v "python$version") && "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    { echo "wheel: python$version is not here"; continue; }
  env=$work/$version
  "$python" -m venv "$env"
  "$env/bin/pip" install --quiet --disable-pip-version-check --no-index "$wheel"
  # Without a Rust toolchain, and away from these sources.
  (cd "$work" && PATH=$env/bin:/usr/bin:/bin "$env/bin/ckptd" --version &&
    PATH=$env/bin:/usr/bin:/bin "$env/bin/python" -c 'import ckptd; print("ckptd", ckptd.__version__, ckptd.open)')
  if [ "$version" = "$own" ]; then
    echo "$torch" >"$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
    (cd "$work" && PATH=$env/bin:/usr/bin:/bin "$env/bin/ckptd" run --quiet -- "$env/bin/python" "$example" &&
      PATH=$env/bin:/usr/bin:/bin "$env/bin/python" -c '
import ckptd
latest = ckptd.open("checkpoints/nanogpt")["latest"]
latest.verify()
print("step", latest.step, "is read and verified")')
  fi
  tried=$((tried + 1))
done
[ "$tried" -gt 0 ] || { echo "wheel: no CPython from 3.10 to 3.13 is here" >&2; exit 1; }
