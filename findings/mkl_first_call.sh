#!/usr/bin/env bash
# MKL's vector functions (exp, log, tanh of whole tensors) detect the processor at the first call, and two threads that
# make it together both do: the second one may read an unfinished answer.
#
# torch 2.11.0 from PyPI (MKL is linked into libtorch_cpu), Linux on x86-64. Seen in November 2026:
#   threads that detected the processor during the first exp on two threads: 2
#   the same after an exp of one element on one thread: 1
# What follows from it was seen earlier that month on two busy cores, in 7 of 5,000 forked processes: half of the first
# exp's tensor had other values. It was not seen again when this script was made: in none of 6,500 processes on an AMD EPYC
# of family 25, model 17, and why is not known. The last part prints how many do here, and decides nothing.
#
# Exit status: 0 where it behaves so, 1 where it does not (then one thread alone detects the processor).
# Takes 2 minutes and 540 MB from PyPI; needs g++ and python3 with venv.
set -euo pipefail
children=${1:-300}
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --no-deps torch==2.11.0 "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cupti==13.0.*"
torch=$(echo "$PWD"/python/lib/python3*/site-packages/torch)
# The linker is shown the CPU half only; libtorch.so would want all of CUDA.
compile() { g++ -std=c++17 -O2 -I"$torch/include" "$1.cc" -o "$1" "$torch/lib/libtorch_cpu.so" "$torch/lib/libc10.so" \
  -Wl,--no-as-needed,--allow-shlib-undefined -Wl,-rpath,"$torch/lib" -ldl; }

cat >first.cc <<'CC'
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

static at::Tensor input() {
    at::set_num_threads(1);  // arange and what follows use no MKL
    return at::arange(65536, at::kFloat).remainder(1000).div(100).sub(5);
}

// first together | first alone | first sample NUMBER
int main(int, char **arguments) {
    at::Tensor x = input();
    if (strcmp(arguments[1], "sample") != 0) {
        if (strcmp(arguments[1], "alone") == 0) at::exp(at::ones(1));
        at::set_num_threads(2);
        at::exp(x);
        return 0;
    }
    std::map<std::string, int> seen;
    for (int i = 0; i < atoi(arguments[2]); i++) {
        int ends[2];
        if (pipe(ends) != 0) return 2;
        pid_t child = fork();
        if (child == 0) {
            at::set_num_threads(2);
            at::Tensor first = at::exp(x), second = at::exp(x);
            char line[64];
            int length = snprintf(line, sizeof line, "%ld elements differ", first.ne(second).sum().item<long>());
            _exit(write(ends[1], line, length) == length ? 0 : 1);
        }
        close(ends[1]);
        char line[64];
        seen[std::string(line, std::max<ssize_t>(read(ends[0], line, sizeof line), 0))]++;
        close(ends[0]);
        waitpid(child, nullptr, 0);
    }
    for (auto &[what, times] : seen) printf("%d processes: %s\n", times, what.c_str());
}
CC
compile first

# Stands before MKL's detection, and takes its time: every thread that needs the answer meanwhile asks, too.
cat >detector.cc <<'CC'
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>
extern "C" int mkl_serv_vml_cpu_detect() {
    fprintf(stderr, "detects\n");
    usleep(500000);
    return reinterpret_cast<int (*)()>(dlsym(RTLD_NEXT, "mkl_serv_vml_cpu_detect"))();
}
CC
g++ -O2 -shared -fPIC -o detector.so detector.cc -ldl
together=$(LD_PRELOAD=$PWD/detector.so ./first together 2>&1 | grep -c detects)
alone=$(LD_PRELOAD=$PWD/detector.so ./first alone 2>&1 | grep -c detects)
echo "threads that detected the processor during the first exp on two threads: $together"
echo "the same after an exp of one element on one thread: $alone"
echo "first exp beside second exp of the same tensor, in forked processes:"
./first sample "$children"
[ "$together" = 2 ] && [ "$alone" = 1 ]
