//! The page in a real Chromium, of a real training: it grows without being loaded again, shows a worker that is killed
//! and a curve that a resume cuts, is read by the keyboard, and axe-core finds nothing wrong with it.
//!
//! `make screenshots` (CKPTD_SCREENSHOTS names a folder) keeps pictures of it, wide and as on a phone. WebDriver is
//! JSON over HTTP, spoken here as it is.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use ckptd_core::store::{SnapshotEntry, SnapshotState};
use ckptd_testkit::job::{JobFolder, RunningAgent, signal};
use ckptd_testkit::servers::{self, Program};
use ckptd_testkit::text;
use rustix::process::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);
const AXE: &str = ".cache/axe/node_modules/axe-core/axe.min.js";
const WIDE: (u32, u32) = (1240, 1500);
const PHONE: (u32, u32) = (390, 844);
/// Looked at, and not kept as a picture.
const DARK: &str = "dark";

/// A Chromium that is driven.
struct Browser {
    driver: Program,
    session: String,
}

impl Browser {
    /// `None` where it is not installed.
    fn start() -> Option<Browser> {
        let (driver, browser) = servers::chromedriver()?;
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"];
        let options = json!({ "binary": browser, "args": arguments });
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let mut browser = Browser { driver, session: String::new() };
        let made = browser.post("/session", &wanted);
        browser.session = format!("/session/{}", made["sessionId"].as_str().unwrap());
        Some(browser)
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.driver.url());
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut answer = agent.post(url).content_type("application/json").send(body.to_string()).unwrap();
        let text = answer.body_mut().with_config().limit(64 << 20).read_to_string().unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert!(answer["value"]["error"].is_null(), "{path}: {answer}");
        answer["value"].clone()
    }

    fn command(&self, name: &str, body: Value) -> Value {
        self.post(&format!("{}{name}", self.session), &body)
    }

    fn open(&self, url: &str) {
        self.command("/url", json!({ "url": url }));
    }

    /// What a script returns.
    fn run(&self, script: &str) -> Value {
        self.command("/execute/sync", json!({ "script": script, "args": [] }))
    }

    /// Waits until a script returns something true, and returns it.
    fn wait_for(&self, what: &str, script: &str) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = self.run(script);
            if !matches!(found, Value::Null | Value::Bool(false)) {
                return found;
            }
            let page = self.run("return document.body.innerText");
            assert!(Instant::now() < until, "{what} never came; the page says:\n{}", page.as_str().unwrap());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn find(&self, css: &str) -> String {
        let found = self.command("/element", json!({ "using": "css selector", "value": css }));
        found.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned()
    }

    fn type_into(&self, css: &str, keys: &str) {
        let element = self.find(css);
        self.command(&format!("/element/{element}/value"), json!({ "text": keys }));
    }

    /// Presses a key on what has the focus.
    fn press(&self, key: &str, times: usize) {
        let once = [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })];
        let actions: Vec<&Value> = once.iter().cycle().take(2 * times).collect();
        let source = json!({ "type": "key", "id": "keyboard", "actions": actions });
        self.command("/actions", json!({ "actions": [source] }));
    }

    fn look(&self, (width, height): (u32, u32), scheme: &str) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 500 });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics);
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", features);
    }

    fn devtools(&self, command: &str, params: Value) -> Value {
        self.command("/goog/cdp/execute", json!({ "cmd": command, "params": params }))
    }

    /// Keeps a picture of what is seen, where one is asked for.
    fn keep_picture(&self, name: &str) {
        use std::io::Write;
        let Some(folder) = std::env::var_os("CKPTD_SCREENSHOTS").filter(|_| name != DARK) else { return };
        let taken = self.devtools("Page.captureScreenshot", json!({ "format": "png" }));
        let mut command = std::process::Command::new("base64");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name);
        command.arg("-d").stdin(std::process::Stdio::piped()).stdout(std::fs::File::create(path).unwrap());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(taken["data"].as_str().unwrap().as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// What axe-core finds wrong, in a few words each.
    fn violations(&self) -> Vec<String> {
        let axe = Path::new(env!("CARGO_MANIFEST_DIR")).join(AXE);
        let Ok(axe) = std::fs::read_to_string(axe) else {
            eprintln!(
                "axe-core is not installed, and the page is not held against it; scripts/setup.sh full installs it"
            );
            return Vec::new();
        };
        self.run(&axe);
        let script =
            "const done = arguments[0]; axe.run(document).then((r) => done(r.violations), (e) => done([String(e)]))";
        let found = self.command("/execute/async", json!({ "script": script, "args": [] }));
        found.as_array().unwrap().iter().map(ToString::to_string).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = ureq::delete(format!("{}{}", self.driver.url(), self.session)).call();
        }
    }
}

/// The step that the newest point of the curve has.
const NEWEST: &str = "const found = /^step ([0-9,]+)/.exec(document.getElementById('readout')?.textContent ?? ''); \
                      return found && Number(found[1].replaceAll(',', ''))";

/// The first and the last step of each branch that was lost.
const LOST: &str = "[...document.querySelectorAll('.lost-branch title')].map((title) => \
                    title.textContent.replaceAll(',', '').match(/[0-9]+/g).map(Number))";

fn start(job: &JobFolder) -> RunningAgent {
    job.start(Path::new(env!("CARGO_BIN_EXE_ckptd")))
}

#[test]
fn the_page_of_a_real_training_lives_in_a_real_browser() {
    let Some(browser) = Browser::start() else { return };
    let port = servers::free_port();
    let job = JobFolder::new(&format!(
        "name = \"gpt2-mini\"\nthreads = 1\n[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"text.txt\"]\n[train]\n\
         steps = 100000\nbatch_size = 2\nsequence_length = 32\neval_every = 50\neval_batches = 2\nwarmup_steps = 100\n\
         [snapshot]\nevery_steps = 25\n[retention]\nkeep_last = 4\n[session]\nbudget = \"2h\"\n\
         [status]\nhttp = \"127.0.0.1:{port}\"\n"
    ));
    std::fs::write(job.path("text.txt"), text::words(40_000)).unwrap();
    let mut run = start(&job);
    run.wait_for("the page is at");
    let token = std::fs::read_to_string(job.path("store/page.token")).unwrap();
    browser.look(WIDE, "light");
    browser.open(&format!("http://127.0.0.1:{port}/"));
    assert_eq!(browser.violations(), Vec::<String>::new());
    browser.type_into("#token", &format!("{}\n", token.trim()));
    browser.wait_for("the training", "return document.getElementById('state')?.textContent === 'training'");

    // The curve grows while the page stays.
    browser.run("window.stayed = true");
    let before = browser.wait_for("a point", NEWEST).as_u64().unwrap();
    let grown = format!("const newest = (() => {{ {NEWEST} }})(); return newest > {before} + 60 && newest");
    browser.wait_for("a longer curve", &grown);
    browser.wait_for("a validation", "return document.querySelectorAll('.val-dot').length > 1");
    browser.wait_for("a verified snapshot", "return document.querySelector('.tick.verified') !== null");
    browser.wait_for("the table", "return document.querySelector('#snapshots .pill.verified') !== null");

    // The worker is killed.
    let worker = run.worker().unwrap();
    signal(worker, Signal::KILL);
    browser.wait_for(
        "the restart",
        "return document.getElementById('machine').innerText.includes('started again 1 time')",
    );
    let resumed = run.wait_for_step("resuming from step ", 1);
    run.wait_for_step("verified step ", (resumed + 100).max(200));

    // A session later the newest snapshots are gone: what was trained since is lost, and the curve ends there.
    let reached = browser.wait_for("a point", NEWEST).as_u64().unwrap();
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
    browser.wait_for("the end of the connection", "return document.querySelector('.link.gone') !== null");
    let entries = job.store().entries().unwrap();
    let kept = entries.iter().filter(|entry| entry.state == SnapshotState::Verified);
    // What was lost when the worker was killed is not cut in two.
    let step = kept.map(SnapshotEntry::step).filter(|step| *step >= resumed).min().unwrap();
    for newer in entries.iter().filter(|entry| entry.step() > step) {
        std::fs::remove_file(&newer.path).unwrap();
    }
    let mut run = start(&job);
    run.wait_for(&format!("resuming from step {step} "));
    browser.wait_for("the connection", "return document.querySelector('.link.live') !== null");
    // It stays there, however fast the new session trains past it.
    let cut = format!("return ({LOST}).some(([from, to]) => from === {} && to >= {reached})", step + 1);
    browser.wait_for("a curve that is cut", &cut);
    assert_eq!(browser.run("return window.stayed"), true, "the page was loaded again");

    // By the keyboard alone.
    let newest = browser.run(NEWEST);
    browser.run("document.getElementById('cursor').focus()");
    browser.press("\u{E012}", 3);
    let texts = "return [document.getElementById('cursor').getAttribute('aria-valuetext'), \
                 document.getElementById('readout').textContent]";
    let read = browser.run(texts);
    assert_eq!(read[0], read[1]);
    assert!(read[0].as_str().unwrap().starts_with("step ") && browser.run(NEWEST) != newest, "{read}");
    browser.run("document.getElementById('cursor').blur()");

    // Long enough for a picture to show something.
    let enough = if std::env::var_os("CKPTD_SCREENSHOTS").is_some() { 1500 } else { 0 };
    browser.wait_for("more steps", &format!("const newest = (() => {{ {NEWEST} }})(); return newest > {enough}"));
    for (size, scheme, name) in [(WIDE, "light", "page.png"), (WIDE, "dark", DARK), (PHONE, "light", "page-phone.png")]
    {
        browser.look(size, scheme);
        browser.run("window.scrollTo(0, 0); document.getElementById('table').open = false");
        std::thread::sleep(Duration::from_millis(700));
        browser.keep_picture(name);
        browser.run("document.getElementById('table').open = true");
        assert_eq!(browser.violations(), Vec::<String>::new(), "{name}");
        let overflow = browser.run("return document.documentElement.scrollWidth - window.innerWidth");
        assert!(overflow.as_i64().unwrap() <= 0, "{name}: {overflow} pixels too wide");
    }
    let elsewhere = "const all = window.performance.getEntriesByType('resource'); \
                     return all.filter((one) => !one.name.startsWith(location.origin)).length";
    assert_eq!(browser.run(elsewhere), 0, "something came from elsewhere");
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
}
