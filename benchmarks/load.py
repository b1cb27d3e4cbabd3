"""Load on a served policy from one process: closed loops, whose clients wait for their answers, and open ones.

The raw connections send requests that were written beforehand and leave answers unread: the generator shares its
machine with the server, and a client that builds and reads tensors would take a part of what is measured.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
from tritonclient.grpc import service_pb2

from serving.model_config import MODEL
from tessera_rec_client import AsyncRecommender, TesseraClientError

GIVE_UP_S = 30.0
"""A request without an answer for so long is an error."""
Ask = Callable[[int], Awaitable[Any]]
"""Sends the request of a number; its answer, or an error whose text tells why."""
Connect = Callable[[], AbstractAsyncContextManager[Ask]]


@dataclass(frozen=True)
class Sample:
    """One request: when it was due and how long its answer took from then on, in seconds of the run."""

    number: int
    due: float
    seconds: float
    error: str
    answer: Any = None


@dataclass(frozen=True)
class Run:
    """All requests of a run, when it started (by `perf_counter`) and how long it took until the last was answered."""

    samples: list[Sample]
    start: float
    elapsed: float

    @property
    def answered(self) -> list[Sample]:
        """Those with an answer."""
        return [one for one in self.samples if not one.error]

    def summary(self) -> dict[str, Any]:
        """Latencies in milliseconds, answers a second, and errors by reason."""
        return {
            "requests": len(self.samples),
            "throughput": round(len(self.answered) / self.elapsed, 1),
            **percentiles([one.seconds for one in self.answered]),
            "errors": dict(Counter(one.error for one in self.samples if one.error)),
        }


def percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99 in milliseconds."""
    names = ("p50_ms", "p95_ms", "p99_ms")
    if not seconds:
        return dict.fromkeys(names)
    found = np.percentile(seconds, (50, 95, 99)) * 1e3
    return dict(zip(names, (round(float(one), 2) for one in found), strict=True))


async def closed_loop(connect: Connect, clients: int, seconds: float) -> Run:
    """Clients with connections of their own, each of which asks again as soon as it is answered."""
    samples: list[Sample] = []
    async with AsyncExitStack() as stack:
        asks = [await stack.enter_async_context(connect()) for _ in range(clients)]
        await asyncio.gather(*(ask(number) for number, ask in enumerate(asks)))  # connected
        start = time.perf_counter()

        async def client(number: int, ask: Ask) -> None:
            while (now := time.perf_counter() - start) < seconds:
                samples.append(await _timed(ask, number, now, start, keep=False))
                number += clients

        await asyncio.gather(*(client(number, ask) for number, ask in enumerate(asks)))
        return Run(samples, start, time.perf_counter() - start)


async def open_loop(ask: Ask, rate: float, seed: int, during: Awaitable[Any], keep: bool = False) -> Run:
    """Requests at random moments (Poisson), whether or not those before are answered, for as long as `during` runs.

    A request that the generator sends late counts from when it was due.

    Args:
        rate: requests a second.
        during: sleeps, or does meanwhile what is to be measured; its errors are this function's.
        keep: keep the answers.
    """
    generator = np.random.default_rng(seed)
    work = asyncio.ensure_future(during)
    pending: list[asyncio.Task[Sample]] = []
    start, due = time.perf_counter(), 0.0
    while not work.done():
        due += float(generator.exponential(1 / rate))
        await asyncio.sleep(max(due - (time.perf_counter() - start), 0.0))
        pending.append(asyncio.create_task(_timed(ask, len(pending), due, start, keep)))
    samples = list(await asyncio.gather(*pending))
    await work
    return Run(samples, start, time.perf_counter() - start)


async def _timed(ask: Ask, number: int, due: float, start: float, keep: bool) -> Sample:
    answer, reason = None, ""
    try:
        answer = await ask(number)
    except TesseraClientError as error:  # its text has times and places in it
        reason = type(error).__name__
    except Exception as error:  # whatever it is, it is a request that failed
        said = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
        reason = said or type(error).__name__
    return Sample(number, due, time.perf_counter() - start - due, reason, answer if keep else None)


Inputs = list[tuple[str, str, list[Any]]]


def inputs(history: list[str], k: int) -> Inputs:
    """(name, datatype, values) of each of a request's tensors, of shape [1, len(values)]."""
    return [("history", "BYTES", history), ("k", "INT32", [k])]


def grpc_message(tensors: Inputs, wait_s: float = GIVE_UP_S) -> bytes:
    """A request in gRPC's bytes, which may wait `wait_s` in the server's queue."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.parameters["timeout"].int64_param = int(wait_s * 1e6)
    for name, datatype, values in tensors:
        contents = request.inputs.add(name=name, datatype=datatype, shape=[1, len(values)]).contents
        if datatype == "BYTES":
            contents.bytes_contents.extend(value.encode() for value in values)
        else:
            contents.int_contents.extend(values)
    return bytes(request.SerializeToString())


def read_grpc(answer: bytes) -> dict[str, list[Any]]:
    """Outputs by name of an answer in gRPC's bytes, flat."""
    response = service_pb2.ModelInferResponse.FromString(answer)
    found: dict[str, list[Any]] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        found[output.name] = np.frombuffer(raw, np.float32).tolist() if output.datatype == "FP32" else _texts(raw)
    return found


def _texts(raw: bytes) -> list[str]:
    """Strings behind their lengths, four bytes each."""
    texts, place = [], 0
    while place < len(raw):
        end = place + 4 + int.from_bytes(raw[place : place + 4], "little")
        texts.append(raw[place + 4 : end].decode())
        place = end
    return texts


def http_message(url: str, tensors: Inputs) -> bytes:
    """A request in HTTP's bytes, head and body."""
    body = {"inputs": [{"name": n, "datatype": t, "shape": [1, len(v)], "data": v} for n, t, v in tensors]}
    request = httpx.Request("POST", f"{url}/v2/models/{MODEL}/infer", json=body)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + request.content


@asynccontextmanager
async def raw_grpc(url: str, messages: Sequence[bytes]) -> AsyncIterator[Ask]:
    """A channel of its own to host:port that carries messages as they are."""
    async with grpc.aio.insecure_channel(url, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        async def ask(number: int) -> bytes:
            answer: bytes = await infer(messages[number % len(messages)], timeout=GIVE_UP_S)
            return answer

        yield ask


@asynccontextmanager
async def raw_http(url: str, messages: Sequence[bytes]) -> AsyncIterator[Ask]:
    """Connections that stay open, one more whenever all are in use."""
    place = urlsplit(url)
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    opened = []

    async def ask(number: int) -> bytes:
        if not idle:
            idle.append(await asyncio.open_connection(place.hostname, place.port))
            opened.append(idle[-1][1])
        reader, writer = connection = idle.pop()
        writer.write(messages[number % len(messages)])
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1]) if length else 0)
        idle.append(connection)
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(body.decode())
        return body

    try:
        yield ask
    finally:
        for writer in opened:
            writer.close()


@asynccontextmanager
async def client(histories: list[list[str]], k: int, recommender: AsyncRecommender) -> AsyncIterator[Ask]:
    """tessera-rec-client, as a service would use it."""
    async with recommender:

        async def ask(number: int) -> Any:
            return await recommender.recommend(histories[number % len(histories)], k=k)

        yield ask
