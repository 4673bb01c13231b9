//! The page of a running job: who may look, what they see, and that nobody who looks delays the job.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ckptd_testkit::job::RunningAgent;
use ckptd_testkit::servers;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::AgentJob;

const PAGE: &str = "[status]\nhttp = \"127.0.0.1:0\"";

/// Where the page of a job is, and what its reader knows.
pub struct Page {
    pub port: u16,
    pub token: String,
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Page {
    fn of(run: &mut RunningAgent, job: &AgentJob) -> Page {
        let line = run.wait_for("the page is at http://127.0.0.1:");
        let (_, rest) = line.split_once("http://127.0.0.1:").unwrap();
        let port = rest.split('/').next().unwrap().parse().unwrap();
        let token = std::fs::read_to_string(job.store().join("page.token")).unwrap().trim().to_owned();
        assert!(!line.contains(&token), "{line}");
        Page { port, token }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// What is answered to a request with these lines behind its first one.
    pub fn ask(&self, first: &str, lines: &[&str], body: &str) -> Answer {
        let mut stream = self.connect();
        let own = format!("Host: 127.0.0.1:{}", self.port);
        let host = if lines.iter().any(|line| line.starts_with("Host:")) { None } else { Some(own.as_str()) };
        let lines: Vec<&str> = host.into_iter().chain(lines.iter().copied()).collect();
        let request =
            format!("{first} HTTP/1.1\r\n{}\r\nContent-Length: {}\r\n\r\n{body}", lines.join("\r\n"), body.len());
        // One that is turned away early may not take all of it.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    fn bearer(&self) -> String {
        format!("Authorization: Bearer {}", self.token)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path}"), &[&self.bearer()], "")
    }

    /// The first `count` events of the stream.
    pub fn events(&self, path: &str, count: usize) -> Vec<(String, Value)> {
        let mut stream = self.connect();
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost:{}\r\n{}\r\n\r\n", self.port, self.bearer());
        stream.write_all(head.as_bytes()).unwrap();
        let mut text = String::new();
        loop {
            let found: Vec<(String, Value)> = text
                .split("event: ")
                .skip(1)
                .filter_map(|event| {
                    let (name, rest) = event.split_once("\ndata: ")?;
                    let json: String = rest.split("\n\n").next()?.lines().filter(|line| line.len() > 8).collect();
                    Some((name.to_owned(), serde_json::from_str(&json).ok()?))
                })
                .collect();
            if found.len() >= count {
                return found;
            }
            let mut bytes = [0; 1 << 16];
            let read = stream.read(&mut bytes).unwrap();
            assert!(read > 0, "the stream ended: {text}");
            text.push_str(&String::from_utf8_lossy(&bytes[..read]).replace("\r\n", "\n"));
        }
    }
}

#[test]
fn only_those_who_know_the_token_see_the_page_and_nobody_changes_anything() {
    let job = AgentJob::new(100_000, PAGE);
    let mut run = job.start();
    let page = Page::of(&mut run, &job);
    run.wait_for("verified step 5:");
    let token_file = job.store().join("page.token");
    assert_eq!(std::fs::metadata(token_file).unwrap().permissions().mode() & 0o777, 0o600);
    for path in ["/", "/jobs/0/", "/jobs/0/events", "/jobs/0/status.json", "/metrics", "/jobs/0/picture.svg"] {
        assert_eq!(page.ask(&format!("GET {path}"), &[], "").status, 401, "{path}");
        let foreign = page.ask(&format!("GET {path}"), &["Host: evil.example", &page.bearer()], "");
        assert_eq!(foreign.status, 421, "{path}");
        let in_address = page.ask(&format!("GET {path}?token={}", page.token), &[], "");
        assert_eq!(in_address.status, 401, "{path}");
        for method in ["POST", "PUT", "DELETE"] {
            assert_eq!(page.ask(&format!("{method} {path}"), &[&page.bearer()], "").status, 405, "{method} {path}");
        }
    }
    let html = page.get("/jobs/0/");
    assert!(html.status == 200 && html.body.contains("<h1 id=\"name\">"), "{}", html.head);
    assert!(html.head.contains("content-security-policy: default-src 'none'; script-src 'self'"), "{}", html.head);
    assert!(!html.body.contains("http") && !html.body.contains("style="), "{}", html.body);
    // The form: asked for where a browser asks, gives a cookie that no script and no other page sees.
    let form = page.ask("GET /jobs/0/", &["Accept: text/html"], "");
    assert!(form.status == 401 && form.body.contains("action=\"../../login\""), "{}", form.body);
    let typed = ["Content-Type: application/x-www-form-urlencoded"];
    assert_eq!(page.ask("POST /login", &typed, "token=wrong").status, 401);
    let taken = page.ask("POST /login", &typed, &format!("token={}", page.token));
    assert!(taken.status == 303 && !taken.head.contains(&page.token), "{}", taken.head);
    let cookie = taken.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.contains("httponly") && cookie.contains("samesite=strict"), "{cookie}");
    let pair = format!("Cookie: {}", cookie.split(';').next().unwrap());
    assert_eq!(page.ask("GET /jobs/0/status.json", &[&pair], "").status, 200);
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
}

#[test]
fn the_page_shows_the_training_as_it_is_and_its_metrics_are_as_prometheus_wants_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ckptd.prom");
    let budget = format!("{PAGE}\nmetrics_file = {file:?}\n[session]\nbudget = \"10m\"");
    let job = AgentJob::new(100_000, &budget);
    let mut run = job.start();
    let page = Page::of(&mut run, &job);
    run.wait_for("verified step 20:");
    let events = page.events("/jobs/0/events", 6);
    let view = &events.iter().rfind(|(name, _)| name == "job").unwrap().1;
    assert_eq!((&view["state"], &view["name"], &view["is_live"]), (&"training".into(), &"job".into(), &true.into()));
    assert!(view["last_verified"]["step"].as_u64().unwrap() >= 15, "{view}");
    assert!(
        view["snapshots"].as_array().unwrap().iter().any(|row| row["kept_because"] != serde_json::json!([])),
        "{view}"
    );
    let plan = &view["plan"];
    let (call, deadline) = (plan["last_call_ms"].as_i64().unwrap(), plan["deadline_ms"].as_i64().unwrap());
    assert!(call < deadline && call > plan["began_ms"].as_i64().unwrap(), "{plan}");
    let curves: Vec<&Value> = events.iter().filter(|(name, _)| name == "curve").map(|(_, curve)| curve).collect();
    let newest =
        |curve: &Value| curve["points"]["last"].as_array().unwrap().last().and_then(Value::as_u64).unwrap_or(0);
    assert!(curves.len() >= 2 && newest(curves[curves.len() - 1]) > newest(curves[0]), "{curves:?}");
    assert!(page.get("/jobs/0/picture.svg?theme=dark").body.starts_with("<svg"));

    let text = page.get("/metrics");
    assert!(text.head.contains("text/plain; version=0.0.4"), "{}", text.head);
    for name in
        ["ckptd_build_info{version=", "ckptd_training_steps_total{", "ckptd_last_verified_snapshot_timestamp_seconds{"]
    {
        assert!(text.body.contains(name), "{name}: {}", text.body);
    }
    let open = page.ask("GET /metrics", &[&page.bearer(), "Accept: application/openmetrics-text; version=1.0.0"], "");
    assert!(open.head.contains("application/openmetrics-text") && open.body.ends_with("# EOF\n"), "{}", open.head);
    assert!(open.body.contains("# TYPE ckptd_training_steps counter\nckptd_training_steps_total{"), "{}", open.body);
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
    let left = std::fs::read_to_string(&file).unwrap();
    assert!(left.contains("ckptd_job_live{job_name=\"job\"} 0\n"), "{left}");
    for text in [&text.body, &left] {
        check_metrics(text);
    }
}

/// Holds metrics against Prometheus' own rules.
fn check_metrics(text: &str) {
    let Some(promtool) = servers::promtool() else { return };
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn a_page_that_others_can_reach_is_refused_without_a_token_of_ones_own() {
    let refused = |more: &str, why: &str| {
        let ended = AgentJob::new(10, more).run();
        assert!(ended.code == Some(78) && ended.log.contains(why), "{more}: {:?} {}", ended.code, ended.log);
    };
    refused("[status]\nhttp = \"0.0.0.0:0\"", "http_token_file");
    refused("[status]\nhttp = \"[::]:0\"\nhttp_open = true\nhttp_token_file = \"t\"", "lets everybody in");
    refused("[status]\nhttp = \"127.0.0.1:0\"\nhttp_token_file = \"none\"", "write a token there");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let with_file = format!("[status]\nhttp = \"127.0.0.1:0\"\nhttp_token_file = {file:?}");
    std::fs::write(&file, "0123456789abcdef\n").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    refused(&with_file, "others may read it");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&file, "too short\n").unwrap();
    refused(&with_file, "at least 16 characters");
}

#[test]
fn clients_that_are_slow_silent_oversized_or_many_delay_neither_snapshot_nor_deadline() {
    let job = AgentJob::new(100_000, &format!("{PAGE}\n[session]\nbudget = \"14s\"\ngrace = \"2s\""));
    let mut run = job.start();
    let page = Arc::new(Page::of(&mut run, &job));
    run.wait_for("verified step 5:");
    let over = Arc::new(AtomicBool::new(false));
    let (asked, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    // Some say nothing, some one byte a second, some take none of the stream that they asked for.
    let stream = format!("GET /jobs/0/events HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", page.bearer());
    let held: Vec<TcpStream> = (0..50)
        .map(|n| {
            let mut client = page.connect();
            let said = match n % 3 {
                0 => "",
                1 => "GET / HTTP/1.1\r\nHo",
                _ => &stream,
            };
            client.write_all(said.as_bytes()).unwrap();
            client
        })
        .collect();
    let mut threads = Vec::new();
    for _ in 0..4 {
        let (page, over, asked, answered) = (page.clone(), over.clone(), asked.clone(), answered.clone());
        threads.push(std::thread::spawn(move || {
            let (began, mut count) = (Instant::now(), 0u64);
            while !over.load(Ordering::Relaxed) {
                // Together 1,000 requests each second.
                let due = began + Duration::from_millis(4) * count as u32;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                count += 1;
                asked.fetch_add(1, Ordering::Relaxed);
                let Ok(mut client) = TcpStream::connect(("127.0.0.1", page.port)) else { continue };
                let _ = client.set_read_timeout(Some(Duration::from_secs(2)));
                let _ = client.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
                let mut answer = [0; 64];
                answered.fetch_add(u64::from(client.read(&mut answer).is_ok_and(|read| read > 0)), Ordering::Relaxed);
            }
        }));
    }
    let large = format!("X-Large: {}", "x".repeat(1 << 20));
    let mut most_kib = 0;
    let mut large_status = Vec::new();
    while !run.pass(Duration::from_millis(500)) {
        most_kib = most_kib.max(resident_kib(run.pid()));
        if large_status.len() < 6 {
            large_status.push(page.ask("GET /", &[&large], "").status);
        }
    }
    over.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    drop(held);
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.took < Duration::from_secs(15), "{:?}", ended.took);
    assert!(ended.log.contains("saved and verified"), "{}", ended.log);
    assert!(large_status.iter().all(|status| [0, 431].contains(status)), "{large_status:?}");
    let (asked, answered) = (asked.load(Ordering::Relaxed), answered.load(Ordering::Relaxed));
    println!("{asked} requests, {answered} answered; {} KiB resident at most", most_kib);
    assert!(most_kib < 64 << 10 && answered > 0, "{most_kib} KiB, {answered} of {asked}");
    let worst = verified_gaps(&ended.log);
    assert!(worst < Duration::from_secs(5), "no snapshot was verified for {worst:?}");
}

/// Of this process alone.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// The longest time between two verified snapshots.
fn verified_gaps(log: &str) -> Duration {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let verified = lines.filter(|line| line["message"].as_str().is_some_and(|text| text.starts_with("verified step")));
    let times: Vec<jiff::Timestamp> =
        verified.map(|line| line["timestamp"].as_str().unwrap().parse().unwrap()).collect();
    let gap = |pair: &[jiff::Timestamp]| Duration::try_from(pair[1].duration_since(pair[0])).unwrap_or_default();
    times.windows(2).map(gap).max().unwrap_or(Duration::MAX)
}

#[test]
fn a_prometheus_scrapes_a_running_job_and_the_alerts_are_as_their_test_says() {
    let rules = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/prometheus");
    if let Some(promtool) = servers::promtool() {
        for arguments in [["check", "rules", "ckptd.rules.yml"], ["test", "rules", "ckptd.rules.test.yml"]] {
            let output = Command::new(&promtool).args(arguments).current_dir(&rules).output().unwrap();
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "{said}");
        }
    }
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(rules.join("../grafana-dashboard.json")).unwrap()).unwrap();
    let job = AgentJob::new(100_000, PAGE);
    let mut run = job.start();
    let page = Page::of(&mut run, &job);
    run.wait_for("verified step 10:");
    let folder = tempfile::tempdir().unwrap();
    let token = job.store().join("page.token");
    let config = format!(
        "global: {{scrape_interval: 1s}}\nrule_files: [{:?}]\nscrape_configs:\n- job_name: ckptd\n  authorization: \
         {{credentials_file: {token:?}}}\n  static_configs: [{{targets: ['127.0.0.1:{}']}}]\n",
        rules.join("ckptd.rules.yml"),
        page.port
    );
    std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
    let Some(prometheus) = servers::prometheus(folder.path()) else { return };
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let query = |query: &str| {
        let asked = agent.get(format!("{}/api/v1/query", prometheus.url())).query("query", query);
        let body = asked.call().ok()?.body_mut().read_to_string().ok()?;
        // One that starts is no JSON yet.
        let answer: Value = serde_json::from_str(&body).ok()?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let value = answer["data"]["result"][0]["value"][1].as_str()?;
        value.parse::<f64>().ok()
    };
    let until = Instant::now() + Duration::from_secs(60);
    while query("ckptd_training_step > 10").is_none() || query("rate(ckptd_training_steps_total[30s])").is_none() {
        assert!(Instant::now() < until, "nothing was scraped: {:?}", query("up"));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(query("ckptd_job_state{state=\"training\"}"), Some(1.0));
    assert!(query("histogram_quantile(0.9, ckptd_snapshot_duration_seconds_bucket)").is_some());
    // Every panel asks for something that Prometheus understands.
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression =
                target["expr"].as_str().unwrap().replace("$job_name", ".*").replace("$__rate_interval", "1m");
            query(&expression);
            asked += 1;
        }
    }
    assert!(asked >= 8, "{asked}");
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
}
