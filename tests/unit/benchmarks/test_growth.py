"""What the growth benchmark counts by itself. Its actors are seen where it is run."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from scripts.benchmarks.growth import TcpBytes


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        with near, far:
            yield near, far


def test_bytes_on_tcp_connections_are_counted_at_both_ends(connection: tuple[socket.socket, socket.socket]) -> None:
    near, far = connection
    counted = TcpBytes()
    near.sendall(bytes(30_000))
    assert far.recv(30_000, socket.MSG_WAITALL) == bytes(30_000)
    assert counted.since_last() == 60_000
    assert counted.since_last() == 0
