"""Triton and Feast over HTTP, both JSON; the rules of errors are the same for sync and asyncio."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from tessera_rec_client._query import MODEL, Query, address, recommendations
from tessera_rec_client.errors import (
    Busy,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    ServerError,
    ServerUnavailable,
    TesseraClientError,
)
from tessera_rec_client.results import Recommendations

Kinds = Mapping[int, type[TesseraClientError]]
GATEWAY: Kinds = {502: ServerUnavailable, 503: ServerUnavailable, 504: DeadlineExceeded}
_TRITON: Kinds = {**GATEWAY, 400: InvalidRequest, 404: NotFound}
_INFER = f"/v2/models/{MODEL}/infer"


def base_url(url: str, default_port: int) -> str:
    """http(s)://host:port of an address with or without scheme."""
    place, encrypted = address(url, {"http": False, "https": True}, default_port)
    return f"{'https' if encrypted else 'http'}://{place}"


class HttpTransport:
    """Recommendations over HTTP; may be shared by threads."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url = base_url(url, 8000)
        self._client = httpx.Client(base_url=self._url, timeout=timeout)

    def infer(self, query: Query, timeout: float) -> Recommendations:
        """Ask once."""
        with speaking(self._url, timeout):
            return _read(self._client.post(_INFER, json=_body(query, timeout), timeout=timeout), self._url)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncHttpTransport:
    """Recommendations over HTTP with asyncio."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url = base_url(url, 8000)
        self._client = httpx.AsyncClient(base_url=self._url, timeout=timeout)

    async def infer(self, query: Query, timeout: float) -> Recommendations:
        """Ask once."""
        with speaking(self._url, timeout):
            return _read(await self._client.post(_INFER, json=_body(query, timeout), timeout=timeout), self._url)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


@contextmanager
def speaking(url: str, timeout: float) -> Iterator[None]:
    """Turn httpx's errors into this client's."""
    try:
        yield
    except httpx.TimeoutException:
        waited = f"{round(timeout, 3):g} s"
        raise DeadlineExceeded(f"{url} did not answer within {waited}; try again or allow more time.") from None
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ServerUnavailable(f"no server answers at {url} ({reason}); start it or check the address.") from None


def answer_of(response: httpx.Response, url: str, kinds: Kinds) -> Any:
    """The JSON of an answer, or the error that its status stands for."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if response.is_success and answer is not None:
        return answer
    said = answer.get("error") if isinstance(answer, dict) else answer
    raise refusal(kinds.get(response.status_code, ServerError), said, url, f"status {response.status_code}")


def refusal(kind: type[TesseraClientError], said: object, url: str, status: str) -> TesseraClientError:
    """The server's own sentence where it gave one."""
    message = " ".join(str(said).split()) if said else f"{url} answered with {status} and no reason; look into its log."
    if message.startswith("Request for unknown model"):
        return ServerUnavailable(f"the server at {url} has no policy loaded; promote one and load it.")
    if "Exceeds maximum queue size" in message:
        return Busy(f"the server at {url} is busy, its queue is full; try again a little later.")
    if "Request timeout expired" in message:
        return DeadlineExceeded(f"{url} is busy and did not get to the request in its time; try again or allow more.")
    return kind(message)


def microseconds(timeout: float) -> int:
    """A timeout as Triton takes it."""
    return max(int(timeout * 1e6), 1)


def _body(query: Query, timeout: float) -> dict[str, Any]:
    return {
        "parameters": {"traffic": query.priority, "timeout": microseconds(timeout)},
        "inputs": [
            {"name": name, "datatype": datatype, "shape": [1, len(values)], "data": values}
            for name, datatype, values in query.tensors()
        ]
    }


def _read(response: httpx.Response, url: str) -> Recommendations:
    answer = answer_of(response, url, _TRITON)
    outputs = answer.get("outputs", []) if isinstance(answer, dict) else []
    return recommendations({one.get("name", ""): one.get("data", []) for one in outputs if isinstance(one, dict)})
