//! Snapshots outlive the machine: a job whose folder is gone goes on from its remote to the same root.

use std::path::{Path, PathBuf};

use ckptd_testkit::servers::{Fault, FaultProxy, ObjectServer, Rule, ssh_in};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::AgentJob;

/// A folder that is the remote of jobs.
struct Remote(tempfile::TempDir);

impl Remote {
    fn new() -> Remote {
        let remote = Remote(tempfile::tempdir().unwrap());
        std::fs::create_dir(remote.path()).unwrap();
        remote
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("job")
    }

    fn url(&self) -> String {
        format!("file://{}", self.path().display())
    }

    fn section(&self) -> String {
        section(&self.url())
    }

    fn list(&self, job: &AgentJob) -> Value {
        list(job, &self.url(), &[])
    }
}

fn section(url: &str) -> String {
    format!("[remote]\nurl = {url:?}\nlease = \"2s\"")
}

fn list(job: &AgentJob, url: &str, environment: &[(&str, &str)]) -> Value {
    let mut command = job.command(&["list", "--json", "--remote", url]);
    let output = command.envs(environment.iter().copied()).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output.stderr)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_store_that_is_deleted_after_a_kill_comes_back_and_ends_in_the_undisturbed_root() {
    const STEPS: u64 = 200;
    let (folder, server) = (Remote::new(), ObjectServer::start());
    let endpoint = server.url();
    let cloud = s3_environment(&endpoint);
    let root = AgentJob::undisturbed_root(STEPS);
    let (behind_ssh, tools) = (Remote::new(), tempfile::tempdir().unwrap());
    let path = ssh_in(tools.path());
    let ssh = path.as_ref().map(|path| [("PATH", path.as_str())]);
    let mut remotes = vec![(folder.url(), &[][..]), ("s3://bucket/a/job".into(), &cloud[..])];
    remotes.extend(ssh.as_ref().map(|ssh| (format!("sftp://me@host{}", behind_ssh.path().display()), &ssh[..])));
    for (url, environment) in remotes {
        let job = AgentJob::new(STEPS, &section(&url));
        let mut run = job.start_with(environment);
        run.wait_for_step("replicated step ", 20);
        run.signal(Signal::KILL);
        assert_eq!(run.wait().code, None);
        std::fs::remove_dir_all(job.store()).unwrap();
        let mut next = job.start_with(environment);
        next.wait_for("fetched step");
        next.wait_for("resuming from step");
        let ended = next.wait();
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        assert_eq!(job.json("list")[0]["root"], root);
        assert!(ended.log.contains(&format!("step {STEPS} is verified here and at {url}")), "{}", ended.log);
        let rows = list(&job, &url, environment);
        assert_eq!(rows[0]["root"], root);
        assert!(rows[0]["step"] == STEPS && rows[0]["state"] == "verified" && rows[0]["epoch"] == 2, "{rows}");
        // What [remote] keep_last and keep_best say.
        let because = |row: &Value| row["kept_because"].to_string();
        assert!((3..=4).contains(&rows.as_array().unwrap().len()), "{rows}");
        assert!(rows.as_array().unwrap().iter().skip(3).all(|row| because(row).contains("best")), "{rows}");
        // What is where is known after the session, too.
        let status = job.json("status");
        assert!(status["remote"]["place"] == url && status["remote"]["step"] == STEPS, "{status}");
        assert!(!ended.log.contains(SECRET));
    }
}

#[test]
fn a_machine_with_nothing_but_the_url_waits_for_the_lease_and_goes_on_where_another_one_was_killed() {
    let (folder, server) = (Remote::new(), ObjectServer::start());
    let endpoint = server.url();
    let cloud = s3_environment(&endpoint);
    let root = AgentJob::undisturbed_root(200);
    for (url, environment) in [(folder.url(), &[][..]), ("s3://bucket/a/job".into(), &cloud[..])] {
        let (one, here) = (AgentJob::new(200, &section(&url)), tempfile::tempdir().unwrap());
        let config = one.config().to_string_lossy().into_owned();
        let start = |arguments: &[&str]| {
            let mut command = one.apart(&[&["run", "--log-format", "json"], arguments].concat());
            command.envs(environment.iter().copied());
            ckptd_testkit::job::RunningAgent::start(command)
        };
        let mut first = start(&[&config]);
        first.wait_for_step("replicated step ", 20);
        first.pass(std::time::Duration::from_millis(
            ckptd_testkit::random::SeededRandom::new(std::process::id().into()).below(300),
        ));
        first.signal(Signal::KILL);
        assert_eq!(first.wait().code, None);
        let newest = list(&one, &url, environment)[0].clone();
        std::fs::remove_dir_all(one.store()).unwrap();
        let there = here.path().join("there");
        let mut second = start(&["--allow-commands", "--folder", there.to_str().unwrap(), &url]);
        if AgentJob::can_be_apart() {
            second.wait_for("waiting for it to be free");
        }
        second.wait_for(&format!("fetched step {}", newest["step"]));
        let ended = second.wait();
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        let rows = one.ckptd(&["list", "--json", &there.join("store").to_string_lossy()]);
        let rows: Value = serde_json::from_slice(&rows.stdout).unwrap();
        assert_eq!(rows[0]["root"], root);
    }
}

/// What nothing may show.
const SECRET: &str = "planted/secret/of/s3";

/// The variables by which an S3 of one's own is reached.
pub fn s3_environment(endpoint: &str) -> [(&str, &str); 3] {
    [("AWS_ENDPOINT_URL", endpoint), ("AWS_ACCESS_KEY_ID", "AKIAPLANTEDKEYID"), ("AWS_SECRET_ACCESS_KEY", SECRET)]
}

#[test]
fn a_store_that_ignores_conditions_is_refused_before_anything_is_trained() {
    let server = ObjectServer::start();
    server.set(|behaviour| behaviour.ignores_conditions = true);
    let endpoint = server.url();
    let (url, environment) = ("s3://bucket/job", s3_environment(&endpoint));
    let job = AgentJob::new(20, &section(url));
    let ended = job.start_with(&environment).wait();
    assert_eq!(ended.code, Some(78), "{}", ended.log);
    assert!(ended.log.contains("ignores the conditions of a write"), "{}", ended.log);
    assert!(!server.state().paths().iter().any(|path| path.contains("check-")), "the probe leaves nothing behind");
    let check = job.command(&["remote", "check", url]).envs(environment).output().unwrap();
    assert_eq!(check.status.code(), Some(1), "{}", text(&check.stdout));
    // Who sees to it that one machine runs the job may do without.
    let job = job.with("lease = \"2s\"", "lease = \"none\"");
    let ended = job.start_with(&environment).wait();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains(&format!("step 20 is verified here and at {url}")), "{}", ended.log);
}

/// A trouble of a remote: what it is, how it begins and ends, and what is said of it.
struct Trouble<'a> {
    name: &'static str,
    begins: &'a dyn Fn(),
    ends: &'a dyn Fn(),
    says: [&'static str; 2],
}

#[test]
fn each_trouble_of_a_remote_is_told_once_with_what_to_do_and_all_is_there_when_it_is_over() {
    let server = ObjectServer::start();
    let proxy = FaultProxy::start(&server.url());
    let home = tempfile::tempdir().unwrap();
    let keys = home.path().join("credentials");
    let key = |id: &str| {
        let text = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {SECRET}/{id}\n");
        std::fs::write(&keys, text).unwrap();
    };
    key("AKIATHEFIRST");
    server.set(|behaviour| behaviour.only_key = Some("AKIATHEFIRST"));
    let (endpoint, url) = (proxy.url(), "s3://bucket/job");
    let home = home.path().to_str().unwrap();
    let file = keys.to_str().unwrap();
    let environment = [("AWS_ENDPOINT_URL", &*endpoint), ("HOME", home), ("AWS_SHARED_CREDENTIALS_FILE", file)];
    let refuses = |refusal| server.set(|behaviour| behaviour.refuses_writes = refusal);
    let ahead = |seconds| server.set(|behaviour| behaviour.clock_ahead_s = seconds);
    let link_down = || proxy.set(["GET", "HEAD", "PUT", "POST", "DELETE"].map(|m| Rule::always(m, "", Fault::Reset)));
    let troubles = [
        Trouble {
            name: "the link is down",
            begins: &link_down,
            ends: &|| proxy.set([]),
            says: ["failed", "see whether this machine's network and the store work"],
        },
        Trouble {
            name: "credentials expire",
            begins: &|| server.set(|behaviour| behaviour.only_key = Some("AKIATHESECOND")),
            ends: &|| key("AKIATHESECOND"),
            says: ["400 Bad Request", "new ones in"],
        },
        Trouble {
            name: "the quota is used up",
            begins: &|| refuses(Some((403, "QuotaExceeded"))),
            ends: &|| refuses(None),
            says: ["QuotaExceeded", "raise its quota"],
        },
        Trouble {
            name: "the clock is off",
            begins: &|| ahead(1230),
            ends: &|| ahead(0),
            says: ["off by 20 minutes, behind the store's", "set this machine's clock"],
        },
    ];
    let job = AgentJob::new(50_000, &section(url));
    let mut run = job.start_with(&environment);
    run.wait_for_step("replicated step ", 10);
    for trouble in &troubles {
        (trouble.begins)();
        let told = run.wait_for("not replicated for now");
        let name = trouble.name;
        assert!(trouble.says.iter().all(|words| told.contains(words)), "{name}: {told}");
        let status = job.json("status");
        assert!(status["remote"]["problem"].is_string() && status["state"] == "training", "{name}: {status}");
        let step = status["step"].as_u64().unwrap();
        while job.json("status")["step"].as_u64().unwrap() < step + 20 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        (trouble.ends)();
        run.wait_for("replication works again");
        run.wait_for("replicated step");
        assert!(job.json("status")["remote"]["problem"].is_null(), "{name}");
    }
    server.state().clear();
    let told = run.wait_for("was emptied");
    assert!(told.contains(url) && told.contains("see who removes objects there"), "{told}");
    run.wait_for("this process owns");
    run.wait_for("replicated step");
    run.signal(Signal::TERM);
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains(&format!("is verified here and at {url}")), "{}", ended.log);
    for (words, times) in [("not replicated for now", 4), ("replication works again", 4), ("was emptied", 1)] {
        assert_eq!(ended.log.matches(words).count(), times, "{words}: {}", ended.log);
    }
    assert!(!ended.log.contains(SECRET), "{}", ended.log);
    // A session may begin under a trouble, too: it goes on from what is here.
    refuses(Some((403, "QuotaExceeded")));
    let mut run = job.start_with(&environment);
    let told = run.wait_for("not replicated for now");
    assert!(told.contains("raise its quota"), "{told}");
    refuses(None);
    run.wait_for("replication works again");
    run.wait_for("replicated step");
    run.signal(Signal::TERM);
    let ended = run.wait();
    assert!(ended.code == Some(75) && ended.log.contains("resuming from step"), "{}", ended.log);
    let paths = server.state().paths();
    for object in ["run.json", "job.json", "lease.json"] {
        assert!(paths.iter().any(|path| path.ends_with(object)), "{object}: {paths:?}");
    }
}

#[test]
fn a_machine_that_is_cut_off_loses_the_job_is_told_and_one_history_remains() {
    const STEPS: u64 = 500;
    let server = ObjectServer::start();
    let proxy = FaultProxy::start(&server.url());
    let (near, far) = (proxy.url(), server.url());
    let (url, direct) = ("s3://bucket/job", s3_environment(&far));
    let (one, other) = (AgentJob::new(STEPS, &section(url)), AgentJob::new(STEPS, &section(url)));
    let mut first = one.start_with(&s3_environment(&near));
    first.wait_for_step("replicated step ", 10);
    proxy.set(["GET", "HEAD", "PUT", "POST", "DELETE"].map(|method| Rule::always(method, "", Fault::Reset)));
    // The other one waits until the first has given no sign of life for the whole time.
    let mut second = other.start_with(&direct);
    second.wait_for("waiting for it to be free");
    second.wait_for("resuming from step");
    proxy.set([]);
    let ended = first.wait();
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    assert!(ended.log.contains(&format!("process {} of ", second.pid())), "{}", ended.log);
    let ended = second.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(other.json("list")[0]["root"], AgentJob::undisturbed_root(STEPS));
    let rows = list(&other, url, &direct);
    let counts = rows.as_array().unwrap().iter().filter(|row| row["orphan"] == false);
    assert!(counts.clone().count() >= 3 && counts.clone().all(|row| row["epoch"] == 2), "{rows}");
}

#[test]
fn of_a_remote_job_file_nothing_is_run_unless_that_is_allowed() {
    let remote = Remote::new();
    let job = AgentJob::new(200, &remote.section());
    let mut run = job.start();
    run.wait_for_step("replicated step ", 20);
    run.signal(Signal::KILL);
    run.wait();
    let url = remote.url();
    let here = tempfile::tempdir().unwrap();
    let run_url = |name: &str, more: &[&str]| {
        let folder = here.path().join(name);
        let folder = folder.to_str().unwrap();
        job.ckptd(&[&["run", "--folder", folder, &url][..], more].concat())
    };
    // Somebody who may write there plants commands.
    let file = remote.path().join("job.json");
    let whole: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let touched = here.path().join("touched");
    let mut planted = whole.clone();
    planted["config"]["worker"]["command"] = serde_json::json!(["touch", touched]);
    planted["config"]["worker"]["max_restarts"] = 0.into();
    planted["config"]["ranks"] = serde_json::json!({ "launcher": ["touch", touched] });
    planted["config"]["hooks"] = serde_json::json!({ "on": { "verified": ["touch", touched] } });
    planted["config"]["job"]["store"] = here.path().join("escaped").to_str().into();
    std::fs::write(&file, planted.to_string()).unwrap();
    let ended = run_url("planted", &[]);
    let said = text(&ended.stderr);
    assert!(said.matches("touched").count() >= 3 && said.contains("--allow-commands"), "{said}");
    assert!(!touched.exists() && !here.path().join("escaped").exists(), "{said}");
    assert!(here.path().join("planted/store").is_dir());
    // The job's own worker, taken on request.
    std::fs::write(&file, whole.to_string()).unwrap();
    let ended = run_url("allowed", &["--allow-commands"]);
    assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
    let store = here.path().join("allowed/store");
    let rows = job.ckptd(&["list", "--json", &store.to_string_lossy()]);
    let rows: Value = serde_json::from_slice(&rows.stdout).unwrap();
    assert_eq!(rows[0]["root"], AgentJob::undisturbed_root(200));
}

#[test]
fn a_damaged_newest_snapshot_at_the_remote_is_passed_over_and_told() {
    let remote = Remote::new();
    let job = AgentJob::new(40, &remote.section());
    assert_eq!(job.run().code, Some(0));
    let root = job.json("list")[0]["root"].clone();
    let newest = remote.list(&job)[0]["file"].as_str().unwrap().strip_prefix("file://").map(PathBuf::from).unwrap();
    flip(&newest);
    let verified = job.ckptd(&["verify", "--remote", &remote.url()]);
    assert_eq!(verified.status.code(), Some(1));
    assert!(text(&verified.stdout).contains("step 40: damaged:"), "{}", text(&verified.stdout));
    std::fs::remove_dir_all(job.store()).unwrap();
    let ended = job.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("passed over for the next older one"), "{}", ended.log);
    assert_eq!(job.json("list")[0]["root"], root);
}

#[test]
fn a_second_machine_waits_for_the_owner_and_a_take_over_ends_the_first() {
    let remote = Remote::new();
    let (one, other) = (AgentJob::new(2000, &remote.section()), AgentJob::new(2000, &remote.section()));
    let mut first = one.start();
    first.wait_for_step("replicated step ", 10);
    let mut second = other.start();
    second.wait_for("waiting for it to be free");
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code, Some(75));
    let mut command = other.command(&["run", "--take-over", "--log-format", "json", &other.config().to_string_lossy()]);
    command.stdin(std::process::Stdio::null());
    let mut second = ckptd_testkit::job::RunningAgent::start(command);
    second.wait_for("resuming from step");
    let ended = first.wait();
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    assert!(ended.log.contains("goes on with this training: this machine stops"), "{}", ended.log);
    assert!(ended.log.contains(&format!("process {} of ", second.pid())), "{}", ended.log);
    second.wait_for("replicated step");
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code, Some(75));
    // The first one comes back, and goes on from what the second one has done.
    let newest = remote.list(&other)[0].clone();
    let mut first = one.start();
    first.wait_for(&format!("fetched step {}", newest["step"]));
    first.signal(Signal::TERM);
    first.wait();
}

#[test]
fn push_fetch_prune_check_and_adopt_work_on_a_remote_alone() {
    let remote = Remote::new();
    let job = AgentJob::new(20, "");
    assert_eq!(job.run().code, Some(0));
    let store = job.store().to_string_lossy().into_owned();
    let root = job.json("list")[0]["root"].clone();
    let check = job.ckptd(&["remote", "check", "--json", &remote.url()]);
    assert_eq!(check.status.code(), Some(0), "{}{}", text(&check.stdout), text(&check.stderr));
    let pushed = job.ckptd(&["push", "--json", &store, &remote.url()]);
    assert_eq!(pushed.status.code(), Some(0), "{}", text(&pushed.stderr));
    let pushed: Value = serde_json::from_slice(&pushed.stdout).unwrap();
    assert!(pushed["root"] == root && pushed["state"] == "verified", "{pushed}");
    let elsewhere = job.store().with_file_name("elsewhere");
    let fetched = job.ckptd(&["fetch", "--json", &remote.url(), &elsewhere.to_string_lossy()]);
    assert_eq!(fetched.status.code(), Some(0), "{}", text(&fetched.stderr));
    let fetched: Value = serde_json::from_slice(&fetched.stdout).unwrap();
    assert!(fetched["root"] == root && fetched["fetched"] == true, "{fetched}");
    let again = job.ckptd(&["fetch", &remote.url(), &elsewhere.to_string_lossy()]);
    assert!(text(&again.stdout).contains("is as new as"), "{}", text(&again.stdout));
    // Another training does not go to the same place.
    let stranger = AgentJob::new(20, "");
    assert_eq!(stranger.run().code, Some(0));
    let refused = job.ckptd(&["push", &stranger.store().to_string_lossy(), &remote.url()]);
    assert_eq!(refused.status.code(), Some(78));
    assert!(text(&refused.stderr).contains("give each training a URL of its own"), "{}", text(&refused.stderr));
    // A copy without markers becomes as good as the original.
    let copy = Remote::new();
    std::fs::create_dir(copy.path().join("data")).unwrap();
    for entry in std::fs::read_dir(remote.path().join("data")).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, copy.path().join("data").join(from.file_name().unwrap())).unwrap();
    }
    let adopted = job.ckptd(&["remote", "adopt", &copy.url()]);
    assert_eq!(adopted.status.code(), Some(0), "{}", text(&adopted.stderr));
    assert_eq!(copy.list(&job)[0]["root"], root);
}
