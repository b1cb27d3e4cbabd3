"""The client's circuit breaker: when requests reach the server, by a clock that the test moves."""

import threading

from tessera_rec_client._breaker import Breaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_failures_in_a_row_and_closes_with_a_success() -> None:
    clock = Clock()
    breaker = Breaker(3, 2.0, clock)
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()  # so the row begins anew
    for _ in range(2):
        breaker.failed()
        assert breaker.allows(1.0)
    breaker.failed()
    assert not breaker.allows(1.0)
    clock.now += 1.9
    assert not breaker.allows(1.0)
    clock.now += 0.2
    assert breaker.allows(1.0)  # half-open: this one tries
    assert not breaker.allows(1.0)  # and no other meanwhile
    breaker.succeeded()
    assert breaker.allows(1.0)
    assert breaker.allows(1.0)


def test_a_try_that_fails_opens_it_again_and_one_that_never_reports_does_not_keep_it_open() -> None:
    clock = Clock()
    breaker = Breaker(1, 2.0, clock)
    breaker.failed()
    clock.now += 2.0
    assert breaker.allows(1.0)
    clock.now += 1.0
    breaker.failed()
    clock.now += 1.9
    assert not breaker.allows(1.0)
    clock.now += 0.2
    assert breaker.allows(5.0)  # its caller is killed
    clock.now += 4.9  # it may take five seconds, which is more than the pause
    assert not breaker.allows(1.0)
    clock.now += 0.2
    assert breaker.allows(1.0)


def test_of_many_threads_one_tries() -> None:
    breaker = Breaker(1, 0.001)
    breaker.failed()
    threading.Event().wait(0.01)
    start, let = threading.Barrier(32), []

    def ask() -> None:
        start.wait()
        if breaker.allows(60.0):
            let.append(threading.get_ident())

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(let) == 1
