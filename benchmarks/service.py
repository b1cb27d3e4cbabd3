"""What the serving benchmark asks: an embedded Triton over a random shop, and the same policy in a bare process."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch

from benchmarks.decoding import Case
from benchmarks.load import GIVE_UP_S, Ask, client, grpc_message, http_message, inputs, raw_grpc, raw_http
from benchmarks.shop import Shop, make_shop
from serving.model_repository import export
from serving.server import TritonServer
from tessera.decoding.recommender import Recommender
from tessera_rec_client import AsyncRecommender

Protocol = Literal["grpc", "http"]
OPTIONS = {"prefix_cache_mb": 0}
"""The few histories come again and again; answers from kept prompts would flatter the server."""


@dataclass(frozen=True)
class Service:
    """A running server, and ways to ask it."""

    server: TritonServer
    shop: Shop
    k: int
    threads: int
    seed: int

    def raw(self, protocol: Protocol, wait_s: float = GIVE_UP_S) -> AbstractAsyncContextManager[Ask]:
        """A connection that carries written requests; each may wait `wait_s` in the server's queue (gRPC only)."""
        asked = [inputs(history, self.k) for history in self.shop.histories]
        if protocol == "http":
            return raw_http(self.server.http_url, [http_message(self.server.http_url, one) for one in asked])
        return raw_grpc(self.server.grpc_url, [grpc_message(one, wait_s) for one in asked])

    def client(self, protocol: Protocol) -> AbstractAsyncContextManager[Ask]:
        """tessera-rec-client."""
        url = self.server.grpc_url if protocol == "grpc" else self.server.http_url
        return client(self.shop.histories, self.k, AsyncRecommender(url, protocol, timeout=GIVE_UP_S))


@contextmanager
def serving(folder: Path, case: Case, threads: int, seed: int) -> Iterator[Service]:
    """Make a shop in `folder` and serve its first policy."""
    shop = make_shop(folder, case, seed)
    export(shop.policies[0], folder / "models", threads=threads, **OPTIONS)
    with TritonServer(folder / "models", http_port=0, grpc_port=0, metrics_port=0) as server:
        yield Service(server, shop, case.beams, threads, seed)


def default_threads() -> int:
    """As many as the served model takes by default."""
    return int(os.environ.get("OMP_NUM_THREADS", 1))


class Engine:
    """The engine on the service's histories, one after the other, in a process that has nothing else to do."""

    def __init__(self, service: Service) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        ask = partial(_measure, service.shop.policies[0], service.shop.histories, service.k, service.threads)
        self._process = context.Process(target=ask, args=(other,), daemon=True)
        self._process.start()
        self._pipe.recv()  # it is loaded

    def seconds(self, duration: float) -> list[float]:
        """Ask for `duration` seconds: how long each answer took."""
        self._pipe.send(duration)
        found: list[float] = self._pipe.recv()
        return found

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()


def _measure(policy: Path, histories: list[list[str]], k: int, threads: int, pipe: Connection) -> None:
    torch.set_num_threads(threads)
    recommender = Recommender.load(policy)
    for history in histories[:8]:
        recommender.recommend([history], k)
    pipe.send("loaded")
    while True:
        end = time.perf_counter() + pipe.recv()
        times: list[float] = []
        while (started := time.perf_counter()) < end:
            recommender.recommend([histories[len(times) % len(histories)]], k)
            times.append(time.perf_counter() - started)
        pipe.send(times)
