"""Triton over gRPC, through tritonclient.

Asyncio too goes over tritonclient's channel of threads, with callbacks: gRPC's own for asyncio hangs in the child of a
process that used it.
"""

import asyncio
import json
from contextlib import suppress
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tessera_rec_client._http import check_id, microseconds, new_id, own_answers, refusal
from tessera_rec_client._process import PerProcess
from tessera_rec_client._proxies import detour, loopback
from tessera_rec_client._query import MODEL, Query, address, recommendations
from tessera_rec_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    ServerError,
    ServerUnavailable,
    TesseraClientError,
)
from tessera_rec_client.results import Recommendations

_KINDS: dict[str, type[TesseraClientError]] = {
    "INVALID_ARGUMENT": InvalidRequest, "NOT_FOUND": NotFound, "UNAVAILABLE": ServerUnavailable,
    "RESOURCE_EXHAUSTED": ServerUnavailable, "CANCELLED": ServerUnavailable, "DEADLINE_EXCEEDED": DeadlineExceeded,
}  # fmt: skip
_OPTIONS = [
    # All servers behind a name take their share, in turn.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # A child's channel shares no connection with one that was inherited from the parent.
    ("grpc.use_local_subchannel_pool", 1),
    # A restarted server is found again within a second; gRPC's own pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
_TYPES: dict[str, Any] = {"BYTES": object, "INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_}
_OUTPUTS = ("item_ids", "sids", "scores", "policy_version", "tokenizer_version")


class GrpcTransport:
    """Recommendations over gRPC; may be shared by threads."""

    def __init__(self, url: str, timeout: float) -> None:  # noqa: ARG002
        self._client, self._url = _opened(url)

    def infer(self, query: Query, timeout: float) -> Recommendations:
        """Ask once."""
        name = new_id()
        with own_answers(self._client):
            try:
                result = self._client.get().infer(MODEL, _inputs(query), request_id=name, **_limits(query, timeout))
            except InferenceServerException as error:
                raise _error(error, self._url, timeout) from None
            return _read(result, self._url, name)

    def close(self) -> None:
        """Close the channel."""
        if client := self._client.made():
            client.close()


class AsyncGrpcTransport:
    """Recommendations over gRPC with asyncio."""

    def __init__(self, url: str, timeout: float) -> None:  # noqa: ARG002
        self._client, self._url = _opened(url)

    async def infer(self, query: Query, timeout: float) -> Recommendations:
        """Ask once."""
        name, loop = new_id(), asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: Exception | None) -> None:
            if answered.done():  # who asked has gone
                return
            if error is None:
                answered.set_result(result)
            else:
                answered.set_exception(error)

        def tell(result: Any, error: Exception | None) -> None:  # in a thread of gRPC
            with suppress(RuntimeError):  # the loop may have been closed
                loop.call_soon_threadsafe(settle, result, error)

        with own_answers(self._client):
            asked = self._client.get().async_infer(
                MODEL, _inputs(query), tell, request_id=name, **_limits(query, timeout)
            )
            try:
                result = await answered
            except asyncio.CancelledError:
                asked.cancel()
                raise
            except InferenceServerException as error:
                raise _error(error, self._url, timeout) from None
            return _read(result, self._url, name)

    async def close(self) -> None:
        """Close the channel."""
        if client := self._client.made():
            client.close()


def _opened(url: str) -> tuple[PerProcess[triton.InferenceServerClient], str]:
    place, encrypted = address(url, {"grpc": False, "grpcs": True}, 8001)
    options = [*_OPTIONS, ("grpc.enable_http_proxy", 0 if loopback(f"grpc://{place}") else 1)]
    return PerProcess(lambda: triton.InferenceServerClient(place, ssl=encrypted, channel_args=options)), place


def _limits(query: Query, timeout: float) -> dict[str, Any]:
    """How long Triton may keep the request waiting, and how long this side waits for Triton."""
    asked = {"traffic": query.priority}
    return {"parameters": asked, "timeout": microseconds(timeout), "client_timeout": timeout}


def _inputs(query: Query) -> list[Any]:
    inputs = []
    for name, datatype, values in query.tensors():
        one = triton.InferInput(name, [1, len(values)], datatype)
        raw = [value.encode() for value in values] if datatype == "BYTES" else values
        one.set_data_from_numpy(np.array([raw], dtype=_TYPES[datatype]))
        inputs.append(one)
    return inputs


def _read(result: Any, url: str, asked: str) -> Recommendations:
    check_id(asked, result.get_response().id, url)
    arrays = {name: result.as_numpy(name) for name in _OUTPUTS}
    found = {name: array.ravel().tolist() for name, array in arrays.items() if array is not None}
    return recommendations(
        {name: [v.decode() if isinstance(v, bytes) else v for v in values] for name, values in found.items()}
    )


def _error(error: InferenceServerException, url: str, timeout: float) -> TesseraClientError:
    code = str(error.status()).removeprefix("StatusCode.")
    kind = _KINDS.get(code, ServerError)
    if kind is DeadlineExceeded:
        waited = f"{round(timeout, 3):g} s{detour(f'grpc://{url}')}"
        return DeadlineExceeded(f"{url} did not answer within {waited}; try again or allow more time.")
    said = str(error.message())
    if kind is ServerUnavailable and ("connect" in said.lower() or "resolution" in said.lower()):
        reason = " ".join(said.split())[:200]
        through = detour(f"grpc://{url}")
        return ServerUnavailable(f"no server answers at {url}{through} ({reason}); start it or check the address.")
    return refusal(kind, said, url, code)
