#!/bin/sh
# The programs, built with an MPI library, into a folder of their own: scripts/mpi_programs.sh FOLDER. As root it installs
# Debian's packages for that. What cargo leaves in target/release is linked with MPI, too, until it is built again.
set -eu
folder=$1
packages="openmpi-bin libopenmpi-dev libclang-dev"
if ! dpkg -s $packages >/dev/null 2>&1; then
    if [ "$(id -u)" -eq 0 ]; then
        apt-get install -y -qq --no-install-recommends $packages
    elif ! command -v mpicc >/dev/null; then
        echo "MPI with its headers is missing: apt-get install --no-install-recommends $packages" >&2
        exit 1
    fi
fi
cargo build --release --locked --workspace --bins --example exchange --features ckptd-gpt2/mpi
mkdir -p "$folder"
cp target/release/ckptd target/release/ckptd-gpt2 target/release/examples/exchange "$folder/"
