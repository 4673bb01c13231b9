"""Builds the exerciser twice: as it is, and from a copy of the sources with every bug of `mutations` in it, switched off."""

import os
import pathlib
import re
import shutil
import subprocess

import mutations

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOME = ROOT / "target/faults"
SWITCH = '''
/// Whether CKPTD_MUTATION names this bug.
pub fn mutated(name: &str) -> bool {
    static ON: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| std::env::var("CKPTD_MUTATION").ok());
    ON.as_deref() == Some(name)
}
'''


def build_exerciser() -> pathlib.Path:
    return build("ckptd-faults", ROOT / "Cargo.toml", "exerciser")


def build_mutant() -> pathlib.Path:
    texts = sources()
    for mutation in mutations.MUTATIONS:
        switch = f'crate::mutated("{mutation.name}")'
        for file, old, new in mutation.changes:
            path = f"crates/{mutation.crate}/src/{file}"
            text = texts[path].decode()
            if text.count(old) != 1:
                raise SystemExit(f"faults: the bug {mutation.name!r} no longer fits {path}: {old!r} is there "
                                 f"{text.count(old)} times; see faults/mutations.py")
            texts[path] = text.replace(old, re.sub(r"\bON\b", lambda _: switch, new)).encode()
    for crate in {mutation.crate for mutation in mutations.MUTATIONS}:
        lib = f"crates/{crate}/src/lib.rs"
        texts[lib] = ("#![allow(warnings)]\n" + texts[lib].decode() + SWITCH).encode()
    return build("ckptd-mutant", write_copy(texts), "mutant")


def sources() -> dict[str, bytes]:
    paths = ["Cargo.toml", "Cargo.lock"]
    for folder in ("config", "src", "crates", "bench"):
        inside = sorted((ROOT / folder).rglob("*"))
        paths += [str(path.relative_to(ROOT)) for path in inside if path.is_file() and path.suffix in (".rs", ".toml")]
    return {path: (ROOT / path).read_bytes() for path in paths}


def write_copy(texts: dict[str, bytes]) -> pathlib.Path:
    """Writes the sources of the mutant, and returns the path of their Cargo.toml."""
    copy, manifest = HOME / "mutant-sources", texts["Cargo.toml"].decode()
    # A version of its own: to cargo, two packages of one name and version in one target folder are the same.
    version = re.search(r'^version = "(.*)"$', manifest, re.MULTILINE)[1]
    texts["Cargo.toml"] = manifest.replace(f'\nversion = "{version}"', f'\nversion = "{version}+mutant"', 1).encode()
    texts["Cargo.lock"] = re.sub(rf'(name = "ckptd(?:-[a-z0-9]+)?"\nversion = "{re.escape(version)})"', r'\1+mutant"',
                                 texts["Cargo.lock"].decode()).encode()
    exerciser = "crates/faults/Cargo.toml"
    texts[exerciser] = texts[exerciser].decode().replace('[[bin]]\nname = "ckptd-faults"', '[[bin]]\nname = "ckptd-mutant"').encode()
    for gone in [path for path in copy.rglob("*.rs") if str(path.relative_to(copy)) not in texts]:
        gone.unlink()
    for path, text in texts.items():
        target = copy / path
        # Only what changed is written, so that cargo builds only that.
        if not target.exists() or target.read_bytes() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text)
    return copy / "Cargo.toml"


def build(binary: str, manifest: pathlib.Path, name: str) -> pathlib.Path:
    # One target folder for both, and for the product: what they depend on is compiled once.
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "-p", "ckptd-faults", "--features", "faults",
                    "--bin", binary, "--manifest-path", str(manifest), "--target-dir", str(ROOT / "target")],
                   check=True, cwd=ROOT)
    # Renamed into place: the one before may be running.
    HOME.mkdir(parents=True, exist_ok=True)
    shutil.copy2(ROOT / "target/release" / binary, HOME / f"{name}.new")
    os.replace(HOME / f"{name}.new", HOME / name)
    return HOME / name
