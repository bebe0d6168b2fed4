"""Processes that play the ranks of a Megatron job. They are started once, since importing takes longest."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("megatron_rank.py")
NURSERY = Path(__file__).with_name("megatron_nursery.py")


class JobFailed(AssertionError):
    """A rank raised, died or did not answer in time; the message holds its traceback."""


class Nursery:
    """The process that all ranks of this process's tests are forks of, started when the first is needed."""

    _running: Nursery | None = None

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # what megatron-core compiles runs as it is written: compiling takes longer than all that is computed
        environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(NURSERY), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    @classmethod
    def start(cls, script: Path, log: Path) -> Rank:
        """A new rank."""
        cls._running = cls._running or cls()
        orders = cls._running._orders
        ours, theirs = socket.socketpair()
        with theirs:
            order = json.dumps({"script": str(script), "log": str(log)}).encode()
            socket.send_fds(orders, [order], [theirs.fileno()])
        number = orders.recv(64)
        assert number, "the process that ranks are forks of has ended: its error is on standard error"
        return Rank(int(number), ours)

    @classmethod
    def close(cls) -> None:
        """End it, when all ranks have ended."""
        if cls._running:
            cls._running._orders.close()
            cls._running._process.wait()
            cls._running = None


class Rank:
    """A process that answers a line of JSON for each that it is sent."""

    def __init__(self, number: int, connection: socket.socket) -> None:
        self._number = number
        self._connection = connection
        self.answers = connection.makefile("r")

    def send(self, job: dict[str, Any]) -> None:
        self._connection.sendall((json.dumps(job) + "\n").encode())

    def dismiss(self) -> None:
        """Tell it that no job will follow."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def end(self, deadline: float) -> None:
        """Wait until it has left. What is left of it and of what it started at the deadline is killed.

        megatron-core has a manager process in each process that saves: it ends with a rank that leaves,
        not with one that is killed alone.
        """
        self._connection.settimeout(max(0.001, deadline - time.monotonic()))
        with contextlib.suppress(OSError):
            while self._connection.recv(1 << 16):
                pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._number, signal.SIGKILL)
        self.answers.close()
        self._connection.close()


class World:
    """Runs jobs of :mod:`megatron_rank`, or of a ``script`` that extends it, on as many ranks as each needs."""

    def __init__(self, log: Path, script: Path = SCRIPT) -> None:
        self._script = script
        self._ranks: list[Rank] = []
        self._log = log

    def run(self, do: str, *, timeout: float = 120, **args: Any) -> list[dict[str, Any]]:
        """The answers of all ranks. Raises JobFailed, after which all ranks are gone."""
        world = args["tp"] * args["pp"] * args.get("ep", 1)
        while len(self._ranks) < world:
            self._ranks.append(Nursery.start(self._script, self._log))
        ranks = self._ranks[:world]
        port = _free_port()
        try:
            for number, rank in enumerate(ranks):
                rank.send({"do": do, "rank": number, "world": world, "port": port, "args": args})
            return self._collect(ranks, timeout)
        except BaseException:
            self.close(patience=0)  # the other ranks wait for one that will not come
            raise

    def _collect(self, ranks: list[Rank], timeout: float) -> list[dict[str, Any]]:
        end = time.monotonic() + timeout
        answers: dict[int, dict[str, Any]] = {}
        with selectors.DefaultSelector() as waiting:
            for number, rank in enumerate(ranks):
                waiting.register(rank.answers, selectors.EVENT_READ, number)
            while len(answers) < len(ranks):
                ready = waiting.select(max(0, end - time.monotonic()))
                if not ready:
                    raise JobFailed(f"no answer within {timeout} s")
                for key, _ in ready:
                    waiting.unregister(key.fileobj)
                    line = ranks[key.data].answers.readline()
                    answer = json.loads(line) if line else {"error": f"died: {self._log.read_text()[-2000:]}"}
                    if "error" in answer:
                        raise JobFailed(f"rank {key.data}: {answer['error']}")
                    answers[key.data] = answer["result"]
        return [answers[number] for number in range(len(ranks))]

    def close(self, patience: float = 10) -> None:
        """End all ranks, and all that they started."""
        for rank in self._ranks:
            rank.dismiss()
        deadline = time.monotonic() + patience
        for rank in self._ranks:
            rank.end(deadline)
        self._ranks = []


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
