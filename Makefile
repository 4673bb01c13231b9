# make run      train the small default job; run again, it goes on where it was
# make test     everything: unit tests, whole-program tests, interop with Python's torch and transformers
# make bench    ckptd beside its peers on GPT-2 124M, 20 minutes, into bench/RESULTS.md; BENCH=small: a minute, a small model
# make build    target/release/ckptd and ckptd-gpt2
# make lint     formatting, clippy with warnings as errors, spelling
# Each does its own set-up (libtorch into .cache, once).

CONFIG ?= config/mini.toml

.PHONY: run test bench build lint setup setup-full setup-bench text clean

# 75 says that the session is over and the training is not: for make that is no error.
run: build text
	target/release/ckptd run $(CONFIG) || [ $$? -eq 75 ]

build: setup
	cargo build --release --locked

# One profile for all, so that the bindings to libtorch are compiled once.
test: setup-full text
	cargo test --release --locked --workspace

bench: setup-bench text
	cargo build --release --locked --bins --examples
	.cache/python/bin/python bench/run.py

lint: setup-full
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	.cache/python/bin/codespell

setup:
	@scripts/setup.sh

setup-full:
	@scripts/setup.sh full

setup-bench:
	@scripts/setup.sh bench

text: .cache/text/python.txt

.cache/text/python.txt: scripts/text.py
	@python3 scripts/text.py .cache/text

clean:
	cargo clean
