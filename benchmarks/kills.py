"""kill -9 of each step of a training run and of each process of a platform that serves: what is lost, what is mixed.

    python -m benchmarks.kills

A run is killed in the midst of every step, once each, and started again by the same command; in the end its SIDs,
bundles, metrics and answers of models must be those of a run that nobody killed. Then `tessera serve` of its home loses
each of its processes in turn, while one client asks for recommendations and another one for features: every answer must
be the one that was given before, and both must be answered again.
"""

import json
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tyro

from tessera.bundle import load_manifest
from tessera.files import read_json
from tessera.schema import read_table
from tessera_rec_client import Features, Recommender, TesseraClientError

TESSERA = Path(sys.executable).with_name("tessera")
SIZES = (
    "--shop.items=72", "--shop.users=240", "--enrichment.batch-size=8", "--tokenizer.codebook-size=16",
    "--tokenizer.checkpoint-every=10", "--tokenizer.epochs=60", "--policy.hidden=64", "--policy.layers=2",
    "--policy.heads=2", "--policy.text-vocabulary=512", "--policy.patience=8", "--policy.epochs=16",
    "--evaluation.beam=20",
)  # fmt: skip
UNLIKE = {"seconds", "model_calls", "reused", "reused_steps"}
"""Metrics that say how a run went, not what it made."""
STEP = re.compile(r"(\d\d):(\d\d):([\d.]+) - INFO - (Executing task|Task) (?:\x1b\[\d+m)?'([\w-]+)'")
PATIENCE_S = 900.0
AGAIN_S = 120.0
"""A process that was killed must be back within so many seconds."""


@dataclass(frozen=True)
class Run:
    """`tessera run training` in a folder."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "run"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def start(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(exist_ok=True)
        (self.out / "run.log").unlink(missing_ok=True)
        command = [str(TESSERA), "run", "training", f"--out={self.out}", f"--platform.home={self.home}", *SIZES]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=self.folder)

    def finish(self) -> None:
        if status := self.start().wait(PATIENCE_S):
            raise SystemExit(f"the run ended with {status}; see {self.folder / 'log'}.")

    def steps(self) -> dict[str, float]:
        """Seconds of each step that has ended, and infinity for the one that has not."""
        log, began, lasted = self.out / "run.log", dict[str, float](), dict[str, float]()
        for hours, minutes, seconds, event, step in STEP.findall(log.read_text() if log.exists() else ""):
            moment = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
            if event == "Executing task":
                began[step], lasted[step] = moment, float("inf")
            elif step in began:
                lasted[step] = moment - began[step]
        return lasted

    def result(self) -> dict[str, Any]:
        """What the run made, times left out."""
        metrics = {name: value for name, value in read_json(self.out / "metrics.json").items() if name not in UNLIKE}
        with closing(sqlite3.connect(self.home / "catalogue.db")) as database:
            answers = database.execute("SELECT kind, item_id, payload FROM enrichments ORDER BY 1, 2, 3").fetchall()
        return {
            "sids": read_table("sids", self.out / "sids.parquet").to_pylist(),
            "bundles": [load_manifest(self.out / kind, kind).version for kind in ("tokenizer", "policy")],
            **{f"metric {name}": value for name, value in metrics.items()},
            "answers of models": answers,
        }


def kill_in(run: Run, step: str, seconds: float) -> bool:
    """Start a run and kill it with all its children, so many seconds into a step; False if the step ended before."""
    process, deadline = run.start(), time.monotonic() + PATIENCE_S
    while step not in run.steps():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the run never came to {step}; see {run.folder / 'log'}.")
        time.sleep(0.02)
    time.sleep(seconds)
    within = run.steps().get(step) == float("inf")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return within


def kill_steps(folder: Path, seed: int) -> tuple[Run, list[str]]:
    """Kill a run once in each step, at a random moment, and say what differs from an undisturbed one."""
    calm, hurt, draw = Run(folder / "calm"), Run(folder / "hurt"), random.Random(seed)
    calm.finish()
    within = 0
    lasted = calm.steps()
    for step, seconds in lasted.items():
        within += kill_in(hurt, step, draw.uniform(0, 0.9) * seconds)
        print(f"    killed in {step}", file=sys.stderr, flush=True)
    hurt.finish()
    expected, actual = calm.result(), hurt.result()
    differing = [name for name in expected.keys() | actual if expected.get(name) != actual.get(name)]
    print(json.dumps({"steps": len(lasted), "killed_within": within, "differing": differing}), flush=True)
    return hurt, differing


@dataclass
class Client:
    """Asks one question again and again; an answer that is not the first one is wrong."""

    ask: Callable[[], Any]
    expected: Any = None
    right: int = 0
    wrong: list[Any] = field(default_factory=list)
    failed: int = 0
    last: float = 0.0
    """When it was last answered."""
    _done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._done.wait(0.05):
            began = time.monotonic()
            try:
                answer = self.ask()
            except TesseraClientError:
                self.failed += 1
                continue
            if answer == self.expected:
                self.right, self.last = self.right + 1, began
            else:
                self.wrong.append(answer)

    def stop(self) -> None:
        self._done.set()


@contextmanager
def served(run: Run, ports: dict[str, int]) -> Iterator[psutil.Process]:
    """`tessera serve` of a run's home."""
    command = [str(TESSERA), "serve", f"--home={run.home}", *(f"--platform.{n}-port={p}" for n, p in ports.items())]
    log = run.folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, cwd=run.folder)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "stop with Ctrl-C" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the platform does not serve; see {log}.")
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(120)


def free_ports(*names: str) -> dict[str, int]:
    """A port for each name that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}


def kinds(serve: psutil.Process) -> dict[str, psutil.Process]:
    """The processes of a platform that serves, by their programs' names, numbered where a name is there twice."""
    processes: dict[str, psutil.Process] = {}
    for process in serve.children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.NoSuchProcess:  # it ended meanwhile, or was killed and nobody has asked for its status yet
            continue
        module = words[words.index("-m") + 1] if "-m" in words else Path(words[0]).name if words else process.name()
        same = sum(name.split("#")[0] == module for name in processes)
        processes[f"{module}#{same + 1}" if same else module] = process
    return processes


def kill_services(run: Run, ports: dict[str, int]) -> bool:
    """Kill each process of a platform that serves; whether all came back and no answer was another one."""
    splits = read_table("splits", run.out / "catalogue" / "splits.parquet").to_pylist()
    user, history = splits[0]["user_id"], splits[0]["train"]
    good = True
    with (
        served(run, ports) as serve,
        Recommender(f"127.0.0.1:{ports['grpc']}") as recommender,
        Features(f"http://127.0.0.1:{ports['features']}") as features,
    ):
        clients = [
            Client(lambda: [one.item_id for one in recommender.recommend(history, k=5).items]),
            Client(lambda: features.user(user).history),
        ]
        for client in clients:
            client.expected = client.ask()
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        for name in kinds(serve):
            victim, killed = kinds(serve)[name], time.monotonic()
            victim.kill()
            deadline = killed + AGAIN_S
            while time.monotonic() < deadline and not back(serve, name, victim.pid, clients, killed):
                time.sleep(0.2)
            again = back(serve, name, victim.pid, clients, killed)
            good &= again
            seconds = round(time.monotonic() - killed, 1)
            print(json.dumps({"killed": name, "again": again, "seconds": seconds}), flush=True)
            time.sleep(3)
        for client in clients:
            client.stop()
        for thread in threads:
            thread.join()
    for what, client in zip(("recommendations", "features"), clients, strict=True):
        good &= not client.wrong
        answers = {"asked_for": what, "right": client.right, "failed": client.failed, "wrong": len(client.wrong)}
        print(json.dumps(answers), flush=True)
    return good


def back(serve: psutil.Process, name: str, pid: int, clients: list[Client], killed: float) -> bool:
    """Whether another process has taken the place of one that was killed, and both clients were answered since."""
    there = kinds(serve).get(name)
    return there is not None and there.pid != pid and all(client.last > killed + 1 for client in clients)


def main(seed: int = 0) -> None:
    """Kill the steps, then the services, and fail where something was lost or mixed.

    Args:
        seed: of the moments.
    """
    with tempfile.TemporaryDirectory(prefix="tessera-kills-") as folder:
        run, differing = kill_steps(Path(folder), seed)
        good = kill_services(run, free_ports("http", "grpc", "metrics", "features"))
    if differing or not good:
        raise SystemExit("something was lost or mixed.")


if __name__ == "__main__":
    tyro.cli(main)
