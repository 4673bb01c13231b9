//! README's session in a terminal: a job file is written, the training is watched, the window made narrower, Ctrl-C
//! pressed; it goes on and ends. What stands on the screen is what a person would see.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ckptd_core::store::{CommitOptions, StoreLock, commit};
use ckptd_testkit::job::PATIENCE;
use ckptd_testkit::small;
use rustix::process::{Pid, Signal, kill_process};

const WIDE: u16 = 100;
const NARROW: u16 = 50;
/// More than are done before Ctrl-C comes.
const STEPS: &str = "1000";

/// What stands on a terminal, which breaks its lines anew when it becomes narrower.
#[derive(Default)]
struct Screen {
    rows: Vec<Vec<char>>,
    row: usize,
    column: usize,
    width: usize,
    /// The beginning of a sequence or of a character that is not complete yet.
    rest: Vec<u8>,
}

impl Screen {
    fn write(&mut self, bytes: &[u8]) {
        let bytes = [std::mem::take(&mut self.rest), bytes.to_vec()].concat();
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text.to_owned(),
            Err(error) => {
                self.rest = bytes[error.valid_up_to()..].to_vec();
                String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned()
            }
        };
        let mut characters = text.chars();
        while let Some(c) = characters.next() {
            match c {
                '\x1b' => {
                    let sequence: String = characters.by_ref().take_while(|c| !c.is_ascii_alphabetic()).collect();
                    // The letter that ended it is gone: which one it was is told by where it stands in the text.
                    let at = text.len() - characters.as_str().len() - 1;
                    self.obey(&sequence, text[at..].chars().next().unwrap());
                }
                '\r' => self.column = 0,
                '\n' => self.row += 1,
                c => self.put(c),
            }
        }
    }

    fn obey(&mut self, sequence: &str, letter: char) {
        match letter {
            'A' => self.row = self.row.saturating_sub(sequence.trim_start_matches('[').parse().unwrap()),
            'J' => {
                self.rows.truncate(self.row + 1);
                if let Some(row) = self.rows.get_mut(self.row) {
                    row.truncate(self.column);
                }
            }
            'm' => {}
            other => panic!("a terminal is told {sequence:?}{other}"),
        }
    }

    fn put(&mut self, c: char) {
        if self.column >= self.width {
            (self.row, self.column) = (self.row + 1, 0);
        }
        while self.rows.len() <= self.row {
            self.rows.push(Vec::new());
        }
        let row = &mut self.rows[self.row];
        row.resize(row.len().max(self.column + 1), ' ');
        row[self.column] = c;
        self.column += 1;
    }

    fn resize(&mut self, width: usize) {
        self.width = width;
        let mut rows = Vec::new();
        for (at, row) in std::mem::take(&mut self.rows).into_iter().enumerate() {
            if at == self.row {
                self.row = rows.len();
            }
            let pieces: Vec<Vec<char>> = row.chunks(width).map(<[char]>::to_vec).collect();
            rows.extend(if pieces.is_empty() { vec![Vec::new()] } else { pieces });
        }
        self.rows = rows;
    }

    fn lines(&self) -> Vec<String> {
        self.rows.iter().map(|row| row.iter().collect::<String>().trim_end().to_owned()).collect()
    }
}

/// A program in a terminal of its own.
struct Terminal {
    child: Child,
    keyboard: File,
    output: Receiver<Vec<u8>>,
    screen: Screen,
}

impl Terminal {
    fn start(mut command: Command) -> Terminal {
        let (mut master, mut slave) = (0, 0);
        let size = window(WIDE);
        // SAFETY: both descriptors are written before they are used; names and settings may be null.
        let opened = unsafe {
            libc::openpty(&raw mut master, &raw mut slave, std::ptr::null_mut(), std::ptr::null(), &raw const size)
        };
        assert_eq!(opened, 0, "there is no terminal");
        // SAFETY: they are open, and nobody else's.
        let (master, slave) = unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) };
        command.env("TERM", "xterm").stdin(slave.try_clone().unwrap());
        command.stdout(slave.try_clone().unwrap()).stderr(slave);
        // SAFETY: only system calls that are safe after fork.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            })
        };
        let child = command.spawn().unwrap();
        drop(command);
        let (sender, output) = channel();
        let mut reader = master.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The last one to close the terminal makes reading fail.
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                let _ = sender.send(bytes[..length].to_vec());
            }
        });
        let screen = Screen { width: usize::from(WIDE), ..Screen::default() };
        Terminal { child, keyboard: master, output, screen }
    }

    /// Waits until the screen is as `wanted` has it; returns its lines.
    fn wait_until(&mut self, what: &str, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let lines = self.screen.lines();
            if wanted(&lines) {
                return lines;
            }
            let bytes = self.output.recv_timeout(until.saturating_duration_since(Instant::now()));
            match bytes {
                Ok(bytes) => self.screen.write(&bytes),
                Err(e) => panic!("{what} never came ({e}):\n{}", lines.join("\n")),
            }
        }
    }

    fn resize(&mut self, columns: u16) {
        let size = window(columns);
        // SAFETY: the descriptor is open, and the size is read only.
        assert_eq!(unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&self.keyboard), libc::TIOCSWINSZ, &size) }, 0);
        self.screen.resize(usize::from(columns));
    }

    /// Waits for the end; returns the exit code and the last screen.
    fn end(mut self) -> (Option<i32>, Vec<String>) {
        let code = self.child.wait().unwrap().code();
        while let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(500)) {
            self.screen.write(&bytes);
        }
        (code, self.screen.lines())
    }
}

fn window(columns: u16) -> libc::winsize {
    libc::winsize { ws_row: 40, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckptd"));
    command.current_dir(folder).args(arguments);
    command
}

fn done(folder: &Path, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = command(folder, arguments).output().unwrap();
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert_eq!(status.code(), Some(0), "{arguments:?}: {said}{}", String::from_utf8_lossy(&stderr));
    said
}

/// The steps that the panel's first line tells, "12/1000 ━━━".
fn panel_step(lines: &[String]) -> Option<u64> {
    let line = lines.iter().rev().find(|line| line.contains('\u{2500}') || line.contains('\u{2501}'))?;
    line.split('/').next()?.parse().ok()
}

fn panels(lines: &[String]) -> usize {
    lines.iter().filter(|line| line.contains('\u{2500}') || line.contains('\u{2501}')).count()
}

#[test]
fn the_session_of_the_readme_looks_as_it_should_on_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::create_dir(folder.join("data")).unwrap();
    let source = std::fs::read_to_string(file!()).unwrap_or_else(|_| "fn main() {}\n".repeat(3000));
    std::fs::write(folder.join("data/a.txt"), source.repeat(4)).unwrap();
    let init = ["init", "finetune.toml", "--from", "gpt2-mini", "--text", "data/*.txt", "--steps", STEPS];
    assert!(done(folder, &init).contains("next: ckptd run finetune.toml"));
    // A person would let it run for longer.
    let job = std::fs::read_to_string(folder.join("finetune.toml")).unwrap();
    let smaller = job.replace("sequence_length = 256", "sequence_length = 16");
    assert_ne!(smaller, job);
    std::fs::write(folder.join("finetune.toml"), smaller).unwrap();

    let mut terminal = Terminal::start(command(folder, &["run", "finetune.toml"]));
    let first = terminal.wait_until("a panel", |lines| panels(lines) > 0);
    assert_eq!(panels(&first), 1, "{first:#?}");
    // What has come of the panel may end in the middle of its line.
    let is_whole = |lines: &[String]| lines.join("\n").contains("nothing saved yet");
    let few = |lines: &[String]| panel_step(lines).is_some_and(|step| step > 5) && is_whole(lines);
    let second = terminal.wait_until("a few steps", few);
    let text = second.join("\n");
    assert!(text.contains(&format!("starting a training of {STEPS} steps")), "{text}");
    for part in ["to train: ", "it needs: ", "snapshots: ", "Ctrl-C ends it"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for part in ["loss ", "learning rate ", "tokens/s", "nothing saved yet"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(panels(&second), 1, "{text}");
    terminal.resize(NARROW);
    let step = panel_step(&second).unwrap();
    let third = terminal.wait_until("more steps", |lines| panel_step(lines).is_some_and(|now| now > step + 10));
    assert_eq!(panels(&third), 1, "{third:#?}");
    assert!(!third.join("\n").contains("100 %"), "{third:#?}");
    terminal.keyboard.write_all(b"\x03").unwrap();
    let (code, last) = terminal.end();
    let text = last.join("\n");
    assert_eq!(code, Some(75), "{text}");
    assert_eq!(panels(&last), 0, "{text}");
    // Broken lines end where a word does, or within one.
    let joined: String = last.concat().split_whitespace().collect();
    assert!(joined.contains("stopping:SIGINT") && joined.contains("issavedandverified"), "{text}");
    assert!(!joined.contains("^C") && !joined.contains("tokens/s"), "{text}");

    let (code, last) = Terminal::start(command(folder, &["run", "finetune.toml"])).end();
    let text = last.join("\n");
    assert_eq!(code, Some(0), "{text}");
    let finished = format!("finished: all {STEPS} steps are done");
    assert!(text.contains("resuming from step ") && text.contains(&finished), "{text}");
    assert_eq!(panels(&last), 0, "{text}");
    let status = done(folder, &["status", "finetune.toml"]);
    assert!(status.starts_with(&format!("finished: step {STEPS} of {STEPS} (100 %)")), "{status}");
    assert!(done(folder, &["list", "finetune.toml"]).contains("latest"));
    assert!(done(folder, &["logs", "finetune.toml"]).contains(&finished));
    let generated = done(folder, &["generate", "finetune.toml", "--prompt", "fn ", "--tokens", "5"]);
    assert!(generated.starts_with("fn "), "{generated}");
    done(folder, &["export", "finetune.toml", "latest", "--format", "hf", "model"]);
    assert!(folder.join("model/model.safetensors").exists());
}

/// Lets `child` run for a moment now and then, so that it takes as long as on a slow machine, until `is_enough` or its
/// end.
fn slow_down(child: &mut Child, mut is_enough: impl FnMut() -> bool) {
    let pid = Pid::from_child(child);
    while child.try_wait().unwrap().is_none() && !is_enough() {
        kill_process(pid, Signal::STOP).unwrap();
        std::thread::sleep(Duration::from_millis(60));
        kill_process(pid, Signal::CONT).unwrap();
        std::thread::sleep(Duration::from_millis(3));
    }
}

#[test]
fn a_command_that_takes_long_draws_a_bar_on_a_terminal_and_none_in_a_pipe() {
    let (folder, store) = small::store();
    let options = CommitOptions::new(small::RUN, 1);
    commit(&store, &StoreLock::inherited(), small::snapshot(1, 200_000), &options).unwrap();
    let arguments = ["verify", store.path().to_str().unwrap()];
    let mut terminal = Terminal::start(command(folder.path(), &arguments));
    let (output, mut drawn) = (&terminal.output, String::new());
    slow_down(&mut terminal.child, || {
        output.try_iter().for_each(|bytes| drawn.push_str(&String::from_utf8_lossy(&bytes)));
        drawn.contains("iB/s")
    });
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    assert!(drawn.contains("step-000000000001") && drawn.contains("iB/s"), "{drawn:?}");
    let mut piped = command(folder.path(), &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    slow_down(&mut piped, || false);
    let ended = piped.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(0), ""));
}
