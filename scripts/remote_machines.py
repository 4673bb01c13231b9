"""Machines that cannot see each other, and the stores that they share: for scripts/remote_rounds.py.

A machine is a PID, mount and host-name namespace with a boot id and a machine id of its own; where this user may make
network namespaces, it is one of these too, and reaches the stores by a cable that can be pulled."""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid
from email.utils import formatdate
from pathlib import Path

PATIENCE_S = 180
SFTP_SERVERS = [Path("/usr/lib/openssh/sftp-server"), Path(".cache/openssh/usr/lib/openssh/sftp-server")]
AZURITE = Path(".cache/azurite/node_modules/azurite/dist/src/blob/main.js")
# Every emulator of Azure has this account and this key.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
# Names the machine, and gives it ids that are not this one's.
ENTER = """hostname "$1" && mount --bind "$2" /proc/sys/kernel/random/boot_id || exit 99
[ ! -f /etc/machine-id ] || mount --bind "$3" /etc/machine-id || exit 99
shift 3; exec "$@"
"""


class Network:
    """A bridge of this machine, and a cable to it from each namespace."""

    def __init__(self):
        self.bridge = f"ckb{os.getpid() % 100000}"
        # Of those that are kept for measurements, another one for each run.
        self.subnet = f"198.18.{os.getpid() % 256}."
        self.machines: dict[str, str] = {}
        self.why_not = None
        try:
            ip("link", "add", self.bridge, "type", "bridge")
            ip("addr", "add", f"{self.subnet}1/24", "dev", self.bridge)
            ip("link", "set", self.bridge, "up")
            self.join("a")
            self.join("b")
            self.address = f"{self.subnet}1"
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            self.why_not = (getattr(error, "stderr", None) or str(error)).strip()
            self.address = "127.0.0.1"

    def join(self, machine: str) -> None:
        space, cable = f"{self.bridge}{machine}", f"{self.bridge}c{machine}"
        ip("netns", "add", space)
        self.machines[machine] = space
        ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("link", "set", cable, "master", self.bridge, "up")
        ip("-n", space, "addr", "add", f"{self.subnet}{10 + len(self.machines)}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "lo", "up")
        ip("-n", space, "link", "set", "eth0", "up")

    def enter(self, machine: str) -> list[str]:
        return [] if self.why_not else ["ip", "netns", "exec", self.machines[machine]]

    def cable(self, machine: str, state: str) -> None:
        ip("link", "set", f"{self.bridge}c{machine}", state)

    def close(self) -> None:
        for space in self.machines.values():
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Machine:
    """A running program on a machine; its log is in `folder`."""

    def __init__(self, network: Network, name: str, folder: Path, command: list[str], environment: dict):
        boot, machine = folder / "boot_id", folder / "machine-id"
        boot.write_text(f"{uuid.uuid4()}\n")
        machine.write_text(f"{uuid.uuid4().hex}\n")
        alone = ["unshare", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child=KILL"]
        enter = ["sh", "-c", ENTER, "machine", f"machine-{name}", str(boot), str(machine)]
        self.log = folder / "log"
        out = self.log.open("w")
        self.process = subprocess.Popen(
            [*network.enter(name), *alone, *enter, *command],
            cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )

    def processes(self) -> list[int]:
        """All that run on it, the first one first."""
        found, waiting = [], children(self.process.pid)
        while waiting:
            found.append(waiting.pop(0))
            waiting += children(found[-1])
        return found

    def signal(self, number: int) -> None:
        for process in self.processes():
            os.kill(process, number)

    def power_off(self) -> None:
        """Kills its first process: the kernel ends all others with it, before that one is gone."""
        for process in self.processes()[:1]:
            os.kill(process, signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def said(self) -> str:
        return self.log.read_text()

    def events(self) -> list[dict]:
        """Its log: the lines that are whole."""
        lines = self.said().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while text not in self.said():
            if self.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"{text!r} never came:\n{self.said()}")
            time.sleep(0.02)


def children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children")
    try:
        return [int(child) for child in found.read_text().split()]
    except OSError:
        return []


class Store:
    """Where a job is kept: its URL, what a job file says besides, and the variables that reach it."""

    # So many that the training is not over some seconds after its first marker, on a fast machine and at a slow server.
    steps = 480

    def __init__(self, url: str, variables: dict, section: str = "", by_network: bool = False):
        self.url, self.variables, self.section, self.by_network = url, variables, section, by_network

    def beside_job_file(self) -> dict:
        """The variables of who has the job file, which says the endpoint where it can."""
        return {name: value for name, value in self.variables.items() if f'"{value}"' not in self.section}


def plain(folder: Path) -> str:
    return folder.name.replace("_", "-")


def stores(programs: Path, tools: Path, network: Network, wanted: list[str]):
    """Name of each kind of remote, and what gives a round its own place there; None where its server is missing."""
    # What is deleted stays there for an hour, and would fill the memory and the disk: each round has a server of its own.
    with contextlib.ExitStack() as servers:
        if "s3" in wanted:
            yield "s3", lambda at: s3(servers, programs, network, at)
            servers.close()
        if "az" in wanted:
            there = AZURITE.exists() and shutil.which("node")
            yield "az", (lambda at: azure(servers, tools, network, at)) if there else None
    if "file" in wanted:
        yield "file", lambda at: Store(f"file://{at}/job", {})
    if "sftp" in wanted:
        server = next((server for server in SFTP_SERVERS if server.exists()), None)
        ssh = tools / "ssh"
        ssh.write_text(f"#!/bin/sh\nexec {server.resolve() if server else 'false'}\n")
        ssh.chmod(0o755)
        path = {"PATH": f"{tools}:{os.environ['PATH']}"}
        yield "sftp", (lambda at: Store(f"sftp://me@host{at}/job", path)) if server else None


def s3(servers: contextlib.ExitStack, programs: Path, network: Network, at: Path) -> Store:
    servers.close()
    server = subprocess.Popen(
        [programs / "object-server", network.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    servers.callback(server.wait)
    servers.callback(server.stdin.close)
    keys = {"AWS_ENDPOINT_URL": server.stdout.readline().strip(), "AWS_ACCESS_KEY_ID": "AKIATEST",
            "AWS_SECRET_ACCESS_KEY": "of no consequence"}
    return Store(f"s3://bucket/{plain(at)}/job", keys, by_network=True)


def azure(servers: contextlib.ExitStack, tools: Path, network: Network, at: Path) -> Store:
    servers.close()
    with socket.socket() as free:
        free.bind((network.address, 0))
        port = free.getsockname()[1]
    location = servers.enter_context(tempfile.TemporaryDirectory(dir=tools))
    command = ["node", str(AZURITE), "--blobHost", network.address, "--blobPort", str(port), "--location", location]
    server = subprocess.Popen([*command, "--silent", "--skipApiVersionCheck"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    servers.callback(server.wait)
    servers.callback(server.kill)
    endpoint = f"http://{network.address}:{port}/{ACCOUNT}"
    make_container(endpoint, "bucket")
    # Who has only the URL has the endpoint from the environment.
    keys = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY, "AZURE_STORAGE_ENDPOINT": endpoint}
    return Store(f"az://bucket/{plain(at)}/job", keys, f'endpoint = "{endpoint}"\n', by_network=True)


def make_container(endpoint: str, name: str) -> None:
    """Makes a container by a request that is signed with the account's key, as soon as the server listens."""
    date = formatdate(usegmt=True)
    named = f"x-ms-date:{date}\nx-ms-version:2021-08-06\n"
    signed = "PUT" + "\n" * 12 + f"{named}/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()).decode()
    headers = {"x-ms-date": date, "x-ms-version": "2021-08-06", "Content-Length": "0",
               "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
    request = urllib.request.Request(f"{endpoint}/{name}?restype=container", method="PUT", headers=headers)
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
