"""Triton and Feast over HTTP, both JSON; the rules of errors are the same for sync and asyncio."""

import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from tessera_rec_client._process import PerProcess
from tessera_rec_client._proxies import detour, loopback
from tessera_rec_client._query import MODEL, Query, address, recommendations
from tessera_rec_client.errors import (
    Busy,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    ServerError,
    ServerUnavailable,
    TesseraClientError,
    WrongAnswer,
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


def opened(url: str, timeout: float) -> PerProcess[httpx.Client]:
    """Connections to a base URL; past the proxy of the environment where that is on this machine."""
    direct = loopback(url)
    return PerProcess(
        lambda: httpx.Client(base_url=url, timeout=timeout, transport=httpx.HTTPTransport() if direct else None)
    )


def opened_async(url: str, timeout: float) -> PerProcess[httpx.AsyncClient]:
    """`opened` for asyncio."""
    direct = loopback(url)
    return PerProcess(
        lambda: httpx.AsyncClient(
            base_url=url, timeout=timeout, transport=httpx.AsyncHTTPTransport() if direct else None
        )
    )


class HttpTransport:
    """Recommendations over HTTP; may be shared by threads."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url = base_url(url, 8000)
        self._client = opened(self._url, timeout)

    def infer(self, query: Query, timeout: float) -> Recommendations:
        """Ask once."""
        name = new_id()
        with speaking(self._url, timeout), own_answers(self._client):
            answer = self._client.get().post(_INFER, json=_body(query, timeout, name), timeout=timeout)
            return _read(answer, self._url, name)

    def close(self) -> None:
        """Close the connections."""
        if client := self._client.made():
            client.close()


class AsyncHttpTransport:
    """Recommendations over HTTP with asyncio."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url = base_url(url, 8000)
        self._client = opened_async(self._url, timeout)

    async def infer(self, query: Query, timeout: float) -> Recommendations:
        """Ask once."""
        name = new_id()
        with speaking(self._url, timeout), own_answers(self._client):
            answer = await self._client.get().post(_INFER, json=_body(query, timeout, name), timeout=timeout)
            return _read(answer, self._url, name)

    async def close(self) -> None:
        """Close the connections."""
        if client := self._client.made():
            await client.aclose()


def new_id() -> str:
    """The name of a request, which Triton writes into its answer; no two of any process are alike."""
    return uuid.uuid4().hex


@contextmanager
def own_answers(connection: PerProcess[Any]) -> Iterator[None]:
    """Use a connection no more that brought the answer to somebody else's question."""
    try:
        yield
    except WrongAnswer:
        connection.forget()
        raise


def check_id(sent: str, answered: object, url: str) -> None:
    """Raises WrongAnswer where an answer has the name of another request."""
    if answered != sent:
        raise WrongAnswer(f"{url} answered another request than this one; the connection is given up, ask again.")


@contextmanager
def speaking(url: str, timeout: float) -> Iterator[None]:
    """Turn httpx's errors into this client's."""
    try:
        yield
    except httpx.TimeoutException:
        waited = f"{round(timeout, 3):g} s"
        raise DeadlineExceeded(
            f"{url} did not answer within {waited}{detour(url)}; try again or allow more time."
        ) from None
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ServerUnavailable(
            f"no server answers at {url}{detour(url)} ({reason}); start it or check the address."
        ) from None


def answer_of(response: httpx.Response, url: str, kinds: Kinds) -> Any:
    """The JSON of an answer, or the error that its status stands for."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if response.is_success and answer is not None:
        return answer
    said = answer.get("error") if isinstance(answer, dict) else answer
    status = f"status {response.status_code}{detour(url)}"
    raise refusal(kinds.get(response.status_code, ServerError), said, url, status)


def refusal(kind: type[TesseraClientError], said: object, url: str, status: str) -> TesseraClientError:
    """The server's own sentence where it gave one."""
    message = " ".join(str(said).split()) if said else f"{url} answered with {status} and no reason; look into its log."
    message = re.sub(r"^\[request id: [^\]]*\] ", "", message)
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


def _body(query: Query, timeout: float, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "parameters": {"traffic": query.priority, "timeout": microseconds(timeout)},
        "inputs": [
            {"name": tensor, "datatype": datatype, "shape": [1, len(values)], "data": values}
            for tensor, datatype, values in query.tensors()
        ],
    }


def _read(response: httpx.Response, url: str, name: str) -> Recommendations:
    answer = answer_of(response, url, _TRITON)
    outputs = answer.get("outputs", []) if isinstance(answer, dict) else []
    found = recommendations({one.get("name", ""): one.get("data", []) for one in outputs if isinstance(one, dict)})
    check_id(name, answer.get("id"), url)
    return found
