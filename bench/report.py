"""The measured figures as Markdown tables: the machine, the commands, (a) to (g), and what was promised beside it."""

import statistics

import watched

NAMES = {
    "ours": "**ckptd**", "torch": "torch.save", "torch+fsync": "torch.save + fsync", "dcp": "DCP async_save",
    "safetensors": "safetensors save_file", "hf": "HF save_pretrained + optimizer.pt", "zip": "zip (deflate 6)",
    "zstd-1": "zstd -1", "zstd-3": "zstd -3", "zipnn": "ZipNN", "blosc2": "Blosc2 (shuffle, zstd 1)",
}  # fmt: skip
ROLES = ("param", "exp_avg", "exp_avg_sq")
median = statistics.median


def quantile(values, share):
    """The smallest value that at least this share of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * int(share * 100) // 100) - 1))]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join("---" if i == 0 else "---:" for i in range(len(head))) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


class Goals:
    """What was promised, and whether this run shows it."""

    def __init__(self):
        self.rows = []

    def at_most(self, what, value, limit, form="{:.2f}"):
        self._add(what, "<=", value, limit, form, value <= limit)

    def at_least(self, what, value, limit, form="{:.2f}"):
        self._add(what, ">=", value, limit, form, value >= limit)

    def _add(self, what, sign, value, limit, form, held):
        self.rows.append((what, f"{sign} {form.format(limit)}", form.format(value), "yes" if held else "**no**"))


def write(results, small):
    goals = Goals()
    sections = []
    for name, title, section in SECTIONS:
        if name not in results:
            continue
        sections.append(f"## {title}\n")
        if "failed" in results[name]:
            sections.append(f"This part failed: `{results[name]['failed']}`\n")
            continue
        try:
            sections.append(section(results, goals))
        except (KeyError, IndexError, ValueError, ZeroDivisionError, statistics.StatisticsError) as error:
            sections.append(f"The figures of this part are incomplete: `{type(error).__name__}: {error}`\n")
    head = ["# Measured\n", *introduction(results, small)]
    promised = ["## What was promised\n", table(("figure", "wanted", "measured", "held"), goals.rows)]
    if small:
        # The promises are of a model whose state is 50 times as large.
        promised = []
    return "\n".join([*head, *promised, *sections])


def introduction(results, small):
    settings = results["settings"]
    rows, positions = settings["batches"][0]
    busy = [part["load_before"] for part in results.values() if isinstance(part, dict) and "load_before" in part]
    stolen = sum(part.get("stolen_s", 0) for part in results.values() if isinstance(part, dict))
    model = "GPT-2 124M" if settings["preset"] == "gpt2" else settings["preset"]
    yield f"`make bench`, {results['began']}. {model} with AdamW, float32, 2 threads, {rows} x {positions} tokens a step,"
    yield f"trained for {settings['warm_steps']} steps and more from random weights on the text of `make run`.\n"
    if small:
        yield "**A small model and few repetitions: this shows that the benchmark works, not how fast anything is.**\n"
    yield from (f"- {line}" for line in results["machine"])
    if busy:
        yield f"- load average at the beginning of the parts: {min(busy):.1f} to {max(busy):.1f}; {stolen:.1f} s stolen by the host"
    yield "- `bench/worker.rs` drives the product's own training loop and snapshots, `bench/peers.py` the same training in"
    yield "  PyTorch eager; only one of them works at a time, in turn. Times are medians unless something else is said.\n"


def stall(results, goals):
    measured = results["stall"]["stall_ms"]
    rows = []
    for name, values in measured.items():
        rows.append((NAMES[name], f"{median(values):.2f}", f"{quantile(values, 0.99):.2f}", f"{max(values):.2f}", len(values)))
    ours, dcp = measured["ours"], measured["dcp"]
    goals.at_most("stall of the training thread, p50 (ms)", median(ours), 1)
    goals.at_most("the same, p99 (ms)", quantile(ours, 0.99), 20)
    goals.at_least("DCP async_save's blocking time over it (p50)", median(dcp) / median(ours), 100, "{:.0f}")
    memory = results["stall"]["memory"]
    extra = memory["extra_peak"] / memory["state"]
    goals.at_most("memory that a snapshot adds, in states, at most", extra, 1)
    note = (
        "How long the training thread was held up per snapshot, ms: for ckptd the call that takes it, waits for the lock\n"
        "and page faults of the update's other homes; for the others the call that saves.\n\n"
    )
    tail = f"\nMemory: the state is {memory['state'] / 1e9:.3f} GB; a snapshot in flight held at most {extra:.2f} of that besides.\n"
    return note + table(("", "p50", "p99", "largest", "n"), rows) + tail


def durable(results, goals):
    rounds = results["durable"]["rounds"]
    names = list(rounds[0]["seconds"])
    seconds = {name: [r["seconds"][name] for r in rounds] for name in names}
    limit = [r["bytes"] / r["device_rate"] for r in rounds]
    in_training = [r for r in results.get("training", {}).get("rounds", [])]
    ours_training = [r["ours"]["durable_s"] for r in in_training]
    dcp_training = [r["dcp"]["durable_s"] for r in in_training]
    rows = []
    for name in names:
        beside = {"ours": ours_training, "dcp": dcp_training}.get(name)
        spread = f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f}"
        rows.append((NAMES[name], f"{median(seconds[name]):.2f}", spread, f"{median(beside):.2f}" if beside else ""))
    ours = median(s / least for s, least in zip(seconds["ours"], limit))
    goals.at_most("request to durable, paused, over bytes / device's rate", ours, 1.3)
    ratio = median(o / t for o, t in zip(seconds["ours"], seconds["torch+fsync"]))
    goals.at_most("the same over torch.save + fsync's", ratio, 1)
    if in_training:
        beside = median(o / d for o, d in zip(ours_training, dcp_training))
        goals.at_most("request to durable while it trains, over DCP async_save's", beside, 0.5)
    text = table(("seconds", "training paused", "from, to", "while it trains"), rows)
    written = median(r["bytes"] for r in rounds)
    return text + f"\nckptd wrote {written / 1e9:.3f} GB; at the device's own rate (g) that takes {median(limit):.2f} s.\n"


def device(results, _goals):
    rounds = results["durable"]["rounds"]
    rates, cached = ([r[kind] / 1e9 for r in rounds] for kind in ("device_rate", "cached_rate"))
    over = median(r["seconds"]["ours"] * r["cached_rate"] / r["bytes"] for r in rounds)
    return (
        f"Direct writes of 8 MiB to a file of reserved size, fsync included, between the snapshots of (b), from as much "
        f"memory as the snapshot has: {median(rates):.2f} GB/s ({min(rates):.2f} to {max(rates):.2f}). From one block that "
        f"stays in the processor's cache: {median(cached):.2f} GB/s; over that rate, request to durable is {over:.2f}.\n"
    )


def training(results, goals):
    part = results["training"]
    windows = [r["windows"] for r in part["rounds"]]
    bases = {"ours": "ours none", "ours verified": "ours none", "torch+fsync": "peers none", "dcp": "peers none"}
    lost = {name: [w[name] - w[base] for w in windows] for name, base in bases.items()}
    names = {**NAMES, "ours verified": "**ckptd**, and read back by another process"}
    rows = []
    for name, base in bases.items():
        share = median(lost[name]) / (median(w[base] for w in windows) / part["every"]) if windows else 0
        spread = f"{min(lost[name]):.2f} to {max(lost[name]):.2f}"
        five_minutes = f"{median(lost[name]) / 300 * 100:.2f} %"
        rows.append((names[name], f"{median(lost[name]):.2f}", spread, f"{share:.2f}", five_minutes))
    best = min(median(lost["torch+fsync"]), median(lost["dcp"]))
    goals.at_most("training time lost per snapshot, over the better of torch.save + fsync and DCP", median(lost["ours"]) / best, 0.5)
    goals.at_most("training time lost with a snapshot every 5 minutes, reading back included (%)", median(lost["ours verified"]) / 3, 1)
    outlasted = [r["dcp"]["durable_s"] for r in part["rounds"]]
    note = (
        f"Wall time of {part['every']} steps with one snapshot less that of {part['every']} without, in turn; whatever a snapshot's\n"
        f"threads take from the training is in it. DCP's were durable after {median(outlasted):.1f} s, ckptd's after "
        f"{median(r['ours']['durable_s'] for r in part['rounds']):.1f} s.\n\n"
    )
    head = ("", "lost per snapshot, s", "from, to", "in steps", "at one every 5 minutes")
    return note + table(head, rows)


def codec(results, goals):
    codecs = results["codec"]["codecs"]
    figures, rows = {}, []
    for name, roles in codecs.items():
        raw = sum(roles[role]["raw"] for role in ROLES)
        ratios = [roles[role]["encoded"] / roles[role]["raw"] for role in ROLES]
        all_ratio = sum(roles[role]["encoded"] for role in ROLES) / raw
        seconds = {
            key: sum(median(run[key] for run in roles[role]["runs"]) for role in ROLES) for key in roles["param"]["runs"][0]
        }
        figures[name] = {"ratio": all_ratio, **{key: raw / 1e6 / value for key, value in seconds.items()}}
        speeds = (f"{figures[name]['encode_s']:.0f}", f"{figures[name]['decode_s']:.0f}")
        rows.append((NAMES[name], *(f"{r:.4f}" for r in ratios), f"{all_ratio:.4f}", *speeds))
    ours, znn = figures["ours"], figures["zipnn"]
    goals.at_most("ratio on the whole state", ours["ratio"], 0.812, "{:.4f}")
    goals.at_least("encode, MB/s per core, over ZipNN's", ours["encode_s"] / znn["encode_s"], 4)
    goals.at_least("encode, MB/s per core, over zip's", ours["encode_s"] / figures["zip"]["encode_s"], 80, "{:.0f}")
    goals.at_least("decode, MB/s per core, over ZipNN's", ours["decode_s"] / znn["decode_s"], 1.5)
    head = ("stored / raw", *ROLES, "all", "encode MB/s", "decode MB/s")
    return (
        "MB of raw bytes per CPU second on one core; the same bytes, decoded and compared.\n\n"
        + table(head, rows)
        + f"\nckptd's kernels: {results['codec']['dispatch']}. Both hashes of every chunk, which the others do without: "
        f"{ours['hash_s']:.0f} MB/s.\n"
    )


def restore(results, goals):
    rounds = results["restore"]["rounds"]
    names = {"ours": "**ckptd** (`ckptd run`)", "torch": "torch.load", "hf": "from_pretrained + torch.load"}
    rows = []
    for name, label in names.items():
        of = {key: [r[name][key] for r in rounds] for key in ("load_s", "in_place_s", "first_step_s")}
        rows.append((label, *(f"{median(of[key]):.2f}" for key in of), f"{min(of['load_s']):.2f} to {max(of['load_s']):.2f}"))
    faster = {key: median(r["torch"][key] / r["ours"][key] for r in rounds) for key in ("load_s", "in_place_s", "first_step_s")}
    goals.at_least("restore from a cold cache, process start to the first resumed step: torch.load's time over it", faster["first_step_s"], 2)
    head = ("seconds", "state loaded", "process start to state in place", "to the first resumed step", "loaded: from, to")
    text = "The files are out of the page cache before each. ckptd's load checks both hashes of every chunk.\n\n" + table(head, rows)
    return text + (
        f"\nckptd is {faster['load_s']:.2f} times as fast as torch.load at the load alone, which the device bounds for both, "
        f"{faster['in_place_s']:.2f} times until\nthe state is in place, {faster['first_step_s']:.2f} times until the first resumed step.\n"
    )


def speed(results, goals):
    batches = [*results["speed"]["batches"], *results.get("speed_more", {}).get("batches", [])]
    rows = []
    for batch in batches:
        size = f"{batch['rows']} x {batch['positions']}"
        best = {name: median(run["tokens_s"] for run in batch[name]) for name in ("ours", "peers", "tuned")}
        faults = {name: median(run["faults"] for run in batch[name]) for name in best}
        goals.at_least(f"tokens/s over PyTorch eager's, {size}", best["ours"] / best["peers"], 1)
        for name, label in (("ours", "**ckptd**"), ("peers", "transformers eager"), ("tuned", "the same, malloc tuned by hand")):
            rows.append((f"{size}: {label}", f"{best[name]:.0f}", f"{best['ours'] / best[name]:.2f}", f"{faults[name]:.0f}"))
    head = ("", "tokens/s", "ckptd's over it", "page faults a step")
    note = "Dropout 0.1, SDPA attention, AdamW(fused=True), clipping at 1.0 on both sides.\n\n"
    return note + table(head, rows)


def being_watched(results, goals):
    part = results["watched"]
    pairs, events, scrapes = part["pairs"], sum(part["events"]), part["scrapes"]
    shares = watched.shares(pairs)
    mean, spread = {}, {}
    for name, values in shares.items():
        mean[name], spread[name] = watched.interval(values)
    goals.at_most("CPU that the agent adds when watched, upper end of 95 % (% of the machine)", mean["agent"] + spread["agent"], 0.5)
    goals.at_most("CPU that agent and worker add when watched (% of the machine)", mean["both"], 0.5)
    rows = [
        (label, f"{mean[name]:.3f}", f"{mean[name] - spread[name]:.3f} to {mean[name] + spread[name]:.3f}")
        for name, label in (
            ("none", "agent, not watched and without a history"), ("watched", "agent, watched"), ("agent", "what it adds"),
            ("worker", "what the worker adds for the same steps"), ("both", "both"),
        )
    ]  # fmt: skip
    speed = median(pair["none"]["steps"] / pair["none"]["wall_s"] for pair in pairs)
    note = (
        f"gpt2-mini, {speed:.0f} steps a second: the history kept, {watched.CLIENTS} clients on the event stream ({events} events) and a\n"
        f"scrape each second ({scrapes}), against none of it; {len(pairs)} pairs of blocks of {pairs[0]['none']['wall_s']:.0f} s, in turn.\n\n"
    )
    return note + table(("% of the machine", "mean", "95 % interval"), rows)


def attached(results, goals):
    part = results["attached"]
    (rows, positions), steps = part["sizes"], part["steps"]
    table_rows = []
    for variant in ("fused", "foreach"):
        measured = part[variant]
        rounds, stalls, memory = measured["rounds"], measured["stall_ms"], measured["memory"]
        wall = {name: [r[name]["wall_s"] for r in rounds] for name in rounds[0]}
        lost = {
            name: [save - none for save, none in zip(wall[name], wall["ours none" if name == "ours" else "peers none"])]
            for name in ("ours", "dcp", "torch+fsync")
        }
        over = [ours - dcp / 2 for ours, dcp in zip(lost["ours"], lost["dcp"])]
        extra = {
            name: (m["with"] - m["without"] + m.get("agent", 0)) / m["state"] for name, m in memory.items()
        }  # fmt: skip
        # What blocks until it is durable does not land later.
        landed = {"ours": "durable_s", "dcp": "durable_s", "torch+fsync": "blocked_s"}
        durable = {name: median(r[name][key] for r in rounds) for name, key in landed.items()}
        boundary = median(ms for r in rounds for ms in r["ours none"]["boundary_ms"])
        step_ms = median(ms for r in rounds for ms in r["ours none"]["step_ms"])
        slower = median(o / p for o, p in zip(wall["ours none"], wall["peers none"])) * 100 - 100
        of = f"a PyTorch script, {variant} AdamW"
        goals.at_most(f"{of}: stall, p50 (ms)", median(stalls["ours"]), 2)
        goals.at_least(f"{of}: DCP async_save's blocking time over it", median(stalls["dcp"]) / median(stalls["ours"]), 50, "{:.0f}")
        goals.at_most(f"{of}: training time lost per snapshot less half of DCP's, mean (s)", statistics.fmean(over), 0)
        goals.at_most(f"{of}: memory that a snapshot adds, in states", extra["ours"], 0.25)
        goals.at_most(f"{of}: what a step boundary takes of a step (%)", boundary / step_ms * 100, 0.5)
        for name in ("ours", "dcp", "torch+fsync"):
            stall_text = f"{median(stalls[name]):.2f}" if name in stalls else f"{median(r[name]['blocked_s'] for r in rounds) * 1e3:.0f}"
            mean, spread = watched.interval(lost[name])
            table_rows.append((
                f"{variant}: {NAMES[name]}", stall_text, f"{max(stalls[name]):.2f}" if name in stalls else "",
                f"{mean:.2f} ({mean - spread:.2f} to {mean + spread:.2f})", f"{durable[name]:.2f}",
                f"{extra[name]:.2f}" if name in extra else "",
            ))  # fmt: skip
        table_rows.append((
            f"{variant}: ckptd attached, no snapshot", "", "", f"{slower:+.1f} % a window", "",
            f"boundary {boundary:.2f} ms of {step_ms:.0f}",
        ))  # fmt: skip
    loads = {kind: [r[kind]["load_s"] for r in part["restore"]] for kind in ("ckptd", "torch")}
    first = {kind: median(r[kind]["first_step_s"] for r in part["restore"]) for kind in loads}
    share = median(o / t for o, t in zip(loads["ckptd"], loads["torch"]))
    goals.at_most("a PyTorch script: restore from a cold cache, the load alone, over torch.load's", share, 0.85)
    note = (
        f"GPT-2 in plain PyTorch, {rows} x {positions} tokens a step, `ckptd.attach` and `run.step` in it; windows of {steps} steps with one\n"
        "save less those with none, in turn: the mean, and what it is between with 95 % certainty. ckptd's snapshots are read\n"
        "back within them, and its memory has the daemon's in it. The first three saves, in which ckptd also looks for writers\n"
        "that nobody announces, come before.\n\n"
    )
    head = ("", "stall p50, ms", "largest", "lost per save, s", "durable, s", "memory added, states")
    tail = (
        f"\nFrom a cold cache: `attach` loads all into model and optimiser in {median(loads['ckptd']):.2f} s ({min(loads['ckptd']):.2f} to "
        f"{max(loads['ckptd']):.2f}), torch.load\nalone takes {median(loads['torch']):.2f} s ({min(loads['torch']):.2f} to {max(loads['torch']):.2f}); "
        f"process start to the first resumed step: {first['ckptd']:.2f} and {first['torch']:.2f} s.\n"
    )
    return note + table(head, table_rows) + tail


def formats(results, _goals):
    return results["formats"]["text"] or "Not measured here.\n"


SECTIONS = (
    ("stall", "(a) Stall of the training thread", stall),
    ("durable", "(b) From the request until it is durable", durable),
    ("training", "(c) Training time lost to snapshots", training),
    ("codec", "(d) Codec", codec),
    ("restore", "(e) Restore", restore),
    ("speed", "(f) Training speed", speed),
    ("durable", "(g) The device", device),
    ("attached", "(i) Any PyTorch training", attached),
    ("watched", "(h) Being watched", being_watched),
    ("formats", "Export", formats),
)
