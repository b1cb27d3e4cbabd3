"""The benchmark of online reads at a tiny size, as it is run."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.redis_server import redis_binary

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.integration
def test_reads_are_timed() -> None:
    command = [sys.executable, "-m", "benchmarks.lookups", "--items=120", "--repeats=10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    sides = ["sqlite_feast", "sqlite_server"]
    assert found["redis"] == bool(redis_binary() and importlib.util.find_spec("redis"))
    if found["redis"]:
        sides += ["redis_feast", "redis_server", "redis_mget"]
    else:
        assert "without Redis, because" in done.stdout
    assert [(row["read"], row["items"]) for row in found["reads"]] == [
        (side, count) for count in (1, 10, 100) for side in sides
    ]
    assert all(0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] for row in found["reads"])
