//! `ckptd remote check` says what is missing and what to do; and the rights of docs/remote.md are those that are used.

use std::collections::BTreeSet;

use ckptd_testkit::servers::ObjectServer;
use serde_json::Value;

use crate::harness::AgentJob;
use crate::remote::s3_environment;

const URL: &str = "s3://bucket/runs/job";

/// The rows of a check, and its exit code.
fn check(job: &AgentJob, endpoint: &str) -> (Vec<Value>, Option<i32>) {
    let output = job.command(&["remote", "check", "--json", URL]).envs(s3_environment(endpoint)).output().unwrap();
    let rows = serde_json::from_slice(&output.stdout);
    (rows.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr))), output.status.code())
}

fn row<'a>(rows: &'a [Value], what: &str) -> &'a Value {
    rows.iter().find(|row| row["what"] == what).unwrap_or_else(|| panic!("{what}: {rows:?}"))
}

#[test]
fn a_check_tells_of_the_rule_for_parts_of_the_clock_and_of_each_right() {
    let server = ObjectServer::start();
    let job = AgentJob::new(20, "");
    let (rows, code) = check(&job, &server.url());
    assert_eq!(code, Some(0), "{rows:?}");
    for what in [
        "create",
        "create refuses what is there",
        "read",
        "swap",
        "swap refuses another version",
        "range",
        "list",
        "delete",
        "upload in parts",
        "abort of an upload",
        "digests",
        "round trip",
        "clock",
    ] {
        assert_eq!(row(&rows, what)["ok"], true, "{what}");
    }
    let note = |rows: &[Value], what| row(rows, what)["note"].as_str().unwrap_or_default().to_owned();
    let parts = "parts that nobody completes";
    assert!(note(&rows, "digests").contains("need not be read back"));
    assert!(note(&rows, parts).contains("put-bucket-lifecycle-configuration"), "{rows:?}");
    assert!(note(&rows, parts).contains("\"Prefix\":\"runs/job\""), "{rows:?}");
    let state =
        |change: Result<&'static str, (u16, &'static str)>| server.set(|behaviour| behaviour.lifecycle = change);
    state(Err((403, "AccessDenied")));
    let (rows, code) = check(&job, &server.url());
    assert_eq!(code, Some(0), "what cannot be seen does not keep a job from training");
    assert!(note(&rows, parts).contains("s3:GetLifecycleConfiguration"), "{rows:?}");
    state(Ok("<LifecycleConfiguration><Rule><Filter><Prefix>runs/</Prefix></Filter><Status>Enabled</Status>\
              <AbortIncompleteMultipartUpload><DaysAfterInitiation>2</DaysAfterInitiation>\
              </AbortIncompleteMultipartUpload></Rule></LifecycleConfiguration>"));
    let (rows, _) = check(&job, &server.url());
    assert_eq!(note(&rows, parts), "they go after 2 days");
    // A clock that signatures still bear, and one that is told.
    server.set(|behaviour| behaviour.clock_ahead_s = -600);
    let (rows, code) = check(&job, &server.url());
    assert_eq!(code, Some(1));
    assert!(row(&rows, "clock")["problem"].as_str().unwrap().contains("10m ahead of the store's"), "{rows:?}");
    assert!(server.state().paths().is_empty() && server.state().open_uploads() == 0, "nothing is left behind");
}

#[test]
fn the_rights_in_the_documents_are_those_that_are_used() {
    let server = ObjectServer::start();
    let endpoint = server.url();
    let job = AgentJob::new(20, &format!("[remote]\nurl = {URL:?}\nkeep_last = 2\nkeep_best = 0"));
    let ended = job.start_with(&s3_environment(&endpoint)).wait();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let (store, config) = (job.store(), job.config());
    let elsewhere = job.store().with_file_name("elsewhere");
    for arguments in [
        &["push", store.to_str().unwrap(), URL][..],
        &["fetch", URL, elsewhere.to_str().unwrap()],
        &["list", "--remote", URL],
        &["verify", "--remote", URL],
        &["prune", "--remote", config.to_str().unwrap()],
        &["remote", "check", URL],
        &["remote", "adopt", URL],
    ] {
        let output = job.command(arguments).envs(s3_environment(&endpoint)).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let used: BTreeSet<String> = server.counts().into_keys().map(|kind| right_for(kind).to_owned()).collect();
    assert_eq!(used, documented());
}

/// The right that S3 asks for a request of this kind.
fn right_for(kind: &str) -> &'static str {
    match kind {
        "get" | "head" => "s3:GetObject",
        "put" | "begin" | "part" | "complete" => "s3:PutObject",
        "delete" => "s3:DeleteObject",
        "abort" => "s3:AbortMultipartUpload",
        "list" => "s3:ListBucket",
        "lifecycle" => "s3:GetLifecycleConfiguration",
        other => panic!("{other}: which right is that?"),
    }
}

/// The actions of the policy in docs/remote.md.
fn documented() -> BTreeSet<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/remote.md")).unwrap();
    let policy = page.split("```json").find(|block| block.contains("\"Statement\"")).unwrap();
    let policy: Value = serde_json::from_str(policy.split("```").next().unwrap()).unwrap();
    let actions = policy["Statement"].as_array().unwrap().iter().flat_map(|statement| match &statement["Action"] {
        Value::Array(actions) => actions.clone(),
        one => vec![one.clone()],
    });
    actions.map(|action| action.as_str().unwrap().to_owned()).collect()
}
