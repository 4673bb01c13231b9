"""Builds the exerciser twice, each from a copy of the sources: as they are, and with every bug of `mutations` in it,
switched off. The copies have of the library only the store and what it stands on, which compiles in a quarter of the time."""

import os
import pathlib
import re
import shutil
import subprocess

import mutations

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOME = ROOT / "target/faults"
LIBRARY = """#![allow(warnings)]
pub mod config;
pub mod error;
mod ordered;
pub mod session {
    pub mod costs;
    pub mod ledger;
}
pub mod snapshot;
pub mod store;
pub use error::{Error, Result};
"""
SWITCH = '''
/// Whether CKPTD_MUTATION names this bug.
pub fn mutated(name: &str) -> bool {
    static ON: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| std::env::var("CKPTD_MUTATION").ok());
    ON.as_deref() == Some(name)
}
'''


def build_exerciser() -> pathlib.Path:
    return build("exerciser", sources() | {"src/lib.rs": LIBRARY.encode()})


def build_mutant() -> pathlib.Path:
    texts = sources()
    for mutation in mutations.MUTATIONS:
        switch = f'crate::mutated("{mutation.name}")'
        for file, old, new in mutation.changes:
            path = f"src/store/{file}"
            text = texts[path].decode()
            if text.count(old) != 1:
                raise SystemExit(f"faults: the bug {mutation.name!r} no longer fits {path}: {old!r} is there "
                                 f"{text.count(old)} times; see faults/mutations.py")
            texts[path] = text.replace(old, re.sub(r"\bON\b", lambda _: switch, new)).encode()
    return build("mutant", texts | {"src/lib.rs": (LIBRARY + SWITCH).encode()})


def sources() -> dict[str, bytes]:
    paths = ["Cargo.toml", "Cargo.lock"]
    for folder in ("config", "src", "faults/exerciser", "trainer", "chaos", "bench"):
        inside = sorted((ROOT / folder).rglob("*"))
        paths += [str(path.relative_to(ROOT)) for path in inside if path.is_file() and path.suffix in (".rs", ".toml")]
    return {path: (ROOT / path).read_bytes() for path in paths}


def build(name: str, texts: dict[str, bytes]) -> pathlib.Path:
    binary, copy = f"ckptd-{name}", HOME / f"{name}-sources"
    manifest = texts["Cargo.toml"].decode().replace('name = "ckptd-faults"', f'name = "{binary}"')
    # A version of its own: to cargo, two packages of one name and version in one target folder are the same.
    version = re.search(r'^version = "(.*)"$', manifest, re.MULTILINE)[1]
    texts["Cargo.toml"] = manifest.replace(f'\nversion = "{version}"', f'\nversion = "{version}+{name}"', 1).encode()
    texts["Cargo.lock"] = re.sub(rf'(name = "ckptd(?:-[a-z0-9]+)?"\nversion = "{re.escape(version)})"', rf'\1+{name}"',
                                 texts["Cargo.lock"].decode()).encode()
    for path, text in texts.items():
        target = copy / path
        # Only what changed is written, so that cargo builds only that.
        if not target.exists() or target.read_bytes() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text)
    # One target folder for both, and for the product: what they depend on is compiled once.
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "-p", "ckptd", "--features", "faults", "--bin", binary,
                    "--manifest-path", str(copy / "Cargo.toml"), "--target-dir", str(ROOT / "target")], check=True, cwd=ROOT)
    # Renamed into place: the one before may be running.
    shutil.copy2(ROOT / "target/release" / binary, HOME / f"{name}.new")
    os.replace(HOME / f"{name}.new", HOME / name)
    return HOME / name
