//! No credential is seen: planted ones are looked for in what every command on a remote says, in what it leaves, and in
//! what it starts.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use ckptd_testkit::servers::{Fault, FaultProxy, ObjectServer, Rule};
use rustix::process::Signal;

use crate::harness::AgentJob;

/// Every emulator of Azure has this key: it is the one that a test can use with success.
const AZURITE_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const SAS: &str = "sv=2024-01-01&sp=rw&sig=plantedSasSignature%2Flong%3D";

/// Credentials, and the remote that they are for.
struct Planted<'a> {
    url: &'static str,
    environment: Vec<(&'static str, String)>,
    secrets: Vec<&'static str>,
    proxy: &'a FaultProxy,
    /// Whether the server takes them.
    works: bool,
}

impl Planted<'_> {
    /// None of `text` is a secret, whole or as it stands in a URL.
    fn assert_clean(&self, what: &str, text: &str) {
        for secret in &self.secrets {
            let encoded = secret.replace('/', "%2F").replace('=', "%3D").replace('+', "%2B");
            let is_there = text.contains(secret) || text.contains(&encoded);
            assert!(!is_there, "{}: {what}: {secret} in {text}", self.url);
        }
    }

    /// Each command on the remote, at the most that can be logged; whether all of them succeeded, or all failed.
    fn all_commands(&self, job: &AgentJob, succeed: bool) {
        let run = self.command(job, &["run", "--log-format", "json", &job.config().to_string_lossy()]);
        assert_eq!(run.status.success(), succeed, "{}: {}", self.url, String::from_utf8_lossy(&run.stderr));
        let store = job.store().to_string_lossy().into_owned();
        let other = job.store().with_file_name("other").to_string_lossy().into_owned();
        for arguments in [
            &["list", "--json", "--remote", self.url][..],
            &["verify", "--remote", self.url],
            &["push", &store, self.url],
            &["fetch", self.url, &other],
            &["prune", "--remote", &job.config().to_string_lossy()],
            &["remote", "check", self.url],
            &["remote", "adopt", self.url],
            &["run", "--folder", &format!("{other}.job"), self.url],
        ] {
            // A worker that trains nothing is not taken from the remote: this ends without a worker of its own.
            let is_run = arguments[0] == "run";
            let ended = self.command(job, arguments);
            let said = String::from_utf8_lossy(&ended.stderr);
            assert!(is_run || ended.status.success() == succeed, "{arguments:?}: {:?}: {said}", ended.status);
        }
        self.assert_clean_files(job.config().parent().unwrap());
    }

    fn command(&self, job: &AgentJob, arguments: &[&str]) -> Output {
        let mut command = job.command(arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).env("RUST_LOG", "trace");
        command.env("HOME", job.config().with_file_name("home"));
        let ended = command.output().unwrap();
        self.assert_clean(&arguments.join(" "), &String::from_utf8_lossy(&ended.stdout));
        self.assert_clean(&arguments.join(" "), &String::from_utf8_lossy(&ended.stderr));
        ended
    }

    fn assert_clean_files(&self, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.metadata().unwrap() {
                attributes if attributes.is_dir() => self.assert_clean_files(&path),
                attributes if attributes.is_file() => {
                    let bytes = std::fs::read(&path).unwrap();
                    self.assert_clean(&path.to_string_lossy(), &String::from_utf8_lossy(&bytes));
                }
                _ => {}
            }
        }
    }

    fn try_all(&self) {
        let section = format!("[remote]\nurl = {:?}\nlease = \"2s\"\n[log]\nlevel = \"debug\"", self.url);
        let job = AgentJob::new(20, &section);
        if self.works {
            self.proxy.set([]);
            self.all_commands(&job, true);
        }
        // A server that quotes everything that it is sent, and more.
        let quoted = self.secrets.join(" ");
        let answer = format!("<Error><Code>AccessDenied</Code><Message>bad: {quoted}</Message></Error>");
        for answer in [answer, quoted] {
            let answer: &'static str = Box::leak(answer.into_boxed_str());
            self.proxy.set([Rule::always("", "", Fault::Status(403, answer))]);
            let job = AgentJob::new(20, &section);
            std::fs::create_dir_all(job.store()).unwrap();
            self.all_commands(&job, false);
        }
    }
}

/// Files that hold credentials, by name.
fn plant_files(folder: &Path) -> [String; 2] {
    let profile = "[default]\naws_access_key_id = AKIAPLANTEDPROFILE\naws_secret_access_key = planted/profile/secret\n\
                   aws_session_token = planted-profile-session-token\n";
    let key = serde_json::json!({
        "type": "service_account", "private_key": private_key(), "client_email": "me@x",
        "private_key_id": "planted-private-key-id", "disable_oauth": true,
    });
    [("credentials", profile.to_owned()), ("key.json", key.to_string())].map(|(name, text)| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name).to_string_lossy().into_owned()
    })
}

/// A key that the client can read; without openssl one that it cannot.
fn private_key() -> String {
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
    let made = openssl.output().ok().filter(|ended| ended.status.success());
    made.map_or_else(|| "planted-private-key\n".to_owned(), |made| String::from_utf8(made.stdout).unwrap())
}

#[test]
fn planted_credentials_are_in_nothing_that_a_command_on_a_remote_says_or_leaves() {
    let (server, files) = (ObjectServer::start(), tempfile::tempdir().unwrap());
    let [profile, key_file] = plant_files(files.path());
    let proxy = FaultProxy::start(&server.url());
    let of = |url, environment: &[(&'static str, &str)], secrets: &[&'static str]| {
        let environment = environment.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Planted { url, environment, secrets: secrets.to_vec(), proxy: &proxy, works: true }
    };
    let endpoint = proxy.url();
    let keys = ["AKIAPLANTEDKEYID", "planted/secret/of+s3=", "planted-session-token"];
    let aws = [
        ("AWS_ENDPOINT_URL", &*endpoint),
        ("AWS_ACCESS_KEY_ID", keys[0]),
        ("AWS_SECRET_ACCESS_KEY", keys[1]),
        ("AWS_SESSION_TOKEN", keys[2]),
    ];
    of("s3://bucket/keys", &aws, &keys).try_all();
    let profile_keys = ["AKIAPLANTEDPROFILE", "planted/profile/secret", "planted-profile-session-token"];
    let aws = [("AWS_ENDPOINT_URL", &*endpoint), ("AWS_SHARED_CREDENTIALS_FILE", &profile)];
    of("s3://bucket/profile", &aws, &profile_keys).try_all();
    let google = [("STORAGE_EMULATOR_HOST", &*endpoint), ("GOOGLE_APPLICATION_CREDENTIALS", &key_file)];
    let key: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&key_file).unwrap()).unwrap();
    let key: &'static str = Box::leak(key["private_key"].as_str().unwrap().to_owned().into_boxed_str());
    let lines = key.lines().filter(|line| !line.starts_with("-----"));
    let secrets: Vec<&str> = lines.chain(["planted-private-key-id"]).collect();
    let planted = of("gs://bucket/file", &google, &secrets);
    Planted { works: key.contains("BEGIN PRIVATE KEY"), ..planted }.try_all();
    let google = [("STORAGE_EMULATOR_HOST", &*endpoint), ("GOOGLE_OAUTH_ACCESS_TOKEN", "planted-access-token-of-gs")];
    of("gs://bucket/token", &google, &["planted-access-token-of-gs"]).try_all();
    let azure = [
        ("AZURE_STORAGE_ENDPOINT", &*endpoint),
        ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
        ("AZURE_STORAGE_SAS_TOKEN", SAS),
    ];
    let planted = of("az://container/sas", &azure, &["plantedSasSignature%2Flong%3D", "plantedSasSignature/long="]);
    Planted { works: false, ..planted }.try_all();
    let paths = server.state().paths();
    for path in paths {
        let body = server.state().get(&path).unwrap().body.concat();
        assert!(!String::from_utf8_lossy(&body).contains("planted"), "{path}");
    }
}

#[test]
fn an_azure_account_key_is_in_nothing_that_a_command_on_a_remote_says_or_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = ckptd_testkit::servers::azurite(folder.path()) else { return };
    server.make_container("container", AZURITE_KEY);
    let proxy = FaultProxy::start(&server.url());
    let environment = vec![
        ("AZURE_STORAGE_ENDPOINT", format!("{}/devstoreaccount1", proxy.url())),
        ("AZURE_STORAGE_ACCOUNT_NAME", "devstoreaccount1".to_owned()),
        ("AZURE_STORAGE_ACCOUNT_KEY", AZURITE_KEY.to_owned()),
    ];
    Planted { url: "az://container/job", environment, secrets: vec![AZURITE_KEY], proxy: &proxy, works: true }
        .try_all();
}

/// Starts a job on `url`, has the system end it once it trains, and says whether a core was dumped.
fn dumps_a_core(url: &str, environment: &[(&str, &str)]) -> bool {
    let job = AgentJob::new(1_000_000, &format!("[remote]\nurl = {url:?}\nlease = \"2s\""));
    // As far as this user may raise the limit.
    let limit = "ulimit -c $(ulimit -H -c); exec \"$0\" \"$@\"";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", limit, env!("CARGO_BIN_EXE_ckptd"), "run"]).arg(job.config()).current_dir(job.script());
    command.env(crate::worker::SCRIPT, job.script()).envs(environment.iter().copied());
    let mut agent = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let snapshots = job.store().join("snapshots");
    while std::fs::read_dir(&snapshots).map_or(0, Iterator::count) == 0 {
        assert_eq!(agent.try_wait().unwrap(), None, "it ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&agent), Signal::ABORT).unwrap();
    let ended = agent.wait().unwrap();
    assert_eq!(ended.signal(), Some(Signal::ABORT.as_raw()));
    ended.core_dumped()
}

#[test]
fn an_agent_that_holds_credentials_leaves_no_core_dump() {
    let (server, folder) = (ObjectServer::start(), tempfile::tempdir().unwrap());
    if !dumps_a_core(&format!("file://{}", folder.path().display()), &[]) {
        eprintln!("not shown: this machine dumps no core (ulimit -H -c, /proc/sys/kernel/core_pattern)");
    }
    let environment = [
        ("AWS_ENDPOINT_URL", &*server.url()),
        ("AWS_ACCESS_KEY_ID", "planted-key-id"),
        ("AWS_SECRET_ACCESS_KEY", "planted-secret"),
    ];
    assert!(!dumps_a_core("s3://bucket/job", &environment));
}

#[test]
fn ckptds_own_worker_is_started_without_credentials_and_a_users_command_with_its_environment() {
    let variables = [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_CLIENT_SECRET",
        "IDENTITY_HEADER",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_OAUTH_ACCESS_TOKEN",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "CLOUDSDK_AUTH_ACCESS_TOKEN",
    ];
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // In the place of ckptd's own worker: it shows what it was started with, as /proc does, and goes.
    let worker = format!("#!/bin/sh\ntr '\\0' '\\n' < /proc/$$/environ > {}\nexit 1\n", at("environ").display());
    std::fs::write(at("ckptd-gpt2"), worker).unwrap();
    std::fs::set_permissions(at("ckptd-gpt2"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_ckptd"), at("ckptd")).unwrap();
    std::fs::create_dir_all(at("remote/job")).unwrap();
    std::fs::write(at("text"), "a text to train on; ".repeat(4000)).unwrap();
    let started_with = |command: &str| {
        let config = format!(
            "[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"text\"]\n[train]\nsteps = 20\nsequence_length = 32\n\
             [worker]\nmax_restarts = 0\ncommand = {command}\n[remote]\nurl = \"file://{}/job\"\nlease = \"1s\"\n",
            at("remote").display()
        );
        std::fs::write(at("job.toml"), config).unwrap();
        let mut ckptd = std::process::Command::new(at("ckptd"));
        ckptd.arg("run").arg(at("job.toml")).stdin(std::process::Stdio::null());
        let ended = ckptd.envs(variables.map(|name| (name, format!("planted-in-{name}")))).output().unwrap();
        let environ = std::fs::read_to_string(at("environ"));
        let environ = environ.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&ended.stderr)));
        std::fs::remove_file(at("environ")).unwrap();
        environ
    };
    let environ = started_with("[]");
    assert!(environ.contains("PATH=") && !environ.contains("planted-in"), "{environ}");
    let environ = started_with(&format!("[{:?}]", at("ckptd-gpt2")));
    assert!(variables.iter().all(|name| environ.contains(&format!("planted-in-{name}"))), "{environ}");
}
