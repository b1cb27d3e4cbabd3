"""Triton over gRPC, through tritonclient."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tessera_rec_client._http import microseconds, refusal
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
# A restarted server is found again within a second; gRPC's own pauses grow to two minutes.
_OPTIONS = [
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
        self._client, self._url = _client(triton.InferenceServerClient, url)

    def infer(self, query: Query, timeout: float) -> Recommendations:
        """Ask once."""
        try:
            result = self._client.infer(MODEL, _inputs(query, triton.InferInput), **_limits(query, timeout))
        except InferenceServerException as error:
            raise _error(error, self._url, timeout) from None
        return _read(result)

    def close(self) -> None:
        """Close the channel."""
        self._client.close()


class AsyncGrpcTransport:
    """Recommendations over gRPC with asyncio."""

    def __init__(self, url: str, timeout: float) -> None:  # noqa: ARG002
        self._client, self._url = _client(triton_aio.InferenceServerClient, url)

    async def infer(self, query: Query, timeout: float) -> Recommendations:
        """Ask once."""
        try:
            result = await self._client.infer(MODEL, _inputs(query, triton.InferInput), **_limits(query, timeout))
        except InferenceServerException as error:
            raise _error(error, self._url, timeout) from None
        return _read(result)

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()


def _client(kind: Callable[..., Any], url: str) -> tuple[Any, str]:
    place, encrypted = address(url, {"grpc": False, "grpcs": True}, 8001)
    return kind(place, ssl=encrypted, channel_args=_OPTIONS), place


def _limits(query: Query, timeout: float) -> dict[str, Any]:
    """How long Triton may keep the request waiting, and how long this side waits for Triton."""
    asked = {"traffic": query.priority}
    return {"parameters": asked, "timeout": microseconds(timeout), "client_timeout": timeout}


def _inputs(query: Query, kind: Callable[..., Any]) -> list[Any]:
    inputs = []
    for name, datatype, values in query.tensors():
        one = kind(name, [1, len(values)], datatype)
        raw = [value.encode() for value in values] if datatype == "BYTES" else values
        one.set_data_from_numpy(np.array([raw], dtype=_TYPES[datatype]))
        inputs.append(one)
    return inputs


def _read(result: Any) -> Recommendations:
    arrays = {name: result.as_numpy(name) for name in _OUTPUTS}
    found = {name: array.ravel().tolist() for name, array in arrays.items() if array is not None}
    return recommendations(
        {name: [v.decode() if isinstance(v, bytes) else v for v in values] for name, values in found.items()}
    )


def _error(error: InferenceServerException, url: str, timeout: float) -> TesseraClientError:
    code = str(error.status()).removeprefix("StatusCode.")
    kind = _KINDS.get(code, ServerError)
    if kind is DeadlineExceeded:
        return DeadlineExceeded(f"{url} did not answer within {round(timeout, 3):g} s; try again or allow more time.")
    said = str(error.message())
    if kind is ServerUnavailable and ("connect" in said.lower() or "resolution" in said.lower()):
        reason = " ".join(said.split())[:200]
        return ServerUnavailable(f"no server answers at {url} ({reason}); start it or check the address.")
    return refusal(kind, said, url, code)
