"""Where ranks of Megatron jobs come from: one process imports torch and megatron-core, ranks are forks of it.

``python megatron_nursery.py FD`` reads orders from the socket FD: the JSON of a script that extends
:mod:`megatron_rank` and of a log, with the rank's end of a connection. It answers each with the rank's
process number, and ends when nobody can order more.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import socket
import sys
from pathlib import Path

import megatron_rank

ORDER_NBYTES = 1 << 14


def nurse(orders: socket.socket) -> None:
    """Fork a rank for each order."""
    while True:
        order, connections, _, _ = socket.recv_fds(orders, ORDER_NBYTES, 1)
        while reap():
            pass
        if not order:
            return
        rank = os.fork()
        if not rank:
            orders.close()
            play(*connections, **json.loads(order))
            atexit._run_exitfuncs()  # which end what multiprocessing started
            os._exit(0)  # taking a fork's modules apart would copy all of them first
        os.close(*connections)
        orders.send(str(rank).encode())


def reap() -> int:
    """Take note of a rank that has ended; 0 if there is none."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0


def play(connection: int, script: str, log: str) -> None:
    """Be a rank that reads jobs from a connection and answers on it, in a process group of its own."""
    os.setsid()
    os.dup2(connection, 0)
    os.dup2(connection, 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    os.close(connection)
    importlib.import_module(Path(script).stem)
    megatron_rank.serve()


if __name__ == "__main__":
    # processes that multiprocessing starts for ranks would import this file again, and so torch: no need
    del __file__
    gc.freeze()
    nurse(socket.socket(fileno=int(sys.argv[1])))
