#!/usr/bin/env bash
# The CPU half of libtorch in PyPI's wheel, libtorch_cpu.so, cannot be loaded without two CUDA libraries; libtorch.so, which
# programs are told to link, and the Python module want all of CUDA (about 2.5 GB more).
#
# torch 2.11.0 from PyPI, Linux on x86-64. Seen in November 2026:
#   libtorch_cpu.so: libcupti.so.13 libcudart.so.13
#   libtorch.so: libtorch_cuda.so
#   libtorch_python.so: libtorch_cuda.so libcudart.so.13 libcudnn.so.9 libcufile.so.0
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes a minute and 530 MB from PyPI; needs readelf and python3.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv python
python/bin/pip install --quiet --no-deps torch==2.11.0
cuda_of() {
  readelf -d python/lib/python3*/site-packages/torch/lib/"$1" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' |
    grep -E '^lib(cu|torch_cuda)' | xargs
}
for library in libtorch_cpu.so libtorch.so libtorch_python.so; do echo "$library: $(cuda_of $library)"; done | tee said
grep -q '^libtorch_cpu.so: .*libcudart' said && grep -q '^libtorch.so: .*libtorch_cuda' said
