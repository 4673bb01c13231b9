//! Job files as people write them who come from elsewhere: each answer names the line, the key and what to write, and
//! what it says is accepted when it is followed to the letter.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use ckptd_core::config::{Config, TEMPLATE};

const MODEL: &str = "[model]\npreset = \"gpt2-mini\"\n";
const DATA: &str = "[data]\ntext = [\"data/*.txt\"]\n";

/// Corrections that one file may need.
const PATIENCE: usize = 8;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("/jobs/tiny.toml")).map_err(|error| {
        assert_eq!(error.exit_code(), 78);
        error.to_string()
    })
}

/// What a message says: its first problem's line, and what to write there or under which section.
struct Answer {
    line: Option<usize>,
    write: Option<String>,
    section: Option<String>,
}

fn answer(message: &str) -> Answer {
    let first = message.lines().next().unwrap();
    let line = first.split("line ").nth(1).and_then(|rest| rest.split(':').next()?.parse().ok());
    let (_, correction) = first.rsplit_once("; ").unwrap_or_else(|| panic!("no correction: {message}"));
    let write = correction.strip_prefix("write `").map(|rest| rest.rsplit_once('`').unwrap().0.to_owned());
    let section = correction.rsplit_once("` under [").map(|(_, section)| section.trim_end_matches(']').to_owned());
    assert!(write.is_some() || correction == "take the line out", "{message}");
    Answer { line, write, section }
}

/// `text` with the correction of `message`.
fn followed(text: &str, message: &str) -> String {
    let Answer { line, write, section } = answer(message);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if let Some(line) = line {
        lines.remove(line - 1);
        if let (Some(write), None) = (&write, &section) {
            lines.insert(line - 1, write.clone());
        }
    }
    if let (Some(write), Some(section)) = (write, section) {
        let head = format!("[{section}]");
        match lines.iter().position(|line| line.trim() == head) {
            Some(at) => lines.insert(at + 1, write),
            None => lines.extend([head, write]),
        }
    }
    lines.join("\n") + "\n"
}

/// Follows what is said about `text` until it is a job; returns all that was said, and the job.
fn corrected(text: &str) -> (Vec<String>, Config) {
    let (mut text, mut said) = (text.to_owned(), Vec::new());
    loop {
        match parse(&text) {
            Ok(job) => return (said, job),
            Err(message) => {
                assert!(said.len() < PATIENCE, "no end of corrections:\n{}\n{text}", said.join("\n"));
                text = followed(&text, &message);
                said.push(message);
            }
        }
    }
}

/// What people write in the place of a line: (section, the lines, what the answer names, what comes of it).
const WRONG: &[(&str, &str, &str, &str)] = &[
    ("train", "max_steps = 500", "steps", "/train/steps=500"),
    ("train", "num_train_epochs = 3", "epochs x training tokens", "/train/steps=10000"),
    ("train", "fp16 = true", "bf16", "/train/precision=\"bf16\""),
    ("train", "precision = \"bf16-mixed\"", "bf16", "/train/precision=\"bf16\""),
    ("train", "per_device_train_batch_size = 4", "batch_size", "/train/batch_size=4"),
    ("train", "gradient_accumulation_steps = 8", "grad_accumulation", "/train/grad_accumulation=8"),
    ("train", "block_size = 512", "sequence_length", "/train/sequence_length=512"),
    ("train", "max_seq_length = 128", "sequence_length", "/train/sequence_length=128"),
    ("train", "lr = 1e-4", "learning_rate", "/train/learning_rate=0.0001"),
    ("train", "learning_rate = \"3e-4\"", "a number above 0", "/train/learning_rate=0.0003"),
    ("train", "learning_rate = 0", "a number above 0", "/train/learning_rate=0.0003"),
    ("train", "warmup_ratio = 0.1", "warmup_steps", "/train/warmup_steps=50"),
    ("train", "min_lr = 6e-5", "share of learning_rate", "/train/min_learning_rate=0.1"),
    ("train", "lr_scheduler_type = \"linear\"", "schedule", "/train/schedule=\"cosine\""),
    ("train", "schedule = \"cosine_with_restarts\"", "\"constant\"", "/train/schedule=\"cosine\""),
    ("train", "optimizer = \"adamw_torch\"", "\"sgd\"", "/train/optimizer=\"adamw\""),
    ("train", "optimizer = \"Adam\"", "\"sgd\"", "/train/optimizer=\"adamw\""),
    ("train", "adam_beta1 = 0.9\nadam_beta2 = 0.98", "betas", "/train/betas=[0.9,0.95]"),
    ("train", "betas = 0.9", "two numbers", "/train/betas=[0.9,0.95]"),
    ("train", "max_grad_norm = 1", "grad_clip", "/train/grad_clip=1.0"),
    ("train", "steps = \"1000\"", "a whole number from 1", "/train/steps=1000"),
    ("train", "steps = 1e4", "a whole number from 1", "/train/steps=10000"),
    ("train", "steps = -5", "a whole number from 1", "/train/steps=10000"),
    ("train", "seed = 7", "[job]", "/job/seed=7"),
    ("train", "save_steps = 500", "every_steps", "/snapshot/every_steps=500"),
    ("train", "save_total_limit = 1", "keep_last", "/retention/keep_last=2"),
    ("train", "output_dir = \"out\"", "store", "/job/store=\"/jobs/out\""),
    ("train", "logging_steps = 10", "--log-every", ""),
    ("train", "resume_from_checkpoint = true", "by itself", ""),
    ("train", "torch_compile = true", "no such switch", ""),
    (
        "train",
        "gradient_checkpointing = true",
        "called activation_checkpointing",
        "/train/activation_checkpointing=true",
    ),
    ("train", "report_to = \"wandb\"", "history --follow --json", ""),
    ("train", "lerning_rate = 0.5", "did you mean learning_rate", "/train/learning_rate=0.5"),
    ("train", "wobble = 0.5", "steps, batch_size", ""),
    ("train", "steps: 1000", "joined by =", "/train/steps=1000"),
    ("train", "steps = 5\nsteps = 6", "a second time", "/train/steps=5"),
    ("session", "budget = 90", "with its unit", "/session/budget=\"1m 30s\""),
    ("session", "budget = \"1 Stunde\"", "with its unit", "/session/budget=\"11h 45m\""),
    ("session", "budget = \"12:00:00\"", "with its unit", "/session/budget=\"12h\""),
    ("session", "budget = \"soon\"", "with its unit", "/session/budget=\"11h 45m\""),
    ("session", "grace = \"0s\"", "above 0", "/session/grace=\"30s\""),
    ("session", "deadline = \"tonight\"", "clock", ""),
    ("session", "deadline = 2030-11-24T23:00:00Z", "in quotes", "/session/deadline=\"2030-11-24T23:00:00Z\""),
    ("session", "margin = 0.5", "from 1 to 100", "/session/margin=1.5"),
    ("session", "slurm = \"yes\"", "true or false", "/session/slurm=true"),
    ("session", "aws_url = \"https://169.254.169.254\"", "http://", "/session/aws_url=\"http://169.254.169.254\""),
    ("retention", "keep_last = 1", "from 2", "/retention/keep_last=2"),
    ("retention", "max_bytes = \"50 gigs\"", "a size with its unit", ""),
    ("retention", "max_bytes = 5368709120", "a size with its unit", "/retention/max_bytes=\"5368709120 B\""),
    ("snapshot", "every = \"often\"", "or \"auto\"", "/snapshot/every=\"5m\""),
    ("snapshot", "every = 300", "with its unit", "/snapshot/every=\"5m\""),
    ("snapshot", "every = \"10ms\"", "at least 100ms", "/snapshot/every=\"5m\""),
    ("worker", "spare = \"yes\"", "true or false", "/worker/spare=true"),
    ("snapshot", "memory = \"some\"", "\"auto\", \"unlimited\"", "/snapshot/memory=\"auto\""),
    ("snapshot", "level = 99", "from 0 to 19", "/snapshot/level=19"),
    ("job", "device = \"gpu\"", "cuda:N", "/job/device=\"cuda\""),
    ("job", "device = 0", "cuda:N", "/job/device=\"cuda:0\""),
    ("job", "device = \"mps\"", "cuda:N", "/job/device=\"auto\""),
    ("ranks", "backend = \"nccl\"", "one of", "/ranks/backend=\"gloo\""),
    ("ranks", "backend = \"mpi\"", "launcher names none", "/ranks/backend=\"gloo\""),
    ("log", "level = \"WARNING\"", "one of", "/log/level=\"warn\""),
    ("log", "level = \"loud\"", "one of", "/log/level=\"info\""),
    ("worker", "command = \"my-worker --fast\"", "a list of texts", "/worker/command=[\"my-worker --fast\"]"),
    ("worker", "hang_timeout = \"20ms\"", "at least 1s", "/worker/hang_timeout=\"10m\""),
    ("optimizer", "learning_rate = 0.01", "here it is [train]", "/train/learning_rate=0.01"),
    ("checkpoint", "every = \"1m\"", "here it is [snapshot]", "/snapshot/every=\"1m\""),
    ("wobbles", "", "there are job, model, data", ""),
    ("snapshto", "level = 3", "here it is [snapshot]", "/snapshot/level=3"),
];

#[test]
fn every_wrong_line_is_named_and_what_is_said_about_it_works() {
    for (section, lines, names, outcome) in WRONG {
        let head = format!("{MODEL}{DATA}");
        let text = format!("{head}[{section}]\n{lines}\n");
        let (said, job) = corrected(&text);
        assert!(!said.is_empty(), "{lines} is accepted");
        let first = &said[0];
        let wrong = head.lines().count() + 1 + usize::from(!lines.is_empty() && !first.contains("no such section"));
        let wrong = wrong + usize::from(first.contains("a second time"));
        assert!(first.starts_with(&format!("/jobs/tiny.toml: line {wrong}: ")), "{first}");
        assert!(first.contains(names), "{lines}: {first}");
        if !first.contains("no such section") {
            let key = lines.split([' ', ':']).next().unwrap();
            assert!(first.contains(key), "{first}");
        }
        if let Some((pointer, value)) = outcome.split_once('=') {
            let json = serde_json::to_value(&job).unwrap();
            assert_eq!(json.pointer(pointer).unwrap().to_string(), *value, "{lines}: {}", said.join("\n"));
        }
    }
}

#[test]
fn both_or_neither_of_two_keys_are_two_messages() {
    for (text, names, parts) in [
        (format!("[model]\nfrom = \"gpt2\"\npreset = \"gpt2-mini\"\n{DATA}"), "line 3", "from in line 2"),
        (format!("[model]\n{DATA}"), "[model]", "neither from"),
        (DATA.to_owned(), "[model]", "neither from"),
        (format!("{MODEL}[data]\ntext = [\"a\"]\ntokens = \"b\"\n"), "line 5", "text in line 4"),
        (format!("{MODEL}[data]\ntext = []\n"), "line 4", "neither text"),
        (MODEL.to_owned(), "[data]", "neither text"),
        (format!("{MODEL}{DATA}validation = 0\n"), "[train] eval_every", "validation above 0"),
        (format!("{MODEL}{DATA}validation = 0.0\n[train]\neval_every = 5\n"), "line 7", "validation above 0"),
        (format!("{MODEL}{DATA}[train]\neval_batches = 0\n"), "line 6", "at least 1 batch"),
    ] {
        let (said, _) = corrected(&text);
        assert!(said[0].contains(names) && said[0].contains(parts), "{text}: {}", said[0]);
    }
}

#[test]
fn a_line_that_is_no_toml_is_answered_as_it_should_be() {
    for (line, outcome) in [
        ("from = models/gpt2", "/model/from=\"/jobs/models/gpt2\""),
        ("from = 'models/gpt2", "/model/from=\"/jobs/models/gpt2\""),
        ("from = \"C:\\models\\gpt2\"", ""),
        ("from: models/gpt2", "/model/from=\"/jobs/models/gpt2\""),
        ("preset = gpt2", "/model/preset=\"gpt2\""),
        ("// preset", ""),
        ("dropout =", "/model/dropout=0.1"),
        ("dropout = None", "/model/dropout=0.1"),
        ("what is this", ""),
    ] {
        let (said, job) = corrected(&format!("{DATA}[model]\n{line}\n"));
        assert!(said[0].contains("line 4: ") && said[0].contains(line.trim_end()), "{line}: {}", said[0]);
        if let Some((pointer, value)) = outcome.split_once('=') {
            assert_eq!(serde_json::to_value(&job).unwrap().pointer(pointer).unwrap().to_string(), *value, "{said:?}");
        }
    }
    corrected(&format!("{MODEL}{DATA}[session]\nslurm = True\n"));
    corrected(&format!("{MODEL}{DATA}[session\nslurm = true\n"));
}

#[test]
fn what_stands_above_all_sections_or_in_place_of_one_is_told() {
    let (said, job) = corrected(&format!("steps = 70\nlr = 0.01\n{MODEL}{DATA}"));
    assert!(said[0].contains("line 1: steps = 70: no key stands above all sections"), "{}", said[0]);
    assert_eq!((job.train.steps, job.train.learning_rate), (70, 0.01));
    let (said, _) = corrected(&format!("train = 5\n{MODEL}{DATA}"));
    assert!(said[0].contains("this is a section"), "{}", said[0]);
}

#[test]
fn many_wrong_lines_are_three_and_a_count() {
    let many = "max_steps = 5\nlr = 1.0\nfp16 = true\nblock_size = 8\nlog_interval = 1\n";
    let error = parse(&format!("{MODEL}{DATA}[train]\n{many}")).unwrap_err();
    assert_eq!(error.lines().count(), 4, "{error}");
    assert!(error.ends_with("and 2 more"), "{error}");
}

#[test]
fn every_key_with_every_kind_of_value_is_accepted_or_answered_with_what_works() {
    let mut section = "";
    let mut tried = 0;
    for line in TEMPLATE.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        let Some((key, _)) = line.trim_start_matches('#').split_once(" = ").filter(|(key, _)| !key.contains(' '))
        else {
            continue;
        };
        for value in ["-1", "0", "3", "1e400", "nan", "true", "\"\"", "\"x\"", "[]", "[1]", "{}", "9223372036854775807"]
        {
            let mut text = format!("[{section}]\n{key} = {value}\n");
            for (name, rest) in [("model", "preset = \"gpt2-mini\"\n"), ("data", "text = [\"a\"]\n")] {
                if section != name {
                    text.push_str(&format!("[{name}]\n{rest}"));
                } else if !["from", "preset", "text", "tokens"].contains(&key) {
                    text.push_str(rest);
                }
            }
            if let Err(message) = parse(&text) {
                assert!(message.contains(&format!("[{section}]")), "{message}");
                let _ = corrected(&text);
            }
            tried += 1;
        }
    }
    assert!(tried > 500, "{tried}");
}

#[test]
fn files_that_are_missing_are_named_with_their_line_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.toml");
    let check = |text: &str| {
        let job = Config::parse(text, &path).unwrap();
        job.check_files(text, &path).map_err(|error| {
            assert_eq!(error.exit_code(), 78);
            error.to_string()
        })
    };
    std::fs::create_dir(folder.path().join("data")).unwrap();
    assert!(check(&format!("{MODEL}{DATA}")).is_ok());
    let download = check(&format!("[model]\nfrom = \"gpt2\"\n{DATA}")).unwrap_err();
    assert!(download.contains("line 2") && download.contains("write `preset = \"gpt2\"`"), "{download}");
    assert!(check(&format!("[model]\npreset = \"gpt2\"\n{DATA}")).is_ok());
    let missing = check(&format!("[model]\nfrom = \"models/mine\"\n{DATA}")).unwrap_err();
    let wanted = folder.path().join("models/mine");
    assert!(missing.contains("line 2") && missing.contains(&format!("put it at {}", wanted.display())), "{missing}");
    std::fs::create_dir_all(&wanted).unwrap();
    assert!(check(&format!("[model]\nfrom = \"models/mine\"\n{DATA}")).is_ok());
    let elsewhere = check(&format!("{MODEL}[data]\ntext = [\"src/*.rs\"]\n")).unwrap_err();
    let here = std::env::current_dir().unwrap().join("src/*.rs");
    assert!(elsewhere.contains(&format!("write `text = [{here:?}]`")), "{elsewhere}");
    for key in ["tokens", "tokenizer"] {
        let text = if key == "tokens" { "" } else { "text = [\"data\"]\n" };
        let missing = check(&format!("{MODEL}[data]\n{text}{key} = \"nowhere\"\n")).unwrap_err();
        assert!(missing.contains(&format!("[data] {key} = \"nowhere\"")) && missing.contains("line "), "{missing}");
    }
}
