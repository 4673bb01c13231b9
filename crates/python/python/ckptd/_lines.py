"""Messages as lines over a Unix socket.

Invariant: a message is one line, and is never cut by another thread's; an end that is gone is noticed by whoever reads,
and writing to it fails nobody. A process that is forked has no part in it.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import Any


class LineSocket:
    """A connection, from this side."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._lines = connection.makefile("r", encoding="utf-8")
        os.register_at_fork(after_in_child=self._forget)

    @classmethod
    def connect(cls, path: str) -> LineSocket:
        """To who listens at `path`. Raises OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            raise
        return cls(connection)

    def receive(self) -> dict[str, Any] | None:
        """The next message; `None`: the other end is gone."""
        try:
            line = self._lines.readline()
        except (OSError, ValueError):
            return None
        return dict(json.loads(line)) if line.endswith("\n") else None

    def is_gone(self) -> bool:
        """Whether the other end is gone and has nothing left to say. For who does not read now."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message) + "\n"
        with self._lock:
            try:
                self._socket.sendall(line.encode())
            except OSError:
                pass

    def _forget(self) -> None:
        # The child's copy; the connection is its parent's. Its lock may have been held in the middle of a message.
        self._lock = threading.Lock()
        # `close` would leave it open for the reader, whose lock may have been held, too.
        os.close(self._socket.detach())
