#!/usr/bin/env bash
# Version: openssh-sftp-server 1:9.2p1-2+deb12u10 of Debian 12. Seen in November 2026.
#
# Behaviour: OpenSSH's sftp-server answers a write for which there is no room with status 4 and the text "Failure". It
# answers the same, byte for byte, to a folder that is already there, a folder that is not empty, and a rename onto a name
# that is taken: version 3 of the protocol, the only one that it speaks, has no number for these, and the text that goes
# along does not say more. So a client cannot tell a full disk from another trouble by the answer. It can ask how much room
# there is (statvfs@openssh.com, which the server offers); that says nothing of a quota. /dev/full stands for the full disk:
# each write to it fails for lack of room (ENOSPC).
#
# Output:
#   no room for a write: status 4, 'Failure'
#   the folder is already there: status 4, 'Failure'
#   the folder is not empty: status 4, 'Failure'
#   the name is taken: status 4, 'Failure'
#   the file is not there: status 2, 'No such file'
#   the first four answers are equal
#   statvfs@openssh.com is offered
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes seconds; needs Debian 12 with apt-get, and python3.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
apt-get -qq -o APT::Sandbox::User=root download openssh-sftp-server=1:9.2p1-2+deb12u10
dpkg-deb -x openssh-sftp-server_*.deb package
mkdir -p there/filled
touch there/one there/other there/filled/file
cat >show.py <<'PY'
import struct
import subprocess
import sys

INIT, OPEN, WRITE, MKDIR, RMDIR, RENAME, STATUS, HANDLE = 1, 3, 6, 14, 15, 18, 101, 102
server = subprocess.Popen(["package/usr/lib/openssh/sftp-server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def text(data):
    return struct.pack(">I", len(data)) + data


def number(value):
    return struct.pack(">I", value)


def ask(kind, body):
    """The kind of the answer, and what it says behind its first number."""
    server.stdin.write(text(bytes([kind]) + number(3) + body))
    server.stdin.flush()
    answer = server.stdout.read(struct.unpack(">I", server.stdout.read(4))[0])
    return answer[0], answer[5:]


def status(kind, body):
    answer, said = ask(kind, body)
    assert answer == STATUS, answer
    return said


_, extensions = ask(INIT, b"")
kind, handle = ask(OPEN, text(b"/dev/full") + number(2) + number(0))
assert kind == HANDLE, kind
answers = {
    "no room for a write": status(WRITE, handle + bytes(8) + text(b"data")),
    "the folder is already there": status(MKDIR, text(b"there") + number(0)),
    "the folder is not empty": status(RMDIR, text(b"there/filled")),
    "the name is taken": status(RENAME, text(b"there/one") + text(b"there/other")),
    "the file is not there": status(OPEN, text(b"absent") + number(1) + number(0)),
}
server.stdin.close()
server.wait()
for name, said in answers.items():
    length = struct.unpack(">I", said[4:8])[0]
    print(f"{name}: status {struct.unpack('>I', said[:4])[0]}, {said[8:8 + length].decode()!r}")
*same, absent = answers.values()
print("the first four answers are", "equal" if len(set(same)) == 1 else "not equal")
print("statvfs@openssh.com is", "offered" if b"statvfs@openssh.com" in extensions else "not offered")
sys.exit(set(same) != {number(4) + text(b"Failure") + text(b"")} or absent in same
         or b"statvfs@openssh.com" not in extensions)
PY
python3 show.py 2>errors.txt || { cat errors.txt >&2; exit 1; }
