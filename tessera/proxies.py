"""Proxies of the environment: loopback never goes through one, and an error names the one that is in the way."""

import os
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

# Libraries read the list in different ways: some know networks, others names and addresses alone.
LOOPBACK = ("localhost", "127.0.0.1", "::1", "127.0.0.0/8")


def spare_loopback() -> None:
    """Keep what this process and its children ask of this machine away from proxies, by NO_PROXY and no_proxy."""
    if not getproxies().keys() - {"no"}:
        return
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host.strip() for host in (os.environ.get(name) or known).split(",") if host.strip()]
        # "*" stands for every host, but only alone.
        os.environ[name] = "*" if hosts == ["*"] else ",".join(dict.fromkeys([*hosts, *LOOPBACK]))


def detour(url: str) -> str:
    """ " through the proxy of the environment variable …" where the environment sends `url` through one, else ""."""
    try:
        parts = urlsplit(url)
        host, scheme = parts.hostname or "", parts.scheme
    except ValueError:
        return ""
    names = [name for kind in (scheme, "all") for name in (f"{kind}_proxy", f"{kind}_proxy".upper())]
    found = next((name for name in names if os.environ.get(name)), None)
    if scheme not in ("http", "https") or found is None or proxy_bypass(host):
        return ""
    return f" through the proxy of the environment variable {found}"
