"""What the growth benchmark counts by itself. Its actors are seen where it is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COUNTING = """
import socket
from scripts.benchmarks.growth import TcpBytes

with socket.create_server(("127.0.0.1", 0)) as server:
    near = socket.create_connection(server.getsockname())
    far, _ = server.accept()
counted = TcpBytes()
near.sendall(bytes(30_000))
assert far.recv(30_000, socket.MSG_WAITALL) == bytes(30_000)
print(counted.since_last(), counted.since_last())
"""


def test_bytes_on_tcp_connections_are_counted_at_both_ends() -> None:
    """In a process that has no others: here a Ray that another test has left may be talking."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTING],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.split() == ["60000", "0"]
