//! Servers that other people wrote: azurite (npm), moto (PyPI), OpenSSH's sftp-server, Prometheus, chromedriver.
//!
//! Invariant: what is started here is ended by its process id. A program that is not installed is named, with how it is
//! installed, and its tests are left out.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::date::http_date;
use super::port::free_port;

const START_LIMIT: Duration = Duration::from_secs(60);
/// Ports that a program is started on, one after the other.
const ATTEMPTS: usize = 4;

/// A running program.
pub struct Program {
    child: Child,
    port: u16,
}

impl Program {
    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes a bucket (moto).
    pub fn make_bucket(&self, name: &str) {
        self.ask(&format!("PUT /{name} HTTP/1.1\r\n"));
    }

    /// Makes a container of the emulated account (azurite), whose key is given.
    pub fn make_container(&self, name: &str, key: &str) {
        let date = http_date(jiff::Timestamp::now());
        let named = format!("x-ms-date:{date}\nx-ms-version:2021-08-06\n");
        let account = "devstoreaccount1";
        let signed = format!("PUT\n\n\n\n\n\n\n\n\n\n\n\n{named}/{account}/{account}/{name}\nrestype:container");
        let key = BASE64_STANDARD.decode(key).expect("the key is base64");
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
        let signature = BASE64_STANDARD.encode(ring::hmac::sign(&key, signed.as_bytes()));
        self.ask(&format!(
            "PUT /{account}/{name}?restype=container HTTP/1.1\r\nx-ms-date: {date}\r\nx-ms-version: 2021-08-06\r\n\
             Authorization: SharedKey {account}:{signature}\r\n"
        ));
    }

    /// Makes a request without a body, which must succeed.
    fn ask(&self, head: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the program listens");
        let rest = format!("Host: 127.0.0.1:{}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", self.port);
        stream.write_all(format!("{head}{rest}").as_bytes()).expect("the program takes a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the program answers");
        assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The group was made for it: what it started ends with it.
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// The project's cache of downloads.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache")
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|program| program.is_file())
}

fn found(program: &str, in_cache: &str, install: &str) -> Option<PathBuf> {
    let cached = cache().join(in_cache);
    let found = cached.is_file().then_some(cached).or_else(|| in_path(program));
    if found.is_none() {
        eprintln!("{program} is not installed, and its tests are left out; install it with: {install}");
    }
    found
}

/// OpenSSH's server of files, which speaks on its standard input and output; none where it is not installed.
pub fn sftp_server() -> Option<PathBuf> {
    let usual = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"];
    let usual = usual.iter().map(PathBuf::from).find(|path| path.is_file());
    usual.or_else(|| found("sftp-server", "openssh/usr/lib/openssh/sftp-server", "apt-get install openssh-sftp-server"))
}

/// A PATH with an `ssh` in `folder` that reaches this machine whatever host is asked for; none without OpenSSH's server
/// of files.
pub fn ssh_in(folder: &Path) -> Option<String> {
    let server = sftp_server()?;
    let ssh = folder.join("ssh");
    std::fs::write(&ssh, format!("#!/bin/sh\nexec {}\n", server.display())).expect("the folder can be written to");
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&ssh, all).expect("the file is ours");
    Some(format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default()))
}

/// Azurite with its files in `folder`; none where it is not installed.
pub fn azurite(folder: &Path) -> Option<Program> {
    let script = "azurite/node_modules/azurite/dist/src/blob/main.js";
    let program = found("azurite-blob", script, "scripts/setup.sh full")?;
    let is_script = program.extension().is_some_and(|extension| extension == "js");
    Some(start(|port| {
        let mut command = if is_script { Command::new("node") } else { Command::new(&program) };
        if is_script {
            command.arg(&program);
        }
        command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--location"]).arg(folder);
        command.args(["--silent", "--skipApiVersionCheck", "--disableTelemetry"]);
        command
    }))
}

/// Moto's S3; none where it is not installed.
pub fn moto() -> Option<Program> {
    let program = found("moto_server", "moto/bin/moto_server", "scripts/setup.sh full")?;
    Some(start(|port| {
        let mut command = Command::new(&program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        command
    }))
}

/// Prometheus, configured by the file `prometheus.yml` in `folder`, where it keeps its data; none where it is not
/// installed.
pub fn prometheus(folder: &Path) -> Option<Program> {
    let program = found("prometheus", "prometheus/usr/bin/prometheus", "apt-get install prometheus")?;
    let (config, data) = (folder.join("prometheus.yml"), folder.join("data"));
    Some(start(|port| {
        let mut command = Command::new(&program);
        command.arg("--config.file").arg(&config).arg("--storage.tsdb.path").arg(&data);
        command.args(["--web.listen-address", &format!("127.0.0.1:{port}")]);
        command
    }))
}

/// What checks metrics and rules of Prometheus; none where it is not installed.
pub fn promtool() -> Option<PathBuf> {
    found("promtool", "prometheus/usr/bin/promtool", "apt-get install prometheus")
}

/// What drives Chromium, and which Chromium: without windows, or the whole of it. None where one of the two is not
/// installed.
pub fn chromedriver() -> Option<(Program, PathBuf)> {
    let install = "apt-get install chromium chromium-driver";
    let browser = in_path("chromium-headless-shell");
    let browser = browser.or_else(|| found("chromium", "chromium/usr/bin/chromium", install))?;
    let program = found("chromedriver", "chromium/usr/bin/chromedriver", install)?;
    let driver = start(|port| {
        let mut command = Command::new(&program);
        command.arg(format!("--port={port}"));
        command
    });
    Some((driver, browser))
}

/// Starts what `command` makes for a port, and waits until it listens there.
fn start(command: impl Fn(u16) -> Command) -> Program {
    let started = (0..ATTEMPTS).find_map(|_| {
        let port = free_port();
        start_at(command(port), port)
    });
    started.expect("the program listens on one of the ports")
}

/// None where it ends, as it does if somebody else has the port by now.
fn start_at(mut command: Command, port: u16) -> Option<Program> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut program = Program { child: command.spawn().expect("the program can be started"), port };
    let begun = Instant::now();
    loop {
        let listens = TcpStream::connect(("127.0.0.1", port)).is_ok();
        if let Some(ended) = program.child.try_wait().expect("a child can be asked") {
            eprintln!("{command:?} does not listen: {ended}");
            return None;
        }
        if listens {
            return Some(program);
        }
        assert!(begun.elapsed() < START_LIMIT, "{command:?} does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
}
