# make run            train the small default job; run again, it goes on where it was
# make build          target/release/ckptd and ckptd-gpt2
# make test           everything: unit tests, whole-program tests, interop with Python's torch and transformers
# make lint           formatting, clippy with warnings as errors, spelling, the width of lines, what crates may depend on
# make docs           docs/cli.md and docs/config.md, made of the program
# make picture        docs/picture.svg and docs/history.svg, of real runs
# make screenshots    docs/page.png and its like: the page of a real training in a real Chromium
#
# make bench          ckptd beside its peers on GPT-2 124M, 20 minutes, into bench/RESULTS.md; BENCH=small: a minute
# make bench-formats  what exports and imports of GPT-2 cost, beside transformers
# make bench-trainer  of them a Trainer's checkpoint in and out: time and memory, in turn, held against their bounds
# make bench-ranks    many ranks beside PyTorch's DDP, and their exchange beside gloo's and Open MPI's, into bench/RANKS.md
# make bench-remote   replication beside rclone, s5cmd and aws, 25 minutes, into bench/REMOTE.md; BENCH=short, BENCH=small
# make interval       the automatic snapshot interval against the best fixed one, simulated
#
# make wheel          the Python package ckptd, with the command, into dist/, installed and tried
# make python-kills   the loops of examples/python killed at random moments, CKPTD_PYTHON_KILLS (20) times each; half an hour
#
# make formats        files of other programs through ckptd, with pinned packages, into docs/formats-matrix.md
#
# make terms          200 SIGTERMs at random moments, and how long it took until the state was durable
# make kills          50 sessions killed at random moments, and whether their history is what their logs say
# make history-kills  200 sessions killed at random moments, and what is left of the history of their steps
# make restarts       20 deaths of a worker, with one in reserve and without: seconds until the next one begins its first step
# make fuzz           every reader of strangers' files, FUZZ_SECONDS (60) per reader
# make damages        1,000 random damages of the newest snapshot: each is named by every command that takes `latest`
# make slurm          examples/slurm.sbatch under a real Slurm of one node, some minutes (needs root and Debian's
#                     packages slurmctld slurmd slurm-client munge)
# make ranks          one root under plain processes, torchrun, mpirun and a real Slurm, over TCP and over MPI, 1 to 6 ranks,
#                     and in chains of sessions with kills; what a sharded optimizer saves and costs (as root it installs
#                     Debian's openmpi-bin, libopenmpi-dev and libclang-dev; Slurm as for make slurm)
# make systemd-check  the unit under a real systemd in namespaces of its own, one line per check (needs root)
# make remote         a machine is killed, another one has only the URL: CKPTD_ROUNDS (20) rounds on each kind of remote (root)
# make faults-short   a share of each part of the fault campaign (docs/reliability.md)
# make faults         all of it: under 20 minutes on 2 cores; needs root, FUSE and loop devices for every part
# make soak           SOAK_HOURS (2) of chaos under a small training; memory and descriptors must not grow
#
# make help           this list. Each target does its own set-up (libtorch into .cache, once).

CONFIG ?= config/mini.toml
FUZZ_SECONDS ?= 60
SEED ?= 1
SOAK_HOURS ?= 2
# What ruff looks at.
PYTHON = crates/python/python examples/python tests/python/device_copies.py tests/python/odd_script.py \
	tests/python/run_notebook.py tests/python/sampler.py tests/python/script_rules.py tests/python/state_kinds.py

.PHONY: run formats help test bench build lint interval terms kills history-kills restarts damages slurm systemd-check ranks \
	remote faults faults-short soak programs setup setup-full setup-bench setup-clients text fuzz \
	bench-formats bench-trainer bench-ranks bench-remote docs picture screenshots clean python-kills wheel

# 75 says that the session is over and the training is not: for make that is no error.
run: build text
	target/release/ckptd run $(CONFIG) || [ $$? -eq 75 ]

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

build: setup
	cargo build --release --locked

# One profile for all, so that the bindings to libtorch are compiled once.
test: setup-full text
	cargo test --release --locked --workspace

interval: setup
	cargo test --release --locked -p ckptd --test interval -- --nocapture

terms: build
	CKPTD_TERMS=$${CKPTD_TERMS:-200} cargo test --release --locked -p ckptd --test sessions -- --nocapture sigterms

kills: setup
	CKPTD_KILLS=$${CKPTD_KILLS:-50} cargo test --release --locked -p ckptd --test agent -- --nocapture kills

history-kills: setup
	CKPTD_HISTORY_KILLS=$${CKPTD_HISTORY_KILLS:-200} cargo test --release --locked -p ckptd --test agent -- --nocapture steps::a_session

bench: setup-bench text
	cargo build --release --locked --bins --examples
	cargo build --release --locked -p ckptd-core --example bench-codec
	cargo build --release --locked -p ckptd-python
	.cache/python/bin/python bench/run.py

lint: setup-full
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	cargo clippy --release --locked -p ckptd-faults --features faults --bins -- -D warnings
	.cache/python/bin/codespell
	.cache/python/bin/ruff check --config crates/python/pyproject.toml $(PYTHON)
	.cache/python/bin/ruff format --check --config crates/python/pyproject.toml $(PYTHON)
	.cache/python/bin/mypy --strict crates/python/python/ckptd
	@! $(MAKE) --dry-run help 2>&1 | grep warning
	@for target in $$(sed -n 's/^# make \([a-z-]*\) .*/\1/p' Makefile); do grep -q "^$$target:" Makefile || \
		{ echo "make $$target is told of and not there"; exit 1; }; done
	@! git ls-files '*.rs' | LC_ALL=C.UTF-8 xargs grep -nE '^.{121,}'
	@tree=$$(cargo tree --locked -e normal --prefix none -p ckptd-core -p ckptd-interop -p ckptd-gpt2) && \
		! echo "$$tree" | grep -E '^(tokio|ureq|notify) '
	@tree=$$(cargo tree --locked -e normal --prefix none -p ckptd-core -p ckptd-interop) && \
		! echo "$$tree" | grep -E '^(clap|indicatif) '

restarts: build
	@scripts/restart_costs.py
	@scripts/restart_costs.py --cold

damages: build
	CKPTD_DAMAGES=$${CKPTD_DAMAGES:-1000} cargo test --release --locked -p ckptd --test latest -- --nocapture no_damage

slurm: build
	@scripts/slurm_check.py target/release

# Without the packages of an MPI, the checks name what is missing.
ranks: setup-full
	@scripts/mpi_programs.sh target/mpi || true
	cargo build --release --locked --workspace --bins
	@.cache/python/bin/python scripts/ranks_check.py target/release --mpi target/mpi
	@scripts/ranks_costs.py target/release

bench-ranks: setup-bench
	@scripts/mpi_programs.sh target/mpi
	cargo build --release --locked --workspace --bins --example exchange
	.cache/python/bin/python bench/ranks.py --mpi target/mpi

systemd-check: build
	@scripts/systemd_check.sh target/release

remote: build setup-full
	cargo build --release --locked -p ckptd-testkit --bins
	@CKPTD_ROUNDS=$${CKPTD_ROUNDS:-20} scripts/remote_rounds.py target/release

faults: programs text
	faults/campaign.py --seed $(SEED)

faults-short: programs text
	faults/campaign.py --seed $(SEED) --scale short

soak: programs
	target/release/chaos soak --hours $(SOAK_HOURS)

# The release and, beside it, the campaign on its programs.
programs: setup
	cargo build --release --locked --workspace --bins

setup:
	@scripts/setup.sh

setup-full:
	@scripts/setup.sh full

setup-bench:
	@scripts/setup.sh bench

setup-clients:
	@scripts/setup.sh clients

text: .cache/text/python.txt

.cache/text/python.txt: scripts/text.py
	@python3 scripts/text.py .cache/text

fuzz: setup
	@scripts/fuzz.sh $(FUZZ_SECONDS)

bench-formats: build setup-full
	@.cache/python/bin/python bench/formats.py
	@.cache/python/bin/python bench/trainer.py

bench-trainer: build setup-full
	@.cache/python/bin/python bench/trainer.py

bench-remote: programs setup-clients text
	@.cache/python/bin/python bench/remote.py

formats: build setup-full
	@scripts/formats.sh

wheel: setup-full
	@scripts/wheel.sh

python-kills: setup-full
	cargo build --release --locked -p ckptd -p ckptd-python
	@.cache/python/bin/python scripts/python_kills.py target/release --kills $${CKPTD_PYTHON_KILLS:-20} --seed $(SEED)

docs: setup
	CKPTD_WRITE_DOCS=1 cargo test --release --locked -p ckptd --test docs made_of

picture: build
	scripts/picture.py target/release

screenshots: setup-full
	CKPTD_SCREENSHOTS=docs cargo test --release --locked -p ckptd --test page -- --nocapture

clean:
	cargo clean
