"""The benchmark of online reads at a tiny size, as it is run."""

import importlib.util
import json
import runpy

import pytest

from benchmarks.redis_server import redis_binary


@pytest.mark.integration
def test_reads_are_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["lookups", "--items=30", "--repeats=10"])
    # In this process, which has mostly imported Feast and torch already.
    runpy.run_module("benchmarks.lookups", run_name="__main__")
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    sides = ["sqlite_feast", "sqlite_server"]
    assert found["redis"] == bool(redis_binary() and importlib.util.find_spec("redis"))
    if found["redis"]:
        sides += ["redis_feast", "redis_server", "redis_mget"]
    else:
        assert "without Redis, because" in printed
    assert [(row["read"], row["items"]) for row in found["reads"]] == [
        (side, count) for count in (1, 10, 100) for side in sides
    ]
    assert all(0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] for row in found["reads"])
