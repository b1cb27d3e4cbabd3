"""The queue's order and limits, with an answerer that is slow on command; decoding itself is tested elsewhere."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from serving.answering import Refusal
from serving.queueing import BATCH, BUSY, INTERACTIVE, LATE, PROBE, Dispatcher

Batches = list[list[str]]


class Slow:
    """Parses a name and a number of rows; answers a batch when it is let, and keeps what it got."""

    def __init__(self) -> None:
        self.batches: Batches = []
        self.let = threading.Semaphore(0)

    def parse(self, inputs: tuple[str, int]) -> Any:
        name, rows = inputs
        return [name] * rows if rows else Refusal("no rows")

    def answer(self, requests: list[list[str]]) -> list[Any]:
        self.batches.append([one[0] for one in requests])
        assert self.let.acquire(timeout=20)
        if "defect" in self.batches[-1]:
            raise ZeroDivisionError
        return [f"for {one[0]}" for one in requests]


class Client:
    """Submits and collects."""

    def __init__(self, dispatcher: Dispatcher, answerer: Slow) -> None:
        self.dispatcher, self.answerer = dispatcher, answerer
        self.replies: dict[str, Any] = {}

    def send(self, name: str, *schedule: Any, rows: int = 1) -> None:
        self.dispatcher.submit(lambda: (name, rows), lambda reply: self.replies.update({name: reply}), *schedule)

    def occupy(self) -> None:
        """Have the answerer busy with a request of its own."""
        count = len(self.answerer.batches)
        self.send("first")
        wait_for(lambda: len(self.answerer.batches) > count)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@contextmanager
def serving(max_batch: int = 4, max_queue: int = 6, workers: int = 1) -> Iterator[Client]:
    answerer = Slow()
    dispatcher = Dispatcher(answerer, max_batch, max_queue, workers)  # type: ignore[arg-type]
    try:
        yield Client(dispatcher, answerer)
    finally:
        answerer.let.release(100)
        dispatcher.close()


def test_what_waits_is_answered_together_the_most_urgent_first() -> None:
    with serving() as client:
        client.occupy()
        for name, priority in (("b1", BATCH), ("i1", INTERACTIVE), ("b2", BATCH), ("i2", INTERACTIVE), ("p", PROBE)):
            client.send(name, priority)
        client.answerer.let.release(3)
        wait_for(lambda: len(client.replies) == 6)
        assert client.answerer.batches == [["first"], ["p", "i1", "i2", "b1"], ["b2"]]
        assert client.replies == {name: f"for {name}" for name in ("first", "p", "i1", "i2", "b1", "b2")}


def test_a_full_queue_refuses_at_once_each_priority_by_itself() -> None:
    with serving(max_queue=2) as client:
        client.occupy()
        for number in range(4):
            client.send(f"i{number}")
        assert client.replies == {"i2": BUSY, "i3": BUSY}
        client.send("b", BATCH)
        client.send("p", PROBE)
        client.answerer.let.release(9)
        wait_for(lambda: len(client.replies) == 7)
        assert client.replies["b"] == "for b"
        assert client.dispatcher.statistics.busy == 2
        client.send("again")  # room again
        wait_for(lambda: client.replies.get("again") == "for again")


def test_who_would_be_late_behind_full_batches_is_refused_at_once() -> None:
    with serving(max_batch=2, max_queue=100) as client:
        client.occupy()
        time.sleep(0.2)  # what a batch takes, as far as the queue knows
        client.answerer.let.release()
        wait_for(lambda: "first" in client.replies)
        client.occupy()
        client.send("i1", INTERACTIVE, 0.3)
        client.send("i2", INTERACTIVE, 0.3)  # with the first, the next batch
        client.send("hasty", INTERACTIVE, 0.3)
        client.send("patient", INTERACTIVE, 30.0)
        client.send("p", PROBE, 0.3)  # goes before them
        client.send("b", BATCH, 0.3)
        assert {name for name, reply in client.replies.items() if reply == BUSY} == {"hasty", "b"}
        client.answerer.let.release(9)
        wait_for(lambda: len(client.replies) == 7)
        assert {client.replies[name] for name in ("i1", "i2", "patient", "p")} == {
            f"for {name}" for name in ("i1", "i2", "patient", "p")
        }
        assert (client.dispatcher.statistics.busy, client.dispatcher.statistics.late) == (2, 0)


def test_who_waited_too_long_is_refused_and_costs_no_decode() -> None:
    with serving() as client:
        client.occupy()
        client.send("hasty", INTERACTIVE, 0.05)
        client.send("patient", INTERACTIVE, 30.0)
        client.send("default")
        time.sleep(0.1)
        client.answerer.let.release(2)  # the two batches
        wait_for(lambda: len(client.replies) == 4)
        assert client.replies["hasty"] == LATE
        assert client.answerer.batches == [["first"], ["patient", "default"]]
        assert client.dispatcher.statistics.late == 1
        assert 0.2 < client.dispatcher.statistics.waited_s < 10  # two of them waited a tenth of a second each
        client.occupy()
        client.send("alone", INTERACTIVE, 0.01)  # the last of the queue: its refusal waits for no other request
        time.sleep(0.05)
        client.answerer.let.release(9)
        wait_for(lambda: client.replies.get("alone") == LATE)


def test_a_batch_is_full_by_its_rows_and_a_larger_request_is_refused() -> None:
    with serving() as client:
        client.occupy()
        for name, rows in (("a", 2), ("b", 2), ("c", 1), ("d", 5), ("e", 4)):
            client.send(name, rows=rows)
        client.answerer.let.release(9)
        wait_for(lambda: len(client.replies) == 6)
        assert client.answerer.batches == [["first"], ["a", "b"], ["c"], ["e"]]
        assert client.replies["d"] == Refusal("the request has 5 rows; send at most 4.")


def test_a_malformed_request_is_refused_without_a_place_in_the_queue() -> None:
    with serving(max_queue=1) as client:
        client.occupy()
        for number in range(3):
            client.send(f"malformed {number}", INTERACTIVE, 0.0, rows=0)
        assert set(client.replies.values()) == {Refusal("no rows")}
        client.send("good")
        assert "good" not in client.replies


def test_a_defect_refuses_its_batch_and_the_next_is_answered() -> None:
    with serving() as client:
        client.answerer.let.release(9)
        client.send("defect")
        wait_for(lambda: "defect" in client.replies)
        assert client.replies["defect"].kind == "internal"
        assert "ZeroDivisionError" in client.replies["defect"].message
        client.send("good")
        wait_for(lambda: client.replies.get("good") == "for good")


def test_a_reply_that_cannot_be_sent_does_not_end_the_thread() -> None:
    def gone(_: Any) -> None:
        raise RuntimeError("the client is gone")

    with serving() as client:
        client.answerer.let.release(9)
        client.dispatcher.submit(lambda: ("lost", 1), gone)
        client.send("good")
        wait_for(lambda: client.replies.get("good") == "for good")


def test_closing_answers_what_waits() -> None:
    with serving() as client:
        client.occupy()
        client.send("last")
        client.answerer.let.release(9)
        client.dispatcher.close()
        assert client.replies["last"] == "for last"


@pytest.mark.parametrize("together", [2, 4])
def test_those_who_were_answered_together_may_ask_again_together(together: int) -> None:
    """Closed loops of several clients keep decoding in full batches instead of one, all others, one, all others."""
    with serving() as client:
        client.occupy()
        for number in range(together):
            client.send(f"{number}.0")
        client.answerer.let.release(1)
        wait_for(lambda: len(client.answerer.batches) == 2)
        time.sleep(0.06)  # the longer a batch takes, the longer may be waited: here 5 ms
        client.answerer.let.release(1)
        wait_for(lambda: f"{together - 1}.0" in client.replies)
        for number in range(together):
            client.send(f"{number}.1")
        client.answerer.let.release(1)
        wait_for(lambda: f"{together - 1}.1" in client.replies)
        assert client.answerer.batches[2] == [f"{number}.1" for number in range(together)]


def test_several_workers_decode_at_once_and_one_that_is_free_alone_takes_all() -> None:
    with serving(workers=2) as client:
        client.occupy()
        client.occupy()  # nothing was let go: the second worker has it
        for name in ("a", "b", "c"):
            client.send(name)
        client.answerer.let.release()
        wait_for(lambda: len(client.answerer.batches) == 3)
        assert client.answerer.batches[2] == ["a", "b", "c"]
        client.answerer.let.release(9)
        wait_for(lambda: len(client.replies) == 4)  # both are called "first"


def test_all_workers_are_prepared_and_all_end() -> None:
    prepared: list[str] = []
    name = lambda: prepared.append(threading.current_thread().name)  # noqa: E731
    dispatcher = Dispatcher(Slow(), 4, 6, 3, prepare=name)  # type: ignore[arg-type]
    wait_for(lambda: len(prepared) == 3)
    dispatcher.close()
    assert len(set(prepared)) == 3
    assert not {thread.name for thread in threading.enumerate()} & set(prepared)


def test_few_are_decoded_together_but_one_request_may_be_larger() -> None:
    answerer = Slow()
    dispatcher = Dispatcher(answerer, max_batch=8, max_queue=20, together=2)  # type: ignore[arg-type]
    client = Client(dispatcher, answerer)
    client.occupy()
    for name in ("a", "b", "c"):
        client.send(name)
    answerer.let.release(9)
    wait_for(lambda: len(client.replies) == 4)
    assert answerer.batches == [["first"], ["a", "b"], ["c"]]
    dispatcher.close()
