"""Events on their way from the engine's thread to the loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from laser_protocol.errors import EngineDead
from laser_verifier.mailbox import JoinedDeltas, Mailbox
from laser_verifier.sequence import Admitted, Emitted, Event


def test_every_event_arrives_once_and_in_order_from_several_threads() -> None:
    async def run() -> None:
        mailbox = Mailbox(asyncio.get_running_loop())
        queues: list[asyncio.Queue[Event]] = [asyncio.Queue() for _ in range(3)]

        def send(queue: asyncio.Queue[Event]) -> None:
            for number in range(2000):
                mailbox.put(queue, Emitted("", (number,), 0))

        threads = [threading.Thread(target=send, args=(queue,)) for queue in queues]
        for thread in threads:
            thread.start()
        for queue in queues:
            got = [await asyncio.wait_for(queue.get(), 10) for _ in range(2000)]
            assert [event.token_ids for event in got if isinstance(event, Emitted)] == [(n,) for n in range(2000)]
        for thread in threads:
            thread.join()
        assert all(queue.empty() for queue in queues)

    asyncio.run(run())


def emitted(number: int) -> Emitted:
    return Emitted(f"w{number} ", (number, number), 1)


def test_what_is_emitted_within_the_interval_comes_as_one_and_the_last_event_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, got = [100.0], list[Event]()
    monkeypatch.setattr("laser_verifier.mailbox.time.monotonic", lambda: now[0])
    sink = JoinedDeltas(got.append, 1.0)
    error = EngineDead("over")
    for seconds, event in ((0, Admitted()), (0, emitted(1)), (0.4, emitted(2)), (0.8, emitted(3)), (1.1, emitted(4)),
                           (1.2, emitted(5)), (1.3, error)):  # fmt: skip
        now[0] = 100.0 + seconds
        sink(event)
    joined = Emitted("w2 w3 w4 ", (2, 2, 3, 3, 4, 4), 3)
    assert got == [Admitted(), emitted(1), joined, emitted(5), error]


def test_without_an_interval_every_event_passes() -> None:
    got = list[Event]()
    sink = JoinedDeltas(got.append, 0.0)
    for number in range(5):
        sink(emitted(number))
    assert got == [emitted(number) for number in range(5)]
