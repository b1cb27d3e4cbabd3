"""The token that a gateway in front of the servers wants; it is sent over encrypted connections alone."""

from collections.abc import Callable

from tessera_rec_client._proxies import loopback
from tessera_rec_client.errors import InvalidRequest

Token = str | Callable[[], str] | None
"""A token, or a function that returns the one of now, because tokens end after minutes; None sends none."""


def checked(token: Token, url: str, encrypted: bool) -> Token:
    """The token, where it may be sent to this address.

    Raises:
        InvalidRequest: anybody on the way could read it.
    """
    if token is not None and not encrypted and not loopback(url):
        raise InvalidRequest(f"a token goes over encrypted connections alone; write grpcs:// or https:// before {url}.")
    return token


def headers(token: Token) -> dict[str, str]:
    """What a request says of who sends it."""
    now = token() if callable(token) else token
    return {"authorization": f"Bearer {now}"} if now else {}
