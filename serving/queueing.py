"""Requests that wait for the policy, and the threads that decode them in batches.

Several decoders of one core each answer more, and more steadily, than one decoder of several cores: a beam's matrices
are so small that cores which share them spend their time waiting for each other, and a core that another process takes
for a moment holds up all the others.

Triton hands requests over as they come, because its own bounded queue idles: with a queue policy (size, timeout or
priorities) its batcher learns of a free model only from the next request that it admits, so a full queue stands still
for half a second after every batch (seen with tritonserver 2.51: a burst of 60 requests took 5 s instead of 0.8 s).
"""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.answering import Answerer, Arrays, Query, Refusal

PROBE, INTERACTIVE, BATCH = 0, 1, 2
"""Priorities, the most urgent first. A probe overtakes people, so that a health check in a flood is still answered."""
LONGEST_WAIT_S = 60.0
"""Requests may ask to wait less."""
# What Triton itself says in these cases, so that clients need to know only one wording.
BUSY = Refusal("Exceeds maximum queue size", "unavailable")
LATE = Refusal("Request timeout expired", "unavailable")
# After a batch of several, those whom it answered may be about to ask again: a short pause gathers them,
# this part of the time that the batch took.
GATHER, GATHER_MOST_S = 0.1, 0.005

Answer = Arrays | Refusal
Reply = Callable[[Answer], None]
log = logging.getLogger(__name__)


@dataclass(order=True)
class Waiting:
    """A request in the queue; the order is that of answering."""

    priority: int
    number: int
    queries: list[Query] = field(compare=False)
    reply: Reply = field(compare=False)
    since: float = field(compare=False)
    until: float = field(compare=False)


@dataclass
class QueueStatistics:
    """Cumulative counters: seconds waited by the requests that were decoded, refusals by reason, and failures.

    failed counts requests that nothing was wrong with but the policy.
    """

    waited_s: float = 0.0
    busy: int = 0
    late: int = 0
    failed: int = 0


class Dispatcher:
    """A bounded queue before an answerer, and the threads that empty it; may be fed by any thread.

    Args:
        max_batch: most rows decoded together, and of one request.
        max_queue: most requests of a priority that wait.
        workers: threads that decode, each a batch of its own.
        together: most rows of several requests that are decoded together; 0: max_batch.
        prepare: what each of them calls first.
    """

    def __init__(
        self,
        answerer: Answerer,
        max_batch: int,
        max_queue: int,
        workers: int = 1,
        together: int = 0,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.statistics = QueueStatistics()
        self._answerer, self._max_batch, self._max_queue = answerer, max_batch, max_queue
        self._together = min(together or max_batch, max_batch)
        self._prepare, self._free = prepare, 0
        self._heap: list[Waiting] = []
        self._sizes = dict.fromkeys((PROBE, INTERACTIVE, BATCH), 0)
        self._batch_s = 0.0  # what the largest of the last batches took
        self._numbers = itertools.count()
        lock = threading.Lock()
        # Free threads wait for the one, those that gather for the other: a request wakes one free thread, not all.
        self._arrived, self._gathered = threading.Condition(lock), threading.Condition(lock)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"tessera-decode-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, inputs: Any, reply: Reply, priority: int = INTERACTIVE, timeout_s: float = 0.0) -> None:
        """Queue a request, or reply at once that it is malformed or the queue full.

        Args:
            inputs: called for the request's arrays, which costs, only if there is room.
            reply: called once, here or on a decoding thread.
            timeout_s: seconds that it may wait; 0 for LONGEST_WAIT_S.
        """
        if self._sizes[priority] >= self._max_queue or self._would_be_late(priority, timeout_s):
            self.statistics.busy += 1
            return reply(BUSY)
        queries = self._answerer.parse(inputs())
        if isinstance(queries, Refusal):
            return reply(queries)
        if len(queries) > self._max_batch:
            return reply(Refusal(f"the request has {len(queries)} rows; send at most {self._max_batch}."))
        now = time.monotonic()
        until = now + min(timeout_s or LONGEST_WAIT_S, LONGEST_WAIT_S)
        with self._arrived:
            heapq.heappush(self._heap, Waiting(priority, next(self._numbers), queries, reply, now, until))
            self._sizes[priority] += 1
            self._arrived.notify()
            self._gathered.notify_all()
        return None

    def close(self) -> None:
        """Answer what waits and end the threads."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
            self._gathered.notify_all()
        for thread in self._threads:
            thread.join()

    def _would_be_late(self, priority: int, timeout_s: float) -> bool:
        """Whether the batches that are decoded and the full ones that go first take longer than a request may wait.

        Better now than after it has waited: its caller can turn elsewhere, and others get the place.
        """
        before = sum(size for other, size in self._sizes.items() if other <= priority)
        ahead = before // (self._together * len(self._threads))
        return ahead > 0 and (1 + ahead) * self._batch_s > (timeout_s or LONGEST_WAIT_S)

    def _run(self) -> None:
        self._prepare()
        gather_s, size = 0.0, 0
        while batch := self._take(gather_s, size):
            started = time.monotonic()
            answers = self._answers(batch)
            self._count_failures(answers)
            for one, answer in zip(batch, answers, strict=True):
                _reply(one, answer)
            size, took = len(batch), time.monotonic() - started
            self._batch_s = max(took, self._batch_s / 2)
            gather_s = min(GATHER * took, GATHER_MOST_S) if size > 1 else 0.0

    def _take(self, gather_s: float, size: int) -> list[Waiting]:
        """The next batch, after waiting for one, and for `size` requests at most `gather_s`; [] at the end.

        What waits is shared with the other threads that are free; one that finds them all at work takes what it can.
        """
        late: list[Waiting] = []
        batch: list[Waiting] = []
        while not batch:
            with self._arrived:
                self._free += 1
                if gather_s:
                    self._gathered.wait_for(lambda: self._closed or len(self._heap) >= size, gather_s)
                self._arrived.wait_for(lambda: self._closed or self._heap)
                share = -(-len(self._heap) // self._free)
                self._free -= 1
                if not self._heap:
                    return []
                now, rows = time.monotonic(), 0
                while self._heap and share > len(batch) and self._fits(rows, self._heap[0]):
                    one = heapq.heappop(self._heap)
                    self._sizes[one.priority] -= 1
                    if one.until < now:
                        late.append(one)
                    else:
                        batch.append(one)
                        rows += len(one.queries)
                self.statistics.waited_s += sum(now - one.since for one in batch)
                self.statistics.late += len(late)
            for one in late:
                _reply(one, LATE)
            late.clear()
        return batch

    def _fits(self, rows: int, one: Waiting) -> bool:
        return rows == 0 or rows + len(one.queries) <= self._together

    def _answers(self, batch: list[Waiting]) -> Sequence[Answer]:
        try:
            return self._answerer.answer([one.queries for one in batch])
        except Exception as error:  # a defect: the thread must live on
            log.exception("a batch failed")
            reason = f"the policy failed ({type(error).__name__}); see the server's log."
            return [Refusal(reason, "internal")] * len(batch)

    def _count_failures(self, answers: Sequence[Answer]) -> None:
        failed = sum(isinstance(answer, Refusal) and answer.kind == "internal" for answer in answers)
        if failed:
            with self._arrived:
                self.statistics.failed += failed


def _reply(one: Waiting, answer: Answer) -> None:
    try:
        one.reply(answer)
    except Exception:  # say, a client that is gone
        log.exception("a reply could not be sent")
