//! What MKL chooses at its first call, it chooses while one thread alone is using it: it would answer a second thread
//! wrongly for a moment, and a step would differ in its last bits (see `device`).
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used)]

use std::process::Command;

/// Stands before MKL's own detection of the processor: says which thread asks (0: the main thread), and takes its time,
/// so that every other thread that needs the answer then asks as well.
const DETECTOR: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
extern "C" int mkl_serv_vml_cpu_detect() {
    FILE *asked = fopen(getenv("ASKED"), "a");
    fprintf(asked, "%ld\n", syscall(SYS_gettid) - getpid());
    fclose(asked);
    usleep(500000);
    return reinterpret_cast<int (*)()>(dlsym(RTLD_NEXT, "mkl_serv_vml_cpu_detect"))();
}
"#;

const CONFIG: &str = r#"
[job]
store = "store"
threads = 2
[model]
preset = "gpt2-mini"
[data]
text = ["text.txt"]
cache = "cache"
[train]
steps = 2
batch_size = 2
sequence_length = 64
"#;

#[test]
fn mkl_chooses_its_code_before_a_second_thread_can_ask() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    std::fs::write(at("detector.cc"), DETECTOR).unwrap();
    let mut compiler = Command::new("g++");
    compiler.args(["-shared", "-fPIC", "-o"]).args([at("detector.so"), at("detector.cc")]).arg("-ldl");
    assert!(compiler.status().unwrap().success());
    let text: String = (0..20_000).map(|i| format!("{} ", (i * i / 7) % 1013)).collect();
    std::fs::write(at("text.txt"), text).unwrap();
    std::fs::write(at("job.toml"), CONFIG).unwrap();

    let mut trainer = Command::new(env!("CARGO_BIN_EXE_ckptd-gpt2"));
    trainer.arg("--config").arg(at("job.toml")).current_dir(work.path());
    let output = trainer.env("LD_PRELOAD", at("detector.so")).env("ASKED", at("asked")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // It trained, and so it computed exp on both threads.
    assert!(String::from_utf8_lossy(&output.stdout).contains(r#""step":2"#));
    assert_eq!(
        std::fs::read_to_string(at("asked")).unwrap(),
        "0\n",
        "each thread that asked, by its distance from main"
    );
}
