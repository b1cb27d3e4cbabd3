"""Ask Triton for recommendations, and the feature server for the user's cached ones where Triton fails."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal

from tessera_rec_client._breaker import Breaker
from tessera_rec_client._conversation import LookUp, conversation
from tessera_rec_client._http import AsyncHttpTransport, HttpTransport
from tessera_rec_client._process import PerProcess
from tessera_rec_client._query import Priority, query, seconds
from tessera_rec_client.errors import InvalidRequest, TesseraClientError
from tessera_rec_client.features import AsyncFeatures, Features
from tessera_rec_client.results import Recommendations

Protocol = Literal["grpc", "http"]


class Recommender:
    """Recommendations from a Triton server; a context manager, and one object may be shared by threads.

    A process that is forked later makes connections of its own, and an answer that belongs to another request is an
    error.

    Args:
        url: host:port of Triton; the ports of the two protocols differ (gRPC 8001, HTTP 8000 by default).
        timeout: seconds to wait for an answer.
        features_url: Feast's feature server. With it the client itself looks up a user's history; without it the
            user's id goes to Triton, which asks the feature server it was configured with.
        fallback: with `features_url`, let a user's cached list answer where the server fails.
        failures: so many failures in a row, and requests that a cached list can answer go straight to it ...
        pause: ... but for one every so many seconds, which finds out whether the server is back.

    Raises:
        InvalidRequest: the address, protocol, timeout or one of the limits cannot be used.
    """

    def __init__(
        self,
        url: str,
        protocol: Protocol = "grpc",
        timeout: float = 5.0,
        features_url: str | None = None,
        *,
        fallback: bool = True,
        failures: int = 3,
        pause: float = 1.0,
    ) -> None:
        self._timeout, self._fallback = seconds(timeout), fallback
        self._breaker = _breaker(failures, pause)
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
        priority: Priority = "interactive",
        diversity: float = 0.0,
    ) -> Recommendations:
        """The k best next items of a history or of a user; fewer where fewer items pass the lists.

        Given both, the history is what is recommended from (a session's clicks, say), and the user names the cached
        list. A cached list obeys `k` and the lists too, but only by leaving items out: it may come out short or empty.

        Args:
            history: item ids in time order; unknown ones are passed over, but one must be known.
            exclude: item ids that must not come out.
            allow: the only item ids that may come out; None allows every item.
            include_history: let items of the history come out again; a cached list has none of them.
            timeout: seconds for this request instead of the client's, cached list included.
            priority: a busy server answers "interactive" requests before "batch" ones.
            diversity: 0 for the likeliest items, up to 1 for more sorts of items at fewer hits; no matter to a cached
                list.

        Raises:
            InvalidRequest: the request cannot be answered as it is.
            NotFound: the user is not known.
            Busy: the server's queue is full.
            ServerUnavailable, DeadlineExceeded, ServerError: no answer, from the cache neither.
        """
        request = query(history, user, k, exclude, allow, include_history, priority, diversity)
        steps = conversation(
            request,
            self._timeout if timeout is None else seconds(timeout),
            self._breaker.get(),
            features=self._features is not None,
            fallback=self._fallback,
        )
        try:
            step = next(steps)
            while True:
                try:
                    found = self._do(step)
                except TesseraClientError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(found)
        except StopIteration as done:
            answer: Recommendations = done.value
            return answer

    def _do(self, step: Any) -> Any:
        if isinstance(step, LookUp):
            assert self._features is not None
            return self._features.user(step.user, step.timeout)
        return self._transport.infer(step.query, step.timeout)

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
        self,
        url: str,
        protocol: Protocol = "grpc",
        timeout: float = 5.0,
        features_url: str | None = None,
        *,
        fallback: bool = True,
        failures: int = 3,
        pause: float = 1.0,
    ) -> None:
        self._timeout, self._fallback = seconds(timeout), fallback
        self._breaker = _breaker(failures, pause)
        self._features = AsyncFeatures(features_url, timeout) if features_url is not None else None
        self._transport = _transport(protocol, asynchronous=True)(url, timeout)

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
        priority: Priority = "interactive",
        diversity: float = 0.0,
    ) -> Recommendations:
        """As `Recommender.recommend`."""
        request = query(history, user, k, exclude, allow, include_history, priority, diversity)
        steps = conversation(
            request,
            self._timeout if timeout is None else seconds(timeout),
            self._breaker.get(),
            features=self._features is not None,
            fallback=self._fallback,
        )
        try:
            step = next(steps)
            while True:
                try:
                    found = await self._do(step)
                except TesseraClientError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(found)
        except StopIteration as done:
            answer: Recommendations = done.value
            return answer

    async def _do(self, step: Any) -> Any:
        if isinstance(step, LookUp):
            assert self._features is not None
            return await self._features.user(step.user, step.timeout)
        return await self._transport.infer(step.query, step.timeout)

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()
        if self._features is not None:
            await self._features.close()

    async def __aenter__(self) -> "AsyncRecommender":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _breaker(failures: int, pause: float) -> PerProcess[Breaker]:
    if isinstance(failures, bool) or not isinstance(failures, int) or failures < 1:
        raise InvalidRequest(f"failures is {failures!r}; give a whole number of failures in a row, at least 1.")
    checked = seconds(pause, "pause")
    return PerProcess(lambda: Breaker(failures, checked))


def _transport(protocol: str, *, asynchronous: bool) -> Any:
    if protocol == "http":
        return AsyncHttpTransport if asynchronous else HttpTransport
    if protocol != "grpc":
        raise InvalidRequest(f"protocol is {protocol!r}; choose 'grpc' or 'http'.")
    from tessera_rec_client._grpc import AsyncGrpcTransport, GrpcTransport  # not loaded for HTTP alone

    return AsyncGrpcTransport if asynchronous else GrpcTransport
