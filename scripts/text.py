"""Writes real text that is on the machine anyway into a folder: Python's language reference, the texts of the Rust
toolchain, common licences. The default job trains on it, so that a first run needs no download but libtorch."""

import pathlib
import pydoc_data.topics
import subprocess
import sys


def main(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    topics = pydoc_data.topics.topics
    texts = {"python.txt": "\n\n".join(topics[name] for name in sorted(topics))}
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=False).stdout.strip()
    rust = sorted(pathlib.Path(sysroot or "/nonexistent").glob("share/doc/**/*.md"))
    texts["rust.txt"] = "\n\n".join(path.read_text(errors="replace") for path in rust)
    licences = sorted(path for path in pathlib.Path("/usr/share/common-licenses").glob("*") if path.is_file())
    texts["licences.txt"] = "\n\n".join(path.read_text(errors="replace") for path in licences)
    for name, text in texts.items():
        if text:
            (folder / name).write_text(text)


main(pathlib.Path(sys.argv[1]))
