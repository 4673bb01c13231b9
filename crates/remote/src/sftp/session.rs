//! One connection: a running `ssh`, and the SFTP session on its standard input and output.
//!
//! Invariant: an unknown or changed host key ends the connection; no password is ever asked for.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use russh_sftp::client::error::Error as SftpError;
use russh_sftp::client::{Config, RawSftpSession};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};

use crate::settings::RemoteSettings;

/// What is kept of what `ssh` says.
const MAX_SAID: usize = 2000;
const POSIX_RENAME: &str = "posix-rename@openssh.com";

/// Where a server is.
#[derive(Clone, Debug)]
pub struct Server {
    pub user: Option<String>,
    pub host: String,
    pub port: Option<u16>,
}

/// A failed call.
#[derive(Clone, Debug)]
pub struct Failure {
    pub error: SftpError,
    /// What `ssh` said on its standard error.
    pub said: String,
    /// The server has no room for what was written.
    pub is_full: bool,
}

/// An open connection.
pub struct Session {
    pub raw: RawSftpSession,
    pub has_fsync: bool,
    pub has_hardlink: bool,
    pub has_posix_rename: bool,
    pub has_statvfs: bool,
    said: Arc<Mutex<String>>,
    _ssh: Child, // ends with the session
}

impl Session {
    /// Connects.
    pub async fn connect(server: &Server, settings: &RemoteSettings) -> Result<Session, Failure> {
        let said = Arc::new(Mutex::new(String::new()));
        let failed = |error: SftpError, said: &Mutex<String>| Failure { error, said: text(said), is_full: false };
        let mut command = command(server, settings);
        let mut ssh =
            command.spawn().map_err(|e| failed(SftpError::IO(format!("ssh cannot be started: {e}")), &said))?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (ssh.stdin.take(), ssh.stdout.take(), ssh.stderr.take()) else {
            return Err(failed(SftpError::IO("ssh has no pipes".into()), &said));
        };
        let listening = tokio::spawn(listen(stderr, Arc::clone(&said)));
        let config = Config { request_timeout_secs: settings.stall.as_secs().max(1), ..Config::default() };
        let raw = RawSftpSession::new_with_config(tokio::io::join(stdout, stdin), config);
        let version = match raw.init().await {
            Ok(version) => version,
            Err(e) => {
                // What ssh says of it may still be on its way.
                let _ = ssh.start_kill();
                let _ = listening.await;
                return Err(failed(e, &said));
            }
        };
        let has = |name: &str| version.extensions.contains_key(name);
        Ok(Session {
            has_fsync: has("fsync@openssh.com"),
            has_hardlink: has("hardlink@openssh.com"),
            has_posix_rename: has(POSIX_RENAME),
            has_statvfs: has("statvfs@openssh.com"),
            raw,
            said,
            _ssh: ssh,
        })
    }

    /// What a call on this session came to.
    pub fn failure(&self, error: SftpError) -> Failure {
        Failure { error, said: text(&self.said), is_full: false }
    }
}

fn text(said: &Mutex<String>) -> String {
    said.lock().unwrap_or_else(PoisonError::into_inner).trim().to_owned()
}

fn command(server: &Server, settings: &RemoteSettings) -> Command {
    let program = settings.ssh.first().map_or("ssh", String::as_str);
    let mut command = Command::new(program);
    command.args(settings.ssh.iter().skip(1));
    let connect = format!("ConnectTimeout={}", settings.connect_timeout.as_secs().max(1));
    let alive = format!("ServerAliveInterval={}", (settings.stall.as_secs() / 3).max(1));
    for option in ["BatchMode=yes", "StrictHostKeyChecking=yes", &connect, &alive, "ServerAliveCountMax=3"] {
        command.args(["-o", option]);
    }
    if let Some(port) = server.port {
        command.args(["-p", &port.to_string()]);
    }
    if let Some(user) = &server.user {
        command.args(["-l", user]);
    }
    command.args(["-s", "--", server.host.trim_matches(['[', ']']), "sftp"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn listen(mut stderr: ChildStderr, said: Arc<Mutex<String>>) {
    let mut buffer = [0; 512];
    while let Ok(bytes @ 1..) = stderr.read(&mut buffer).await {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() < MAX_SAID {
            said.push_str(&String::from_utf8_lossy(&buffer[..bytes]));
        }
    }
}
