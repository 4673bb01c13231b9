"""Programs under the benchmark's command: one request a line, one answer a line, events in between.

Only one of them works at a time; the others wait for their standard input, asleep.
"""

import json
import queue
import subprocess
import threading
import time


class Gone(Exception):
    """The program ended or did not answer in time."""


class Server:
    def __init__(self, command, env=None, log=None):
        self.name = command[0] if len(command) < 2 or "python" not in command[0] else command[1]
        self.log = open(log, "ab") if log else None
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=env, text=True
        )
        self.lines = queue.Queue()
        #: (time of arrival, event) since the last `take_events`
        self.events = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put((time.monotonic(), line))
        self.lines.put((time.monotonic(), None))

    def _next(self, timeout):
        try:
            at, line = self.lines.get(timeout=timeout)
        except queue.Empty:
            raise Gone(f"{self.name} did not answer within {timeout} s") from None
        if line is None:
            raise Gone(f"{self.name} ended with {self.process.wait()}")
        message = json.loads(line)
        if "event" in message:
            self.events.append((at, message))
        return message

    def answer(self, timeout=600):
        """The next answer; events that come before it are kept."""
        while "reply" not in (message := self._next(timeout)):
            pass
        return message

    def ask(self, request, timeout=600):
        try:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Gone(f"{self.name}: {error}") from error
        return self.answer(timeout)

    def take_events(self, name):
        """Removes all kept events, and returns those of this name with their times."""
        kept, self.events = self.events, []
        return [(at, event) for at, event in kept if event["event"] == name]

    def wait_for(self, name, timeout=120):
        """Returns once an event of this name is among the kept ones."""
        until = time.monotonic() + timeout
        while not any(event["event"] == name for _, event in self.events):
            self._next(max(0.1, until - time.monotonic()))

    def close(self):
        """Ends the program: its input closes."""
        try:
            self.process.stdin.close()
            self.process.wait(30)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        if self.log:
            self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
