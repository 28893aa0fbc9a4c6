"""A port for a server that must be told one."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

# Below these the system gives ports to whoever asks for any, so that nobody gets one of them before it is used.
_PORTS = range(20_000, 32_000)


def free_port() -> int:
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
