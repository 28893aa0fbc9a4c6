"""How the `openai` client's requests reach the network: aiohttp, whose parser is in C.

A call costs the client's process a third of the time it takes with the default transport. What it adds: a bound on
what is read, and a deadline for the whole of a call, where the default bounds each read alone.
"""

from __future__ import annotations

import urllib.request

import aiohttp
import httpx2

# More than this is no answer of a judge: the rest of such a body is not read.
LARGEST_BODY_BYTES = 4 * 2**20

_LONGEST_CONNECT_S = 10.0

# Servers close what is idle, uvicorn after 5 s, and a request that meets the closing may or may not have been read.
_IDLE_S = 4.0

# The body is handed on decoded and whole.
_OF_THE_WIRE = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """A connection pool to one endpoint, without a bound of its own on connections: pacing is the caller's.

    Raises httpx2.ConnectError where the request was certainly not sent, httpx2.ReadTimeout at the deadline, and
    httpx2.ReadError where the answer broke off. Proxies come from the environment, certificates as in httpx2.
    """

    def __init__(self, base_url: httpx2.URL, timeout_s: float) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_LONGEST_CONNECT_S)
        bypassed = urllib.request.proxy_bypass(base_url.host)
        self._proxy = None if bypassed else urllib.request.getproxies().get(base_url.scheme)
        self._secure = base_url.scheme == "https"
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self._session is None:  # not before a loop runs
            self._session = self._open()
        try:
            async with self._session.request(
                request.method,
                str(request.url),
                data=request.content,
                headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw],
                allow_redirects=False,
                proxy=self._proxy,
            ) as response:
                return httpx2.Response(
                    response.status,
                    headers=[(name, value) for name, value in response.raw_headers if name.lower() not in _OF_THE_WIRE],
                    content=await _bounded(response.content),
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise httpx2.ConnectError(str(error)) from error
        except TimeoutError as error:
            raise httpx2.ReadTimeout(str(error)) from error
        except aiohttp.ClientError as error:
            raise httpx2.ReadError(str(error)) from error

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=_IDLE_S, ssl=httpx2.create_ssl_context() if self._secure else True
        )
        return aiohttp.ClientSession(connector=connector, timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar())


async def _bounded(stream: aiohttp.StreamReader) -> bytes:
    parts: list[bytes] = []
    left = LARGEST_BODY_BYTES
    async for part in stream.iter_any():
        parts.append(part[:left])
        left -= len(part)
        if left <= 0:
            break
    return b"".join(parts)
