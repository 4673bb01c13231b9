"""The machine: what it is, how busy it is, how fast its disk takes and forgets bytes."""

import importlib.metadata
import mmap
import os
import pathlib
import platform
import subprocess
import time

BLOCK = 8 << 20


def write_rate(folder, size, cached=False):
    """Bytes a second of direct writes in large blocks to a file that has its room already, fsync included.

    From memory of that size, as whoever has so much to write; a cached block that is written again and again reaches the
    device from the processor's cache, which a state cannot."""
    path = folder / "rate.bin"
    path.unlink(missing_ok=True)
    memory = mmap.mmap(-1, BLOCK if cached else size // BLOCK * BLOCK)
    random = os.urandom(BLOCK)
    for _ in range(0, len(memory), BLOCK):
        memory.write(random)
    blocks = memoryview(memory)
    file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600)
    try:
        os.posix_fallocate(file, 0, size)
        began = time.perf_counter()
        for offset in range(0, size // BLOCK * BLOCK, BLOCK):
            at = offset % len(memory)
            os.pwrite(file, blocks[at : at + BLOCK], offset)
        os.fsync(file)
        return size // BLOCK * BLOCK / (time.perf_counter() - began)
    finally:
        os.close(file)
        path.unlink()


def forget(folder):
    """Drops the files below from the page cache, once they are on the disk."""
    for path in pathlib.Path(folder).rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def stolen_s():
    """Seconds that the hypervisor gave to others, all processors together."""
    fields = pathlib.Path("/proc/stat").read_text().split("\n")[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def load():
    return os.getloadavg()[0]


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def describe(folder):
    """Lines on the machine and the versions."""
    cpu = [line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().split("\n") if "model name" in line]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    packages = ("torch", "transformers", "safetensors", "zipnn", "blosc2", "zstandard", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    filesystem = output("findmnt", "-no", "FSTYPE", "-T", str(folder))
    return [
        f"{len(cpu)} x {cpu[0] if cpu else platform.machine()}, {memory / 2**30:.0f} GiB, {filesystem}, Linux {platform.release()}",
        f"Python {platform.python_version()}, {versions}",
        f"ckptd {output('git', 'describe', '--always', '--dirty')}, {output('rustc', '--version')}",
    ]
