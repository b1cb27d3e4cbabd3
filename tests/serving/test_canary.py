"""Who follows a canary, and when it is in trouble; without any server."""

import re
import threading
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from serving.canary import REPLICAS, SHARE, followers
from serving.journal import LONGEST, TAG, entries
from serving.registry import Version
from serving.replicas import METRICS_ABOVE, Counts, Replica, Window, expand
from serving.rollout import SURE, Trouble, judge
from serving.sync import ordinal_of
from tessera.errors import InputError, ServiceError


def version(**tags: str) -> Version:
    return Version("sid-policy", "1", "abc", "def", (), {}, datetime.now(timezone.utc), None, tags)


def test_every_share_of_every_number_of_replicas_is_followed_by_so_many() -> None:
    for replicas in range(1, 101):
        for count in range(replicas + 1):
            tags = {SHARE: str(count / replicas), REPLICAS: str(replicas)}
            assert followers(version(**tags)) == count
    assert followers(version(**{SHARE: "0.5", REPLICAS: "3"})) == 1  # half of three: the first


@pytest.mark.parametrize("tags", [{}, {SHARE: "1"}, {REPLICAS: "3"}, {SHARE: "most", REPLICAS: "3"}])
def test_a_canary_that_does_not_say_how_many_is_followed_by_nobody(tags: dict[str, str]) -> None:
    assert followers(version(**tags)) == 0


def test_a_replica_has_the_number_of_its_pod() -> None:
    assert ordinal_of("triton-12") == 12
    with pytest.raises(InputError, match="'triton' is no StatefulSet's pod"):
        ordinal_of("triton")


def test_addresses_of_replicas() -> None:
    assert expand(["http://a:8000", "http://b:8000"]) == ["http://a:8000", "http://b:8000"]
    assert expand([]) == []
    assert expand(["http://127.0.0.1{}:8000"])[:2] == ["http://127.0.0.10:8000", "http://127.0.0.11:8000"]
    for wrong in ("triton:8000", "grpc://triton:8001", "http://"):
        with pytest.raises(InputError, match="is no address of a replica"):
            expand([wrong])


@pytest.mark.parametrize(
    ("there", "trouble"),
    [
        ([0, 1, 2], ""),
        ([0, 2], "replica1:8000 does not resolve and http://replica2:8000 does"),
        ([1, 2], "replica0:8000 does not resolve"),
        ([0, 3], "replica1:8000 does not resolve"),  # two are pending
        ([], "no replica of http://replica{}:8000 resolves"),
    ],
)
def test_replicas_without_an_address_are_not_passed_over(
    there: list[int], trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [f"http://replica{ordinal}:8000" for ordinal in there]
    monkeypatch.setattr("serving.replicas._resolves", lambda url: url in urls)
    if not trouble:
        assert expand(["http://other:8000", "http://replica{}:8000"]) == ["http://other:8000", *urls]
        return
    with pytest.raises(ServiceError, match=re.escape(trouble)):
        expand(["http://replica{}:8000"])


def counts(process: str, requests: float, failed: float = 0.0) -> Counts:
    names = {"tessera_requests_total": requests, "tessera_failed_total": failed}
    return {(name, "1", process): value for name, value in names.items()}


@pytest.mark.parametrize(
    ("looks", "requests", "errors"),
    [
        ([counts("7", 100, 5), counts("7", 110, 6), counts("7", 130, 8)], 30, 3),
        ([counts("7", 100, 5), counts("7", 110, 6), counts("7", 4, 1)], 14, 2),  # restarted, with the same number
        ([counts("7", 100, 5), counts("7", 110, 6), counts("9", 4, 1)], 14, 2),  # restarted, with another
        ([counts("7", 100, 5), counts("7", 110, 6) | counts("9", 4, 1), counts("9", 9, 1)], 19, 2),  # took over
        ([counts("7", 100, 5), counts("7", 110, 6), {}], 10, 1),  # gone
        ([counts("7", 100, 5), counts("7", 110, 6), {}, counts("7", 20, 2)], 30, 3),  # gone, and back from 0
    ],
)
def test_what_a_replica_counted_outlives_its_processes(
    looks: list[Counts], requests: float, errors: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(looks)
    monkeypatch.setattr(Replica, "_counts", lambda _: next(answers))
    replica = Replica("http://replica:8000", "policy", [])
    replica.begin()
    seen = [replica.window() for _ in looks[1:]]
    assert (seen[-1].requests, seen[-1].errors) == (requests, errors)


def test_processes_of_one_release_are_told_apart() -> None:
    text = "".join(f'tessera_requests_total{{model="tessera",version="1",process="{p}"}} {p}\n' for p in (7, 9))

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"# TYPE tessera_requests_total counter\n{text}".encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        replica = Replica(f"http://127.0.0.1:{server.server_port - METRICS_ABOVE}", "policy", [])
        seen = replica._counts()
        server.shutdown()
        thread.join()
    assert sorted(seen.values()) == [7, 9]


def window(requests: int, errors: int, ms: float = 1.0) -> Window:
    return Window(requests, errors, 0.0, requests, requests * ms / 1e3)


@pytest.mark.parametrize(
    ("mine", "theirs", "trouble"),
    [
        (window(100, 0), window(100, 0), ""),
        (window(100, 3), window(100, 0), "2.9% of its requests failed, 0.0% of the champion's"),
        (window(100, 3), window(100, 4), ""),  # whatever it is, it is not the canary
        (window(0, 5), window(0, 0), "100.0% of its requests failed"),
        (window(100, 0, 30.0), window(100, 0, 10.0), "a request takes 30 ms, the champion's 10 ms"),
        (window(100, 0, 4.0), window(100, 0, 1.0), ""),  # nobody notices
        (window(0, 0), window(100, 0), ""),
    ],
)
def test_a_canary_is_held_to_what_the_others_show(mine: Window, theirs: Window, trouble: str) -> None:
    if not trouble:
        return judge(mine, theirs, 0.01, 2.0)
    with pytest.raises(Trouble, match=trouble):
        judge(mine, theirs, 0.01, 2.0)
    return None


def test_a_step_is_only_ended_early_by_errors_and_not_by_the_first() -> None:
    judge(window(2, 1), window(100, 0), 0.01, None)
    judge(window(100, 0, 1000.0), window(100, 0), 0.01, None)
    with pytest.raises(Trouble, match=r"0.0% of the champion.s \(because\)"):
        judge(window(SURE, 5), window(100, 0), 0.01, None, "because")


def test_a_journal_that_cannot_be_read_is_empty() -> None:
    for text in ("", "no json", '[{"unknown": 1}]', "[1]"):
        assert entries({TAG: text}) == []
    assert LONGEST < 5000
