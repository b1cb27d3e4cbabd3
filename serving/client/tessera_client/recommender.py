"""Ask Triton for recommendations."""

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

from tessera_client._http import AsyncHttpTransport, HttpTransport
from tessera_client._query import Query, query, seconds
from tessera_client.errors import InvalidRequest
from tessera_client.features import AsyncFeatures, Features
from tessera_client.results import Recommendations

Protocol = Literal["grpc", "http"]


class Recommender:
    """Recommendations from a Triton server; a context manager, and one object may be shared by threads.

    Args:
        url: host:port of Triton; the ports of the two protocols differ (gRPC 8001, HTTP 8000 by default).
        timeout: seconds to wait for an answer.
        features_url: Feast's feature server. With it the client itself looks up a user's history; without it the
            user's id goes to Triton, which asks the feature server it was configured with.

    Raises:
        InvalidRequest: the address, protocol or timeout cannot be used.
    """

    def __init__(
        self, url: str, protocol: Protocol = "grpc", timeout: float = 5.0, features_url: str | None = None
    ) -> None:
        self._timeout = seconds(timeout)
        self._features = Features(features_url, timeout) if features_url is not None else None
        self._transport = _transport(protocol, asynchronous=False)(url, timeout)

    def recommend(
        self,
        history: Sequence[str] | None = None,
        *,
        user: str | None = None,
        k: int = 10,
        exclude: Sequence[str] = (),
        allow: Sequence[str] | None = None,
        include_history: bool = False,
        timeout: float | None = None,
    ) -> Recommendations:
        """The k best next items of a history or of a user; fewer where fewer items pass the lists.

        Args:
            history: item ids in time order; unknown ones are passed over, but one must be known.
            exclude: item ids that must not come out.
            allow: the only item ids that may come out; None allows every item.
            include_history: let items of the history come out again.
            timeout: seconds for this request instead of the client's.

        Raises:
            InvalidRequest: the request cannot be answered as it is.
            NotFound: the user is not known.
            ServerUnavailable, DeadlineExceeded, ServerError: no answer.
        """
        request = query(history, user, k, exclude, allow, include_history)
        deadline = self._timeout if timeout is None else seconds(timeout)
        if self._features is not None and request.user is not None:
            request = _with_history(request, self._features.user(request.user).history)
        found: Recommendations = self._transport.infer(request, deadline)
        return found

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()
        if self._features is not None:
            self._features.close()

    def __enter__(self) -> "Recommender":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncRecommender:
    """`Recommender` with asyncio; an asynchronous context manager, for use in one event loop."""

    def __init__(
        self, url: str, protocol: Protocol = "grpc", timeout: float = 5.0, features_url: str | None = None
    ) -> None:
        self._timeout = seconds(timeout)
        self._features = AsyncFeatures(features_url, timeout) if features_url is not None else None
        # Connected on first use: a gRPC channel belongs to the event loop that runs when it is made.
        self._connect, self._url = _transport(protocol, asynchronous=True), url
        self._transport: Any = None

    async def recommend(
        self,
        history: Sequence[str] | None = None,
        *,
        user: str | None = None,
        k: int = 10,
        exclude: Sequence[str] = (),
        allow: Sequence[str] | None = None,
        include_history: bool = False,
        timeout: float | None = None,
    ) -> Recommendations:
        """As `Recommender.recommend`."""
        request = query(history, user, k, exclude, allow, include_history)
        deadline = self._timeout if timeout is None else seconds(timeout)
        if self._features is not None and request.user is not None:
            request = _with_history(request, (await self._features.user(request.user)).history)
        if self._transport is None:
            self._transport = self._connect(self._url, self._timeout)
        found: Recommendations = await self._transport.infer(request, deadline)
        return found

    async def close(self) -> None:
        """Close all connections."""
        if self._transport is not None:
            await self._transport.close()
        if self._features is not None:
            await self._features.close()

    async def __aenter__(self) -> "AsyncRecommender":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _transport(protocol: str, *, asynchronous: bool) -> Any:
    if protocol == "http":
        return AsyncHttpTransport if asynchronous else HttpTransport
    if protocol != "grpc":
        raise InvalidRequest(f"protocol is {protocol!r}; choose 'grpc' or 'http'.")
    from tessera_client._grpc import AsyncGrpcTransport, GrpcTransport  # not loaded for HTTP alone

    return AsyncGrpcTransport if asynchronous else GrpcTransport


def _with_history(request: Query, history: tuple[str, ...]) -> Query:
    return replace(request, history=history, user=None)
