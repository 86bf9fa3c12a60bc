"""Events on their way from the engine's thread to the loop."""

from __future__ import annotations

import asyncio
import threading

from laser_verifier.mailbox import Mailbox
from laser_verifier.sequence import Emitted, Event


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
