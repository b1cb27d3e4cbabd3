"""The service under load and faults: a real Triton over a policy of a real size, on one machine with its load.

    python -m benchmarks.serving             1 to 64 clients, HTTP and gRPC, and the overhead over the engine
    python -m benchmarks.serving --soak      five minutes at 80% of capacity: errors and memory
    python -m benchmarks.serving --swaps     20 hot swaps under that load: failed and mixed-version answers
    python -m benchmarks.serving --kill      kill -9 of the model's process and of the server: who answers, and when
    python -m benchmarks.serving --flood     5 times capacity: the accepted, the refused, and the recovery
    python -m benchmarks.serving --all       everything

The weights are random, which takes as long as trained ones. Requests are written beforehand and answers are not read
(see `benchmarks.load`), so that the generator leaves the machine to the server; what the client adds is measured apart.
Capacity is what 64 waiting clients get over gRPC. An open loop's latencies count from when a request was due.
"""

import asyncio
import dataclasses
import json
import statistics
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from benchmarks import faults
from benchmarks.decoding import Case
from benchmarks.load import Run, closed_loop, open_loop, percentiles
from benchmarks.machine import hardware
from benchmarks.service import Engine, Protocol, Service, default_threads, serving

CLIENTS = (1, 4, 16, 64)
SHARES = (0.5, 0.8)
"""Of a protocol's capacity, sent in open loops."""
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")
COLUMNS = ("p50_ms", "p95_ms", "p99_ms", "throughput", "requests", "errors")


@dataclass(frozen=True)
class Options:
    """What to measure, and how long."""

    case: Case = field(default_factory=Case)
    """Size of policy and catalogue; `beams` items are asked for, `batch` plays no part."""
    soak: bool = False
    """The soak instead of the load table."""
    swaps: bool = False
    """The hot swaps instead."""
    kill: bool = False
    """The kills instead."""
    flood: bool = False
    """The flood instead."""
    all: bool = False
    """Everything, the load table too."""
    threads: int = 0
    """Torch threads of the served model and of the engine; 0 for what the service takes by default."""
    seconds: float = 10.0
    """Length of each row of the load table."""
    rounds: int = 5
    """Turns of the comparison with the engine."""
    soak_minutes: float = 5.0
    """Length of the soak; memory is compared between its second and its last minute."""
    swap_count: int = 20
    """Releases under load."""
    swap_load: float = 0.8
    """Share of capacity that is sent during them. A release that loads wants a processor for some seconds."""
    flood_seconds: float = 20.0
    """Length of the flood."""
    kill_load: float = 0.8
    """Share of capacity that is sent during the kills. All of it goes to the feature server while Triton is away."""
    seed: int = 0
    """Seed of weights, catalogue, histories and arrivals."""


async def load_table(service: Service, seconds: float) -> dict[str, Any]:
    """Closed and open loops over both protocols; prints a row as soon as it is measured."""
    print(f"{'':>28}" + "".join(f"{name:>12}" for name in COLUMNS))
    found: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        connect = partial(service.raw, protocol)
        table = {}
        for clients in CLIENTS:
            name = f"{clients} clients"
            table[name] = _row(protocol, name, await closed_loop(connect, clients, seconds))
        capacity = max(one["throughput"] for one in table.values())
        async with connect() as ask:
            for share in SHARES:
                run = await open_loop(ask, share * capacity, service.seed, asyncio.sleep(seconds))
                table[f"open, {share:.0%}"] = _row(protocol, f"open, {share:.0%} of capacity", run)
        ratio = table["16 clients"]["throughput"] / table["1 clients"]["throughput"]
        found[protocol] = table | {"capacity": capacity, "throughput_ratio_16": round(ratio, 2)}
    return found


async def overhead(service: Service, seconds: float, rounds: int) -> dict[str, Any]:
    """One client beside the engine alone, in turns so that all see the same machine: p50 in milliseconds."""
    sides = {f"{protocol}": partial(service.raw, protocol) for protocol in PROTOCOLS}
    sides |= {f"{protocol}_client": partial(service.client, protocol) for protocol in PROTOCOLS}
    times: dict[str, list[float]] = {name: [] for name in ("engine", *sides)}
    with Engine(service) as engine:
        for _ in range(rounds):
            times["engine"] += await asyncio.to_thread(engine.seconds, seconds)
            for name, connect in sides.items():
                run = await closed_loop(connect, 1, seconds)
                times[name] += [one.seconds for one in run.answered]
    ms = {name: statistics.median(one) * 1e3 for name, one in times.items()}
    added = {name: round(value - ms["engine"], 2) for name, value in ms.items() if name != "engine"}
    print(f"one client: the engine alone takes {ms['engine']:.2f} ms at p50; added by " + ", ".join(
        f"{name.replace('_', ' with tessera-')} {value:.2f} ms" for name, value in added.items()
    ))  # fmt: skip
    return {"engine": percentiles(times["engine"]), "overhead_ms": added}


def _row(protocol: str, name: str, run: Run) -> dict[str, Any]:
    found = run.summary()
    shown = [sum(found["errors"].values()) if name == "errors" else found[name] for name in COLUMNS]
    print(f"{protocol + ', ' + name:>28}" + "".join(f"{one!s:>12}" for one in shown), flush=True)
    return found


async def measure(service: Service, options: Options) -> dict[str, Any]:
    """The chosen sections in turn."""
    found: dict[str, Any] = {}
    if options.all or not (options.soak or options.swaps or options.flood or options.kill):
        found = await overhead(service, options.seconds / 4, options.rounds)
        found["load"] = await load_table(service, options.seconds)
        capacity = found["load"]["grpc"]["capacity"]
    else:
        run = await closed_loop(partial(service.raw, "grpc"), CLIENTS[-1], options.seconds)
        capacity = run.summary()["throughput"]
        print(f"capacity: {capacity} requests a second")
    if options.all or options.soak:
        found["soak"] = await faults.soak(service, capacity, options.soak_minutes)
    if options.all or options.swaps:
        found["swaps"] = await faults.swaps(service, options.swap_load * capacity, options.swap_count)
    if options.all or options.flood:
        found["flood"] = await faults.flood(service, capacity, options.flood_seconds)
    if options.all or options.kill:
        found["kill"] = await faults.kill(service, options.kill_load * capacity)
    return found


def main(options: Options) -> None:
    """Print tables and, as last line, one JSON object."""
    threads = options.threads or default_threads()
    with (
        tempfile.TemporaryDirectory(prefix="tessera-bench-") as folder,
        serving(Path(folder), options.case, threads, options.seed) as service,
    ):
        found = asyncio.run(measure(service, options))
    print(json.dumps({"hardware": hardware(), "threads": threads, **dataclasses.asdict(options.case), **found}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
