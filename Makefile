# make run      train the small default job; run again, it goes on where it was
# make test     everything: unit tests, whole-program tests, interop with Python's torch and transformers
# make build    target/release/ckptd and ckptd-gpt2
# make interval  the automatic snapshot interval against the best fixed one, simulated
# make terms    200 SIGTERMs at random moments, and how long it took until the state was durable
# make lint     formatting, clippy with warnings as errors, spelling
# make systemd-check  the unit under a real systemd in namespaces of its own, one line a check (needs root)
# Each does its own set-up (libtorch into .cache, once).

CONFIG ?= config/mini.toml

.PHONY: run test build lint interval terms systemd-check setup setup-full text clean

# 75 says that the session is over and the training is not: for make that is no error.
run: build text
	target/release/ckptd run $(CONFIG) || [ $$? -eq 75 ]

build: setup
	cargo build --release --locked

# One profile for all, so that the bindings to libtorch are compiled once.
test: setup-full text
	cargo test --release --locked --workspace

interval: setup
	cargo test --release --locked -p ckptd --test interval -- --nocapture

terms: build
	CKPTD_TERMS=$${CKPTD_TERMS:-200} cargo test --release --locked -p ckptd --test sessions -- --nocapture sigterms

lint: setup-full
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	.cache/python/bin/codespell

systemd-check: build
	@scripts/systemd_check.sh target/release

setup:
	@scripts/setup.sh

setup-full:
	@scripts/setup.sh full

text: .cache/text/python.txt

.cache/text/python.txt: scripts/text.py
	@python3 scripts/text.py .cache/text

clean:
	cargo clean
