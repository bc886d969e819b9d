"""HTTP sessions for calls to addresses that users name.

The server stands where they lead, so a user's address must not become the user's reach: no address
of a machine's own link, where clouds hand out the machine's credentials; no redirect, which would
lead elsewhere than was named; and no more of an answer than the server can hold for many at once.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

#: Most of an answer that is read, bytes; Lambda's own limit is 6 MB.
MAX_ANSWER_BYTES = 16 * 1024 * 1024

#: Clouds' metadata services outside the link-local networks: Amazon's by IPv6, Alibaba's, Azure's.
_METADATA = frozenset(
    ipaddress.ip_address(text) for text in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")
)


class NotAllowed(aiohttp.ClientConnectionError):
    """An address, or an answer, that is refused."""


def open_session(**options: Any) -> aiohttp.ClientSession:
    """A session that connects to no forbidden address. Call it inside a running event loop."""
    connector = aiohttp.TCPConnector(limit=0, resolver=_Resolver())
    return aiohttp.ClientSession(
        connector=connector, middlewares=(_check_literal, _refuse_redirect), **options
    )


async def read_answer(response: aiohttp.ClientResponse) -> bytes:
    """The body. Raises `NotAllowed` for one that is too large."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            response.close()
            raise NotAllowed(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def check_host(host: str) -> None:
    """Raise `NotAllowed` for the literal address of a forbidden place; a name passes."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_link_local or address.is_multicast or address in _METADATA:
        raise NotAllowed(f"{host} is an address that this server does not call for anybody")


_Next = Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]


async def _check_literal(request: aiohttp.ClientRequest, handler: _Next) -> aiohttp.ClientResponse:
    check_host(urlsplit(str(request.url)).hostname or "")
    return await handler(request)


async def _refuse_redirect(
    request: aiohttp.ClientRequest, handler: _Next
) -> aiohttp.ClientResponse:
    response = await handler(request)
    if 300 <= response.status < 400:
        to = response.headers.get("Location", "nowhere")
        response.close()
        raise NotAllowed(f"answered {response.status}, a redirect to {to:.200}; name that address")
    return response


class _Resolver(AbstractResolver):
    """The system's, without the addresses that are forbidden."""

    def __init__(self) -> None:
        self._system = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of a name. Raises `NotAllowed` if one of them is forbidden."""
        found = await self._system.resolve(host, port, family)
        for each in found:
            check_host(each["host"])
        return found

    async def close(self) -> None:
        """Nothing is held."""
        await self._system.close()
