"""Builds the exerciser twice: from the sources, and from a copy with every bug of `mutations` in it, switched off."""

import os
import pathlib
import re
import shutil
import subprocess

import mutations

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOME = ROOT / "target/faults"
COPY = HOME / "mutated"
SWITCH = '''
/// Whether CKPTD_MUTATION names this bug.
pub fn mutated(name: &str) -> bool {
    static ON: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| std::env::var("CKPTD_MUTATION").ok());
    ON.as_deref() == Some(name)
}
'''


def build_exerciser() -> pathlib.Path:
    return build(ROOT, "ckptd-faults", "exerciser")


def build_mutant() -> pathlib.Path:
    write_copy()
    return build(COPY, "ckptd-mutant", "mutant")


def build(source: pathlib.Path, binary: str, name: str) -> pathlib.Path:
    # One target folder for both: what they depend on is compiled once.
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "-p", "ckptd", "--features", "faults", "--bin", binary,
                    "--manifest-path", str(source / "Cargo.toml"), "--target-dir", str(ROOT / "target")],
                   check=True, cwd=ROOT)
    HOME.mkdir(parents=True, exist_ok=True)
    # Renamed into place: the one before may be running.
    shutil.copy2(ROOT / "target/release" / binary, HOME / f"{name}.new")
    os.replace(HOME / f"{name}.new", HOME / name)
    return HOME / name


def write_copy() -> None:
    """Only what changed is written, so that cargo builds only that."""
    texts = {}
    for path in ["Cargo.toml", "Cargo.lock", *tracked("config"), *tracked("src"), *tracked("faults/exerciser"),
                 *tracked("trainer"), *tracked("chaos"), *tracked("bench")]:
        texts[path] = (ROOT / path).read_bytes()
    for mutation in mutations.MUTATIONS:
        switch = f'crate::mutated("{mutation.name}")'
        for file, old, new in mutation.changes:
            path = f"src/store/{file}"
            text = texts[path].decode()
            if text.count(old) != 1:
                raise SystemExit(f"faults: the bug {mutation.name!r} no longer fits {path}: {old!r} is there "
                                 f"{text.count(old)} times; see faults/mutations.py")
            texts[path] = text.replace(old, re.sub(r"\bON\b", lambda _: switch, new)).encode()
    texts["src/lib.rs"] = b"#![allow(warnings)]\n" + texts["src/lib.rs"] + SWITCH.encode()
    manifest = texts["Cargo.toml"].decode().replace('name = "ckptd-faults"', 'name = "ckptd-mutant"')
    # A version of its own: to cargo, two packages of one name and version in one target folder are the same.
    version = re.search(r'^version = "(.*)"$', manifest, re.MULTILINE)[1]
    texts["Cargo.toml"] = manifest.replace(f'\nversion = "{version}"', f'\nversion = "{version}+mutated"', 1).encode()
    locked = re.sub(rf'(name = "ckptd(?:-[a-z0-9]+)?"\nversion = "{re.escape(version)})"', r'\1+mutated"', texts["Cargo.lock"].decode())
    texts["Cargo.lock"] = locked.encode()
    for path, text in texts.items():
        target = COPY / path
        if not target.exists() or target.read_bytes() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text)


def tracked(folder: str) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in sorted((ROOT / folder).rglob("*")) if path.is_file() and path.suffix in (".rs", ".toml")]
