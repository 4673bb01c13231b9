//! What a worker finds wrong with the files of a job is told as what is wrong with the job file itself: file, line, key
//! and value, and what to do. Real worker, all errors that a job file can give there.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use ckptd_testkit::text;

/// The job before a line of it is replaced; its third line is the model's, its fifth the data's.
const JOB: &str = "[job]\ndevice = \"cpu\"\n[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"text.txt\"]\n[train]\n\
                   steps = 2\nbatch_size = 2\nsequence_length = 32\neval_every = 0\n";

/// The line, what stands there instead, and what of the answer helps.
const WRONG: &[(&str, &str, &str)] = &[
    ("preset = \"gpt2-mini\"", "preset = \"gpt3\"", "choose one of gpt2"),
    ("device = \"cpu\"", "device = \"cuda:99\"", "set device = \"cpu\""),
    ("sequence_length = 32", "sequence_length = 512", "write `sequence_length = 256`"),
    ("text = [\"text.txt\"]", "text = [\"tiny.txt\"]", "give more text, or lower [train] batch_size"),
    ("text = [\"text.txt\"]", "text = [\"code\"]", "name them with a glob that ends with /**/*.rs"),
    ("text = [\"text.txt\"]", "text = [\"*.none\"]", "name them with a glob"),
    ("text = [\"text.txt\"]", "text = [\"image.png\"]", "or take it out"),
    ("text = [\"text.txt\"]", "text = [\"some.jsonl\"]", "[data] field = \"body\""),
    ("text = [\"text.txt\"]", "tokens = \"odd.bin\"", "[data] tokens_dtype = "),
    ("text = [\"text.txt\"]", "tokens = \"large.bin\"", "use the tokenizer that belongs to the model"),
    ("text = [\"text.txt\"]", "tokens = \"few.bin\"", "or lower [train] batch_size"),
    ("[data]", "[data]\ntokenizer = \"code\"", "neither a tokenizer.json nor a folder"),
    ("[data]", "[data]\ntokenizer = \"broken.json\"", "not a tokenizer.json"),
    ("preset = \"gpt2-mini\"", "from = \"code\"", "config.json"),
    ("preset = \"gpt2-mini\"", "from = \"llama\"", "model_type"),
];

fn lay(folder: &Path) {
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    write("text.txt", text::words(20_000).as_bytes());
    write("tiny.txt", b"four words of text");
    write("image.png", b"\x89PNG\r\n\x1a\n0000000000");
    write("some.jsonl", b"{\"body\": \"a text\"}\n");
    write("odd.bin", &[0; 4001]);
    write("large.bin", &60_000u16.to_le_bytes().repeat(2000));
    write("few.bin", &[1, 0, 2, 0]);
    write("broken.json", b"{\"model\": ");
    for name in ["code", "llama"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    write("code/main.rs", b"fn main() {}");
    write("llama/config.json", b"{\"model_type\": \"llama\"}");
    write("llama/model.safetensors", b"\x02\0\0\0\0\0\0\0{}");
}

fn run(job: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckptd"));
    command.args(["run", "-q"]).arg(job).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn what_the_worker_refuses_is_placed_in_the_job_file_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    lay(folder.path());
    for (n, (right, wrong, helps)) in WRONG.iter().enumerate() {
        let job = folder.path().join(format!("job-{n}.toml"));
        let text = JOB.replacen(right, wrong, 1);
        assert_ne!(text, JOB);
        std::fs::write(&job, &text).unwrap();
        let output = run(&job);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{wrong}: {said}");
        // The key that is wrong is the last of those that were written, or the one in the place.
        let wrong = wrong.lines().last().unwrap();
        let line = text.lines().position(|line| line == wrong).unwrap() + 1;
        let section = text.lines().take(line).filter(|line| line.starts_with('[')).last().unwrap();
        let place = format!("ckptd: {}: line {line}: {section} {wrong}: ", job.display());
        assert!(said.contains(&place) && said.contains(helps), "{place}\n{helps}\n{said}");
        assert!(said.lines().count() <= 3, "{said}");
    }
}
