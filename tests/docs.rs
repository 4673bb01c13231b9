//! The documents say what the programs do: what is made of the program is up to date, every link leads somewhere, and
//! the worker on the protocol's page runs. `make docs` (CKPTD_WRITE_DOCS=1) writes what is made.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What stands above this line is written by hand, what follows is made.
const MADE: &str = "<!-- Made by `make docs` from here to the end. -->\n";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Compares the made part of a page with `made`, or writes it.
fn hold(page: &str, made: &str) {
    let text = read(page);
    let (head, old) = text.split_once(MADE).unwrap_or_else(|| panic!("{page} has no line {MADE}"));
    if std::env::var_os("CKPTD_WRITE_DOCS").is_some() {
        return std::fs::write(root().join(page), format!("{head}{MADE}{made}")).unwrap();
    }
    let differs = old.lines().zip(made.lines()).find(|(old, made)| old != made);
    assert!(old == made, "{page} is not up to date, run make docs; the first difference: {differs:?}");
}

#[test]
fn the_page_on_the_command_line_is_made_of_the_program() {
    let mut program = ckptd::cli::command::command();
    program.build();
    let mut made = String::from("\n## All commands\n\n| command | what it does |\n|---|---|\n");
    let commands = commands(&program, "ckptd");
    for (name, command) in &commands {
        let (anchor, about) = (name.replace(' ', "-"), command.get_about().unwrap());
        made += &format!("| [`{name}`](#{anchor}) | {} |\n", cell(&about.to_string()));
    }
    for (name, command) in commands {
        made += &command_section(&name, command);
    }
    hold("docs/cli.md", &made);
}

/// The commands below `parent`, with their whole names; of one that has commands of its own, those.
fn commands(parent: &clap::Command, name: &str) -> Vec<(String, clap::Command)> {
    let own = parent.get_subcommands().filter(|command| command.get_name() != "help");
    let below = |command: &clap::Command| {
        let name = format!("{name} {}", command.get_name());
        if command.has_subcommands() { commands(command, &name) } else { vec![(name, command.clone())] }
    };
    own.flat_map(below).collect()
}

fn command_section(name: &str, mut command: clap::Command) -> String {
    let about = command.get_long_about().or(command.get_about()).unwrap().to_string();
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let mut section = format!("\n## {name}\n\n{}\n\n```text\n{usage}\n```\n", about.trim());
    let hidden = ["help", "version"];
    let shown = |argument: &&clap::Arg| !argument.is_hide_set() && !hidden.contains(&argument.get_id().as_str());
    let rows: Vec<String> = command.get_arguments().filter(shown).map(argument_row).collect();
    if !rows.is_empty() {
        section += &format!("\n| argument | meaning |\n|---|---|\n{}", rows.concat());
    }
    section
}

fn argument_row(argument: &clap::Arg) -> String {
    let values: Vec<String> =
        argument.get_value_names().unwrap_or_default().iter().map(|name| format!("<{name}>")).collect();
    let takes_value = argument.get_action().takes_values();
    let mut name = argument.get_short().map_or_else(String::new, |short| format!("-{short}, "));
    name += &argument.get_long().map_or_else(String::new, |long| format!("--{long} "));
    if takes_value {
        name += &values.join(" ");
    }
    let mut meaning = argument.get_help().map_or_else(String::new, ToString::to_string);
    if !meaning.is_empty() && !meaning.ends_with('.') {
        meaning.push('.');
    }
    let possible: Vec<String> =
        argument.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if takes_value && !possible.is_empty() {
        meaning += &format!(" One of {}.", possible.join(", "));
    }
    let default: Vec<String> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy().into()).collect();
    if takes_value && !default.concat().is_empty() {
        meaning += &format!(" Default: `{}`.", default.join(" "));
    }
    format!("| `{}` | {} |\n", cell(name.trim()), cell(meaning.trim()))
}

/// Text for a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[test]
fn the_page_on_the_job_file_is_made_of_the_commented_one() {
    let mut made = String::new();
    let (mut section, mut comment, mut meaning) = (String::new(), Vec::new(), String::new());
    // The first two lines speak of the file.
    for line in read("config/ckptd.toml").lines().skip(2) {
        if let Some(text) = line.strip_prefix("# ") {
            comment.push(text.to_owned());
        } else if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
            made += &format!("\n## {section}\n\n| key | default | meaning |\n|---|---|---|\n");
        } else if let Some((key, value)) = line.trim_start_matches('#').split_once(" = ") {
            if !comment.is_empty() {
                meaning = std::mem::take(&mut comment).join(" ");
            }
            let default = if line.starts_with('#') { format!("none; such as `{value}`") } else { format!("`{value}`") };
            let anchor = format!("<a id=\"{section}-{key}\"></a>");
            made += &format!("| {anchor}`{key}` | {} | {} |\n", cell(&default), cell(&meaning));
        } else {
            assert!(line.is_empty(), "config/ckptd.toml: {line}");
        }
    }
    hold("docs/config.md", &made);
}

#[test]
fn readme_has_at_most_900_words() {
    let words = read("README.md").split_whitespace().count();
    assert!(words <= 900, "README.md has {words} words");
}

/// The documents, as paths from the root.
fn documents() -> Vec<PathBuf> {
    let mut found = vec![];
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = folder.join(&name);
            let is_folder = entry.file_type().unwrap().is_dir();
            if is_folder && !name.starts_with('.') && name != "target" && path != Path::new("checkpoints") {
                folders.push(path);
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 10);
    found
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let mut broken = vec![];
    for document in documents() {
        let text = read(&document);
        for link in links(&text) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            let there = root().join(&target).exists();
            if !there || !anchor.is_empty() && !anchors(&read(&target)).contains(anchor) {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// What the links and pictures of a page lead to, but for the web.
fn links(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    let markdown = prose.flat_map(|part| part.split("](").skip(1).filter_map(|rest| rest.split(')').next()));
    let pictures = text.split("src=\"").skip(1).filter_map(|rest| rest.split('"').next());
    markdown.chain(pictures).filter(|link| !link.contains("://")).collect()
}

/// The anchors of a page, as GitHub makes them of its headings, and those that it sets itself.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for heading in text.lines().filter(|line| line.starts_with('#')) {
        let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        let anchor: String = words.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect();
        // A heading that stands twice gets a number.
        let again = (1..).map(|n| format!("{anchor}-{n}"));
        let free = std::iter::once(anchor.clone()).chain(again).find(|name| !anchors.contains(name));
        anchors.extend(free);
    }
    anchors.extend(text.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned));
    anchors
}

#[test]
fn every_path_that_architecture_names_exists() {
    let rooms = ["crates/", "src/", "tests/", "faults/", "bench/", "fuzz/", "scripts/", "docs/", "config/", "systemd/"];
    let text = read("ARCHITECTURE.md");
    let quoted = text.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2));
    let named: Vec<&str> = quoted.filter(|name| rooms.iter().any(|room| name.starts_with(room))).collect();
    assert!(named.len() > 20, "{named:?}");
    let missing: Vec<&str> = named.into_iter().filter(|name| !root().join(name).exists()).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn the_worker_on_the_page_of_the_protocol_trains_and_stops() {
    let page = read("docs/protocol.md");
    let worker = page.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("worker.py"), worker).unwrap();
    let job = "[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"none\"]\n[train]\nsteps = 1000000\n[session]\n\
     budget = \"4s\"\n\
               [worker]\ncommand = [\"python3\", \"worker.py\"]\n";
    std::fs::write(at("job.toml"), job).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_ckptd"));
    let output = program.args(["run", "--verbose", "job.toml"]).current_dir(folder.path()).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("step 1/1000000, loss "), "{log}");
    // It writes no snapshots, so that there is nothing to go on from: the one thing that it lacks.
    assert!(log.contains("this sketch writes no snapshots"), "{log}");
    assert!(!log.contains("does not speak the protocol") && !log.contains("the worker failed"), "{log}");
    assert_eq!(output.status.code(), Some(1), "{log}");
}
