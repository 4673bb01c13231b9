//! The floors of the workspace: who may import whom, parents that only declare, no circles, and texts that stand in one
//! place. Production code only; what rustc or cargo refuse is not held here.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A crate's sources, and its rooms from the ground up: a room imports lower floors only.
const CRATES: [(&str, &[&[&str]]); 8] = [
    ("src", &[&["session", "folder_watch", "once_flag"], &["notices", "daemon"], &["web"], &["training"], &["cli"]]),
    (
        "crates/core/src",
        &[
            &["error", "text", "arithmetic", "dtype", "settings", "randomness"],
            &["ids", "progress", "pipeline", "os", "snapshot", "permutation"],
            &["codec", "token_cache"],
            &["token_file"],
            &["store"],
            &["config"],
            &["protocol", "schedule"],
        ],
    ),
    (
        "crates/interop/src",
        &[
            &["limits", "mapped", "names", "gpt2_names", "plain", "python_json"],
            &["archive", "safetensors", "output", "export_record", "source_record", "footprint"],
            &["foreign", "bundle", "gguf", "npz", "llmc", "gpt2_config"],
            &["gpt2_reading"],
            &["torch_pt"],
            &["dcp"],
            &["hf", "export"],
            &["adapter"],
            &["import"],
            &["compare"],
            &["check"],
        ],
    ),
    (
        "crates/python/src",
        &[&["errors", "memory", "order"], &["live", "reader"], &["flight"], &["writer"], &["module"]],
    ),
    (
        "crates/gpt2/src",
        &[
            &["torch", "rng", "tokens", "events", "evaluations"],
            &["capture", "process", "data", "ranks"],
            &["gpt2", "optim"],
            &["weights", "reduction", "agreement"],
            &["probe", "generate", "merge"],
            &["setup"],
            &["snapshots"],
            &["train"],
            &["rank_session"],
        ],
    ),
    (
        "crates/remote/src",
        &[
            &["names", "nonce", "secrets", "holder", "fence"],
            &["address", "errors", "settings", "layout"],
            &["objects", "records"],
            &["cloud", "confirmed", "folder", "memory", "protocol", "sftp"],
            &["job", "open"],
        ],
    ),
    (
        "crates/history/src",
        &[
            &["record", "bytes", "frame"],
            &["columns", "bucket", "tensorboard"],
            &["batch"],
            &["packed"],
            &["part"],
            &["writer", "reader"],
            &["follow", "overview", "totals", "sessions"],
            &["travel"],
        ],
    ),
    (
        "crates/page/src",
        &[&["view", "curve", "access", "limits"], &["metrics", "assets"], &["board"], &["routes"], &["server"]],
    ),
];

/// (text, where it must not stand, the one place where it may)
const ABSENCES: [(&str, &str, &str); 7] = [
    (".ckpt\"", "", "crates/core/src/store/layout.rs"),
    ("std::fs::", "crates/core/src/store", "-"),
    ("Instant::now", "src/session", "src/session/clock.rs"),
    ("Timestamp::now", "src/session", "src/session/clock.rs"),
    ("SystemTime::now", "src/session", "src/session/clock.rs"),
    ("fs::rename(", "", "crates/core/src/os"),
    (".rename(", "", "crates/core/src/os"),
];

/// One source file: its module's path, and its production code without comments.
struct SourceFile {
    path: PathBuf,
    module: Vec<String>,
    code: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The sources below `folder`, without those that are compiled for tests only.
fn sources(folder: &str) -> Vec<SourceFile> {
    let (mut files, mut folders, mut tests) = (Vec::new(), vec![root().join(folder)], BTreeSet::new());
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let module = module_of(path.strip_prefix(root().join(folder)).unwrap());
                let code = production(&text, &module, &mut tests);
                files.push(SourceFile { path: path.strip_prefix(root()).unwrap().to_path_buf(), module, code });
            }
        }
    }
    files.retain(|file| !tests.contains(&file.module));
    files
}

fn module_of(path: &Path) -> Vec<String> {
    let mut module: Vec<String> = path.with_extension("").iter().map(|part| part.to_str().unwrap().into()).collect();
    if module.last().is_some_and(|last| last == "mod" || module == ["lib"]) {
        module.pop();
    }
    module
}

/// Whether `line` begins a module.
fn declares(line: &str) -> bool {
    bare(line).starts_with("mod ")
}

/// `item` without its visibility.
fn bare(item: &str) -> &str {
    let inner = item.strip_prefix("pub(").and_then(|rest| Some(rest.split_once(") ")?.1));
    inner.unwrap_or(item.trim_start_matches("pub "))
}

/// The code above the inline tests, without comments; `tests` takes the files that are modules of tests.
fn production(text: &str, module: &[String], tests: &mut BTreeSet<Vec<String>>) -> String {
    let (mut code, mut for_tests, mut is_inline) = (String::new(), false, false);
    for line in text.lines() {
        is_inline = if line.starts_with('}') { false } else { is_inline || line.ends_with('{') && declares(line) };
        let line = line.split_once("//").map_or(line, |(before, _)| if before.contains('"') { line } else { before });
        if line.starts_with("#[cfg(test)]") {
            for_tests = true;
        } else if for_tests && !line.starts_with("#[") {
            let name = line.trim_start_matches("pub ").strip_prefix("mod ");
            match name.and_then(|name| name.strip_suffix(';')) {
                Some(name) => drop(tests.insert([module, &[name.to_owned()]].concat())),
                None if name.is_some() => return code,
                None => {}
            }
            for_tests = false;
        } else {
            // An inline module's parent is its file.
            code.push_str(&if is_inline { line.replace("super::", "self::") } else { line.to_owned() });
            code.push('\n');
        }
    }
    code
}

/// Every path that the code takes something from, spelt out from the crate's root.
fn imports(file: &SourceFile, modules: &BTreeSet<Vec<String>>) -> BTreeSet<Vec<String>> {
    let mut paths = Vec::new();
    for (at, _) in file.code.match_indices("use ").filter(|(at, _)| !file.code[..*at].ends_with(char::is_alphanumeric))
    {
        expand("", file.code[at + 4..].split(';').next().unwrap(), &mut paths);
    }
    for word in file.code.replace("pub(in crate::", "").split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':') {
        // What ends so goes on in braces, as a tree that was expanded.
        if (word.starts_with("crate::") || word.starts_with("super::")) && !word.ends_with("::") {
            paths.push(word.to_owned());
        }
    }
    paths.iter().filter_map(|path| resolve(path, &file.module, modules)).collect()
}

/// `a::{b, c::{d}}` as `a::b` and `a::c::d`.
fn expand(before: &str, tree: &str, paths: &mut Vec<String>) {
    let Some((head, rest)) = tree.trim().split_once('{') else {
        let last = tree.split(" as ").next().unwrap().trim();
        return paths.push(format!("{before}{last}"));
    };
    let (inside, mut depth, mut from) = (rest.trim().trim_end_matches('}'), 0, 0);
    let inside = if rest.trim().ends_with('}') { &rest.trim()[..rest.trim().len() - 1] } else { inside };
    for (at, c) in inside.char_indices().chain([(inside.len(), ',')]) {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ',' && depth == 0 {
            expand(&format!("{before}{}", head.trim()), &inside[from..at], paths);
            from = at + 1;
        }
    }
}

fn resolve(path: &str, here: &[String], modules: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
    let mut parts: Vec<&str> = path.split("::").collect();
    let mut module = match parts[0] {
        "crate" => Vec::new(),
        "self" | "super" => here.to_vec(),
        child => modules.contains(&[here, &[child.to_owned()]].concat()).then(|| here.to_vec())?,
    };
    if matches!(parts[0], "crate" | "self") {
        parts.remove(0);
    }
    for part in parts {
        if part == "super" {
            module.pop();
        } else {
            let below = [&module[..], &[part.to_owned()]].concat();
            if !modules.contains(&below) {
                break;
            }
            module = below;
        }
    }
    Some(module)
}

/// Fails with every violation at once.
fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn every_room_imports_lower_floors_only() {
    let mut violations = Vec::new();
    for (folder, floors) in CRATES {
        let files = sources(folder);
        let modules = files.iter().map(|file| file.module.clone()).collect();
        let floor = |room: &str| floors.iter().position(|rooms| rooms.contains(&room));
        for file in files.iter().filter(|file| file.module.first().is_some_and(|room| room != "main")) {
            let room = file.module[0].as_str();
            let others = imports(file, &modules).into_iter().filter_map(|import| import.into_iter().next());
            for other in others.filter(|other| other != room && (floor(room).is_none() || floor(other) >= floor(room)))
            {
                violations.push(format!("{}: {room} imports {other}", file.path.display()));
            }
            if floor(room).is_none() {
                violations.push(format!("{}: {room} is on no floor", file.path.display()));
            }
        }
    }
    assert_none(&violations);
}

#[test]
fn parents_declare_and_define_nothing() {
    let mut violations = Vec::new();
    for (folder, _) in CRATES {
        let files = sources(folder);
        let is_below = |file: &SourceFile, parent: &SourceFile| {
            file.module.len() > parent.module.len() && file.module.starts_with(&parent.module)
        };
        for parent in files.iter().filter(|parent| files.iter().any(|file| is_below(file, parent))) {
            let code: Vec<&str> = parent.code.lines().filter(|line| !line.starts_with('#')).collect();
            for item in code.join("\n").split(';').map(str::trim).filter(|item| !item.is_empty()) {
                if !declares(item) && !bare(item).starts_with("use ") {
                    violations.push(format!("{}: {}", parent.path.display(), item.lines().next().unwrap_or_default()));
                    break;
                }
            }
        }
    }
    assert_none(&violations);
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut violations = Vec::new();
    for (folder, _) in CRATES {
        let files = sources(folder);
        let modules: BTreeSet<_> = files.iter().map(|file| file.module.clone()).collect();
        let mut graph: BTreeMap<_, _> =
            files.iter().map(|file| (file.module.clone(), imports(file, &modules))).collect();
        for (module, imports) in &mut graph {
            imports.remove(module);
        }
        // What imports nothing that is left, or is imported by nothing that is left, is in no circle.
        while let Some(free) = graph.iter().find_map(|(module, imports)| {
            let is_top = !graph.values().any(|imports| imports.contains(module));
            (is_top || !imports.iter().any(|import| graph.contains_key(import))).then(|| module.clone())
        }) {
            graph.remove(&free);
        }
        for (module, imports) in &graph {
            let of_circles: Vec<String> =
                imports.iter().filter(|import| graph.contains_key(*import)).map(|import| import.join("::")).collect();
            violations.push(format!("{folder}: {} imports {}", module.join("::"), of_circles.join(", ")));
        }
    }
    assert_none(&violations);
}

#[test]
fn what_belongs_to_one_place_stands_nowhere_else() {
    let mut violations = Vec::new();
    let files: Vec<SourceFile> = CRATES.iter().flat_map(|(folder, _)| sources(folder)).collect();
    for (text, below, home) in ABSENCES {
        for file in files.iter().filter(|file| file.path.starts_with(below) && !file.path.starts_with(home)) {
            // A type's name alone opens nothing.
            if file.code.replace("use std::fs::File;", "").contains(text) {
                violations.push(format!("{}: {text}", file.path.display()));
            }
        }
    }
    for name in ["core", "interop", "gpt2"] {
        let manifest = std::fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
        for absent in ["tokio", "ureq", "notify"].into_iter().filter(|absent| manifest.contains(absent)) {
            violations.push(format!("crates/{name}/Cargo.toml: {absent}"));
        }
    }
    assert_none(&violations);
}
