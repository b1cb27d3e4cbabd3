"""An HTTP client that leaves private networks alone: it connects to the very address that it has checked.

Checking a URL's name is not enough, because a name may resolve to another address a moment later, and a redirect may
lead anywhere. So the check is where a connection is opened.
"""

import asyncio
import ipaddress
import socket
from typing import Any
from urllib.request import getproxies

import httpcore
import httpx

NAT64 = ipaddress.ip_network("64:ff9b::/96")
USER_SAYS = "--catalogue.private-addresses allows it"


class PrivateAddressError(ValueError):
    """A URL leads into a private network."""


def open_client(timeout_s: float, connections: int, private: bool) -> httpx.AsyncClient:
    """A client that follows redirects, and with `private` also to addresses of private networks.

    Where the environment names a proxy, the proxy opens the connections: then a name is checked as far as it can be
    resolved here, and the rest is the proxy's.

    Args:
        timeout_s: longest silence of a server.
        connections: open at once.
    """
    limits = httpx.Limits(max_connections=connections)
    if private:
        return httpx.AsyncClient(timeout=timeout_s, follow_redirects=True, limits=limits)
    if getproxies().keys() - {"no"}:  # NO_PROXY alone is no proxy
        hooks = {"request": [_check_request]}
        return httpx.AsyncClient(timeout=timeout_s, follow_redirects=True, limits=limits, event_hooks=hooks)
    return httpx.AsyncClient(timeout=timeout_s, follow_redirects=True, transport=_PublicTransport(connections))


async def public_address(host: str, port: int) -> str:
    """An address of `host`, if all that it has are of the public Internet.

    Raises:
        PrivateAddressError: one is not.
        OSError: the name does not resolve.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not _is_public(address):
            raise PrivateAddressError(f"{host} is {address}, an address of a private network; {USER_SAYS}")
    return addresses[0]


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None)
        ip = inner or ip
    return ip.is_global and not ip.is_multicast


async def _check_request(request: httpx.Request) -> None:
    try:
        await public_address(request.url.host, request.url.port or 443)
    except OSError:  # only the proxy can resolve it
        return


class _PublicNetwork(httpcore.AnyIOBackend):
    async def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        try:
            address = await public_address(host, port)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} does not resolve ({error})") from None
        return await super().connect_tcp(address, port, *args, **kwargs)


class _PublicTransport(httpx.AsyncHTTPTransport):
    def __init__(self, connections: int) -> None:
        super().__init__()
        # httpx gives its pool no way to choose the network, so the pool is replaced by the same one over another.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(), max_connections=connections, network_backend=_PublicNetwork()
        )
