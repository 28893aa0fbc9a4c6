"""The reward server: HTTP in this process, models in actors, a dispatcher between them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn

from actors.reward_dispatcher import RewardDispatcher
from rlaif_ray.config import ServeRewardConfig, UserError
from rlaif_ray.serving.http import create_app
from rlaif_ray.serving.service import RewardVersion


async def serve_reward(directory: Path, config: ServeRewardConfig, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then answer what is under way and return. A second signal does not wait.

    Inside a `ray_session`. Raises UserError where the address, the key or the model cannot be had.
    """
    key = _key(config)
    dispatcher = RewardDispatcher(config, say)
    with _listening(config) as listener:
        version = await dispatcher.start(directory)
        app = create_app(dispatcher, key=key, max_answers=config.max_queued)
        server = _Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
        dispatching = asyncio.create_task(dispatcher.run())
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        listener.listen()  # uvicorn is about to, and whoever reads the greeting may call at once
        say(_greeting(version, listener.getsockname()[:2]))
        await asyncio.wait([serving, dispatching], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        dispatching.cancel()
        with suppress(asyncio.CancelledError):
            await dispatching


class _Server(uvicorn.Server):
    """Ends by the signals that would, and leaves them to nobody else: uvicorn raises them again when it has ended."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


@contextmanager
def _listening(config: ServeRewardConfig) -> Iterator[socket.socket]:
    """A bound socket: before anything is loaded, so that a taken port is told at once."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((config.host, config.port))
        except OSError as error:
            raise UserError(
                f"port={config.port}: cannot listen on {config.host} ({error.strerror}); set another, or 0 for any"
            ) from None
        yield listener


def _key(config: ServeRewardConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise UserError(f"api_key_env: the environment variable {config.api_key_env} is not set; export the key there")
    return key


def _greeting(version: RewardVersion, address: tuple[str, int]) -> str:
    host, port = address
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    models = "" if version.members == 1 else f", {version.members} models"
    return (
        f"Serving {version.directory} (version {version.number}, {version.fingerprint[:12]}{models}) at {url}\n"
        f"The API is described at {url}/docs. Ctrl-C ends the server when it has answered what is under way."
    )
