"""Processes that play the ranks of a Megatron job. They are started once, since importing takes longest."""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import children

SCRIPT = Path(__file__).with_name("megatron_rank.py")


class JobFailed(AssertionError):
    """A rank raised, died or did not answer in time; the message holds its traceback."""


class World:
    """Runs jobs of :mod:`megatron_rank`, or of a ``script`` that extends it, on as many ranks as each needs."""

    def __init__(self, log: Path, script: Path = SCRIPT) -> None:
        self._script = script
        self._ranks: list[subprocess.Popen[str]] = []
        self._log = log

    def run(self, do: str, *, timeout: float = 120, **args: Any) -> list[dict[str, Any]]:
        """The answers of all ranks. Raises JobFailed, after which all ranks are gone."""
        world = args["tp"] * args["pp"] * args.get("ep", 1)
        while len(self._ranks) < world:
            self._ranks.append(self._start())
        ranks = self._ranks[:world]
        port = _free_port()
        try:
            for number, rank in enumerate(ranks):
                job = {"do": do, "rank": number, "world": world, "port": port, "args": args}
                assert rank.stdin is not None
                rank.stdin.write(json.dumps(job) + "\n")
                rank.stdin.flush()
            return self._collect(ranks, timeout)
        except BaseException:
            self.close(patience=0)  # the other ranks wait for one that will not come
            raise

    def _collect(self, ranks: list[subprocess.Popen[str]], timeout: float) -> list[dict[str, Any]]:
        end = time.monotonic() + timeout
        answers: dict[int, dict[str, Any]] = {}
        with selectors.DefaultSelector() as waiting:
            for number, rank in enumerate(ranks):
                waiting.register(rank.stdout, selectors.EVENT_READ, number)  # type: ignore[arg-type]
            while len(answers) < len(ranks):
                ready = waiting.select(max(0, end - time.monotonic()))
                if not ready:
                    raise JobFailed(f"no answer within {timeout} s")
                for key, _ in ready:
                    waiting.unregister(key.fileobj)
                    line = key.fileobj.readline()  # type: ignore[union-attr]
                    answer = json.loads(line) if line else {"error": f"died: {self._log.read_text()[-2000:]}"}
                    if "error" in answer:
                        raise JobFailed(f"rank {key.data}: {answer['error']}")
                    answers[key.data] = answer["result"]
        return [answers[number] for number in range(len(ranks))]

    def _start(self) -> subprocess.Popen[str]:
        # what megatron-core compiles runs as it is written: compiling takes longer than all that is computed
        environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}
        with open(self._log, "a") as log:
            return children.start([sys.executable, str(self._script)], stderr=log, env=environment)

    def close(self, patience: float = 10) -> None:
        """End all ranks, and all that they started."""
        children.end(self._ranks, patience)
        self._ranks = []


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
