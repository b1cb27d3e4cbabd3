"""Proxies of the environment: never for loopback, and named where they may be why nobody answers."""

import ipaddress
import os
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

# Where each kind of address looks for its proxy, first to last; gRPC reads lower case alone.
_VARIABLES = {
    "http": ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"),
    "https": ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
    "grpc": ("grpc_proxy", "https_proxy", "http_proxy"),
}


def loopback(url: str) -> bool:
    """Whether an address, scheme://host:port, is this machine itself."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def detour(url: str) -> str:
    """ " through the proxy of the variable …" where the environment sends this address through one, else ""."""
    parts = urlsplit(url)
    found = next((name for name in _VARIABLES[parts.scheme] if os.environ.get(name)), None)
    if found is None or loopback(url) or proxy_bypass(parts.hostname or ""):
        return ""
    return f" through the proxy of the environment variable {found}"
