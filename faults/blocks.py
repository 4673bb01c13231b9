"""A block device that is recorded or made to fail: qemu-storage-daemon shows an image through FUSE, a loop device makes
a disk of it.

Invariant: the loop device is attached without direct I/O, which corrupts data on such an export."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import time

import tools


@contextlib.contextmanager
def device(folder: pathlib.Path, size: int, log: pathlib.Path | None = None, monitor: pathlib.Path | None = None):
    """The path of a disk of `size` bytes. `log`: every write and flush is recorded there (blklogwrites). `monitor`: a
    socket through which `fail` makes the disk fail."""
    tools.need_root()
    tools.need("qemu-storage-daemon", "qemu-system-common")
    tools.need("fusermount3", "fuse3")
    if not os.path.exists("/dev/fuse"):
        raise tools.Missing("this kernel has no /dev/fuse")
    disk, export = folder / "disk", folder / "export"
    for path, length in ((disk, size), (export, 0), *([(log, 0)] if log else [])):
        with open(path, "wb") as file:
            file.truncate(length)
    command = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=file,filename={disk},discard=unmap"]
    if log:
        command += ["--blockdev", f"driver=file,node-name=log,filename={log}",
                    "--blockdev", "driver=blklogwrites,node-name=top,file=file,log=log,log-sector-size=512"]
    else:
        command += ["--blockdev", "driver=raw,node-name=top,file=file"]
    if monitor:
        command += ["--chardev", f"socket,path={monitor},server=on,wait=off,id=monitor", "--monitor", "monitor"]
    command += ["--export", f"type=fuse,id=export,node-name=top,mountpoint={export},writable=on"]
    daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(export, daemon)
        loop = attach(export)
        try:
            yield loop
        finally:
            tools.run("losetup", "-d", loop, check=False)
    finally:
        daemon.terminate()
        daemon.wait()
        tools.run("umount", "-l", export, check=False)


def wait_for(export: pathlib.Path, daemon: subprocess.Popen) -> None:
    for _ in range(200):
        if str(export) in pathlib.Path("/proc/mounts").read_text():
            return
        if daemon.poll() is not None:
            raise tools.Missing(f"qemu-storage-daemon: {daemon.stderr.read().strip()}")
        time.sleep(0.05)
    raise tools.Missing("the FUSE export did not appear")


def attach(export: pathlib.Path) -> str:
    try:
        return tools.run("losetup", "--find", "--show", export)
    except RuntimeError as error:
        raise tools.Missing(f"no loop device: {error}") from error


class Monitor:
    """Speaks to the daemon."""

    def __init__(self, path: pathlib.Path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rw")
        self.file.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: object) -> None:
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while "event" in (answer := json.loads(self.file.readline())):
            pass
        if "error" in answer:
            raise tools.Missing(f"qemu-storage-daemon: {answer['error']['desc']}")

    def fail(self, what: str, once: bool) -> None:
        """From now on the next one or all of `what` (write, flush, read) fail with EIO."""
        rule = {"event": "none", "iotype": what, "errno": 5, "once": once}
        self.ask("blockdev-add", **{"driver": "blkdebug", "node-name": "failing", "image": "file", "inject-error": [rule]})
        self.ask("blockdev-reopen", options=[{"driver": "raw", "node-name": "top", "file": "failing"}])
