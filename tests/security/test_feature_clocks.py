"""Writers whose clocks are ahead: nothing that they wrote freezes a user or a home, and no push is lost in silence."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from benchmarks.redis_server import redis_binary, redis_server
from benchmarks.shop import TOKENIZER, item_id, publish_features, sids_table
from feature_repo import lookup, offline, publish, writer
from feature_repo.definitions import PUSH_SOURCE
from feature_repo.store import feast_folder, open_store, read_state
from feature_repo.tables import TIMESTAMP, VIEWS
from tessera.errors import InputError, ServiceError

pytestmark = pytest.mark.integration
YEARS = 4 * 365 * 24 * 3600
ANN, LONGER = [item_id(0), item_id(1), item_id(2)], [item_id(2), item_id(1), item_id(0), item_id(1)]
CODES = np.array([[0, 1], [0, 2], [1, 1]])


def release(home: Path, history: list[str]) -> None:
    publish_features(home, sids_table(CODES), {"ann": history}, "policy", 0)


@pytest.fixture(params=["sqlite", "redis"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with a publish, over each kind of online store."""
    if request.param == "sqlite":
        release(tmp_path / "home", ANN)
        yield tmp_path / "home"
        return
    binary = redis_binary() or pytest.skip("there is no redis-server")
    with redis_server(binary, tmp_path) as address:
        monkeypatch.setenv("TESSERA_REDIS", address)
        release(tmp_path / "home", ANN)
        yield tmp_path / "home"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Put this process's clock ahead by so many seconds."""
    real = time.time
    return lambda seconds: monkeypatch.setattr(time, "time", lambda: real() + seconds)


def write_from_the_future(home: Path, history: list[str]) -> None:
    """As another service does that speaks to the stores by itself, with a clock that is ahead."""
    rows = pd.DataFrame({"user_id": ["ann"], "item_ids": [history]})
    rows[TIMESTAMP] = datetime.now(timezone.utc) + timedelta(seconds=YEARS)
    open_store(home).push(PUSH_SOURCE, rows)


def lists(computed_at: datetime) -> pa.Table:
    columns = {"user_id": ["ann"], "item_ids": [ANN], "sids": [["0_1", "0_2", "1_1"]], "scores": [[-1.0, -2.0, -3.0]]}
    versions = {"policy_version": ["policy"], "tokenizer_version": [TOKENIZER], "computed_at": [computed_at]}
    return pa.table(columns | versions)


def test_a_push_and_a_publish_win_over_rows_of_the_future(home: Path) -> None:
    write_from_the_future(home, ["frozen"])
    assert lookup.user(home, "ann").history == ["frozen"]
    release(home, LONGER)
    assert lookup.user(home, "ann").history == LONGER
    write_from_the_future(home, ANN)
    assert publish.push_history(home, "ann", [item_id(2)]) == [*ANN, item_id(2)]
    assert lookup.user(home, "ann").history == [*ANN, item_id(2)]


def test_a_push_that_the_store_did_not_keep_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feast.FeatureStore.push", lambda *_, **__: None)
    with pytest.raises(ServiceError, match="keeps another history of user 'ann' than was pushed"):
        publish.push_history(home, "ann", [item_id(2)])
    monkeypatch.undo()


def test_a_home_from_the_future_takes_no_push_and_is_set_right_by_a_publish(
    tmp_path: Path, fast: Callable[[int], None]
) -> None:
    home = tmp_path / "home"
    release(home, ANN)
    fast(YEARS)
    publish.push_history(home, "ann", [item_id(0)])
    publish.publish_topk(home, lists(publish.moment(home)))
    fast(0)
    found = lookup.user(home, "ann")
    assert found.top_k is not None
    assert found.top_k.stale  # no history of now could make it so
    for call in (lambda: publish.push_history(home, "ann", [item_id(1)]), lambda: publish.moment(home)):
        with pytest.raises(ServiceError, match="in the future; correct this machine's clock"):
            call()
    assert lookup.user(home, "ann").history == [*ANN, item_id(0)]
    release(home, ANN)
    now = time.time()
    assert read_state(home).event_timestamp <= now + 5
    for view in VIEWS:
        stamps = writer.log_of(feast_folder(home), view)[TIMESTAMP].to_pylist()
        assert all(stamp.timestamp() <= now + 5 for stamp in stamps)
    assert lookup.user(home, "ann").history == [*ANN, item_id(0)]  # what was pushed is kept, as after any repeat
    assert publish.push_history(home, "ann", [item_id(1)]) == [*ANN, item_id(0), item_id(1)]
    publish.publish_topk(home, lists(publish.moment(home)))
    found = lookup.user(home, "ann")
    assert found.top_k is not None
    assert not found.top_k.stale
    publish.push_history(home, "ann", [item_id(1)])
    found = lookup.user(home, "ann")
    assert found.top_k is not None
    assert found.top_k.stale


def test_lists_of_the_future_are_refused(tmp_path: Path) -> None:
    release(tmp_path / "home", ANN)
    with pytest.raises(InputError, match="in the future; correct the clock"):
        publish.publish_topk(tmp_path / "home", lists(datetime.now(timezone.utc) + timedelta(minutes=6)))


def test_many_pushes_do_not_run_ahead_of_the_clock(tmp_path: Path) -> None:
    home = tmp_path / "home"
    release(home, ANN)
    before = read_state(home).event_timestamp
    for number in range(5):
        publish.push_history(home, f"user {number}", [item_id(0)])
    assert read_state(home).event_timestamp <= max(before, time.time())
    for history in ([item_id(0)] * length for length in (2, 3)):  # of one user, each is later than the one before
        assert publish.push_history(home, "user 0", [item_id(0)]) == history
    log = writer.log_of(feast_folder(home), "user_history")
    stamps = [row[TIMESTAMP] for row in log.to_pylist() if row["user_id"] == "user 0"]
    assert stamps == sorted(set(stamps))
    assert [item_id(0)] * 3 in offline.latest(log)["item_ids"].to_pylist()


def test_a_writer_whose_clock_is_ahead_of_redis_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: Callable[[int], None]
) -> None:
    binary = redis_binary() or pytest.skip("there is no redis-server")
    with redis_server(binary, tmp_path) as address:
        monkeypatch.setenv("TESSERA_REDIS", address)
        release(tmp_path / "home", ANN)
        fast(YEARS)
        home = tmp_path / "home"
        for call in (lambda: publish.push_history(home, "ann", [ANN[0]]), lambda: release(home, LONGER)):
            with pytest.raises(ServiceError, match=r"clock is 12614400\d s ahead of Redis's; correct it"):
                call()
        fast(0)
        assert lookup.user(home, "ann").history == ANN
        assert max(offline.newest(path) for path in (feast_folder(home) / "offline").iterdir()) <= time.time() + 5
        release(home, LONGER)
        assert lookup.user(home, "ann").history == LONGER


def test_settings_that_let_redis_drop_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "mine.yaml"
    text = (Path(publish.__file__).parent / "feature_store_redis.yaml").read_text()
    own.write_text(text.replace("  skip_dedup: true", "  key_ttl_seconds: 60"))
    monkeypatch.setenv("TESSERA_FEATURE_STORE", str(own))
    monkeypatch.setenv("TESSERA_REDIS", "127.0.0.1:9")
    with pytest.raises(InputError, match="write 'skip_dedup: true'"):
        release(tmp_path / "home", ANN)
