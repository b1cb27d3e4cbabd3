"""Any OpenAI-compatible endpoint (/chat/completions, /embeddings): vLLM, llama.cpp, Ollama, TGI, a hosted API."""

import asyncio
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tessera.config import EnrichmentSettings, check_section
from tessera.enrichment.photos import data_url
from tessera.enrichment.providers.base import Failure, Message, ModelRequest
from tessera.errors import InputError, ModelCallError
from tessera.event_loop import run_to_end
from tessera.proxies import detour

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

log = logging.getLogger(__name__)
T = TypeVar("T")
DOWN_AFTER = 3
"""Requests lost in a row after which the endpoint is asked something plain, to tell whether it is down."""
PLAIN = ModelRequest((Message("user", "Hello"),), max_tokens=1)
FIRST_WAIT_S, LONGEST_WAIT_S, LONGEST_RETRY_AFTER_S = 0.5, 30.0, 300.0


class _PassingError(Exception):
    """Worth another try: no connection, a timeout, 408, 409, 425, 429 or 5xx. `after_s` is the server's Retry-After."""

    def __init__(self, reason: str, after_s: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.after_s, self.unreachable = after_s, unreachable


class Endpoint(ABC, Generic[T]):
    """What chat and embeddings share: a batch is in flight at once, `concurrency` requests at a time.

    A request is tried `retries` further times, waiting exponentially longer with jitter, or as long as Retry-After
    asks.
    """

    provider = "openai"
    path: str

    def __init__(self, model: str, settings: EnrichmentSettings) -> None:
        if not model:
            raise InputError("the openai provider needs a model name; set e.g. --enrichment.intents.model gpt-4o-mini.")
        check_section("enrichment", settings)
        self.model, self.settings = model, settings
        self.url = settings.base_url.rstrip("/") + self.path
        self.constrain = True
        self._lost = 0  # in a row, over batches too: a batch may be a single item
        self._key = os.environ.get(settings.api_key_env, "")

    def complete(self, requests: Sequence[ModelRequest]) -> list[T | Failure]:
        """Answer each request; one that keeps failing becomes a Failure.

        Raises:
            ModelCallError: the endpoint refuses the key or model; or it is down and answered nothing of the batch:
                it cannot be reached, or a plain request is lost too after several in a row.
        """
        return run_to_end(self._complete(requests))

    @abstractmethod
    def body(self, request: ModelRequest) -> dict[str, Any]:
        """The request as JSON."""

    @abstractmethod
    def read(self, request: ModelRequest, response: "httpx.Response") -> T | Failure:
        """The answer in a successful response; raises _PassingError where there is none."""

    async def _complete(self, requests: Sequence[ModelRequest]) -> list[T | Failure]:
        import httpx

        slots, answered = asyncio.Semaphore(self.settings.concurrency), False
        down: _PassingError | None = None
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}

        async def one(client: httpx.AsyncClient, request: ModelRequest) -> T | _PassingError | Failure:
            nonlocal answered, down
            async with slots:
                if down and not answered:  # no use in letting thousands of items run out of tries
                    return down
                try:
                    answer = await self._retried(client, request)
                except _PassingError as error:
                    if not answered and await self._is_down(client, error):
                        down = error
                    return error
                answered, self._lost = True, 0
                return answer

        async with httpx.AsyncClient(headers=headers, timeout=self.settings.timeout_s) as client:
            answers = await asyncio.gather(*(one(client, request) for request in requests))
        if down and not answered:
            raise ModelCallError(
                f"{self.settings.base_url} answered none of {len(answers)} requests ({down}); start the endpoint "
                "or set --enrichment.base-url, then run again: finished items are kept."
            )
        return [Failure(str(a)) if isinstance(a, _PassingError) else a for a in answers]

    async def _is_down(self, client: "httpx.AsyncClient", error: _PassingError) -> bool:
        """After a lost request: whether nobody answers, rather than the model choking on some items."""
        self._lost += 1
        if error.unreachable or self._lost < DOWN_AFTER:
            return error.unreachable
        self._lost = 0  # so that not every request in flight asks
        try:
            await self._retried(client, PLAIN)
        except _PassingError:
            return True
        return False

    async def _retried(self, client: "httpx.AsyncClient", request: ModelRequest) -> T | Failure:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_PassingError),
            stop=stop_after_attempt(self.settings.retries + 1),
            wait=_wait,
            reraise=True,
        )
        return await retrying(self._post, client, request)

    async def _post(self, client: "httpx.AsyncClient", request: ModelRequest) -> T | Failure:
        import httpx

        try:
            response = await client.post(self.url, json=self.body(request))
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise InputError(f"enrichment.base_url {self.settings.base_url!r} is no usable URL ({error}).") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = f"cannot connect{detour(self.url)}: {error or type(error).__name__}"
            raise _PassingError(reason, unreachable=True) from None
        except httpx.TimeoutException as error:
            raise _PassingError(f"no answer within {self.settings.timeout_s:g} s ({type(error).__name__})") from None
        except httpx.TransportError as error:
            raise _PassingError(f"{type(error).__name__}{detour(self.url)}: {error}") from None
        if response.is_success:
            return self.read(request, response)
        said = self._excerpt(response.text)
        if response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
            reason = f"HTTP {response.status_code}{detour(self.url)}: {said}"
            raise _PassingError(reason, _retry_after(response))
        if response.status_code in (401, 403, 404):
            raise ModelCallError(
                f"{self.url} answered HTTP {response.status_code} for model {self.model!r} ({said}); check "
                f"--enrichment.base-url, the model's name and the key in ${self.settings.api_key_env}."
            )
        if request.schema and self.constrain and ("response_format" in said or "json_schema" in said):
            log.warning("%s does not take response_format; going on with unconstrained answers", self.settings.base_url)
            self.constrain = False
            return await self._post(client, request)
        return Failure(f"HTTP {response.status_code}: {said}")

    def _excerpt(self, text: str) -> str:
        """The start of an error body; endpoints like to echo the key, which must not reach a log."""
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(text.split())[:200]


class OpenAIModel(Endpoint[str]):
    """A LanguageModel behind an endpoint."""

    path = "/chat/completions"

    def body(self, request: ModelRequest) -> dict[str, Any]:
        """Messages, greedy; with a schema, constrained to it."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [_turn(message) for message in request.messages],
            "temperature": 0,
            "max_tokens": request.max_tokens,
        }
        if request.schema and self.constrain:
            named = {"name": "answer", "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body

    def read(self, request: ModelRequest, response: "httpx.Response") -> str | Failure:
        """The message's text; a stated refusal is a failure, and so is plain text that was cut off."""
        try:
            choice = response.json()["choices"][0]
            message = choice["message"]
            content, refusal = message.get("content"), message.get("refusal")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _PassingError("the response is no chat completion") from None
        if refusal or choice.get("finish_reason") == "content_filter":
            return Failure(f"refused: {' '.join(str(refusal or 'content filter').split())[:120]!r}")
        said = content if isinstance(content, str) else ""
        if said and choice.get("finish_reason") == "length" and not request.schema:  # JSON shows itself whether it ends
            return Failure(f"cut off after max_tokens ({request.max_tokens})", cut=said)
        return said


class OpenAIEmbedder(Endpoint[NDArray[np.float32]]):
    """A model behind /embeddings that reads a chat message, photo and text in one, as vLLM's server does."""

    path = "/embeddings"

    def body(self, request: ModelRequest) -> dict[str, Any]:
        """Messages in the place of `input`, which holds text alone."""
        messages = [_turn(message) for message in request.messages]
        return {"model": self.model, "messages": messages, "encoding_format": "float"}

    def read(self, request: ModelRequest, response: "httpx.Response") -> NDArray[np.float32] | Failure:  # noqa: ARG002
        """The vector [D], of length 1."""
        try:
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused below
                vector = np.asarray(response.json()["data"][0]["embedding"], dtype=np.float32)
                length = float(np.linalg.norm(vector))
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):  # numbers of any length, any depth
            raise _PassingError("the response is no list of embeddings") from None
        if vector.ndim != 1 or not np.isfinite(length) or length == 0:
            return Failure("the embedding is empty, zero or not finite")
        return vector / np.float32(length)


def _turn(message: Message) -> dict[str, Any]:
    if message.image is None:
        return {"role": message.role, "content": message.text}
    image = {"type": "image_url", "image_url": {"url": data_url(message.image)}}
    return {"role": message.role, "content": [image, {"type": "text", "text": message.text}]}


def _retry_after(response: "httpx.Response") -> float | None:
    try:
        seconds = float(response.headers["retry-after"])
    except (KeyError, ValueError):  # absent, or an HTTP date: back off as usual
        return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)


def _wait(state: "RetryCallState") -> float:
    """Seconds before the next try: what Retry-After asks, else uniform in [0, min(30, 0.5 * 2^tries)]."""
    from tenacity import wait_random_exponential

    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _PassingError) and error.after_s is not None:
        return error.after_s
    return wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S)(state)
