"""Since when the event loop has been at what it is at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from laser_retriever.clock import TurnClock


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_what_came_together_came_at_the_same_moment(run: Callable[[Any], Any]) -> None:
    async def work(clock: TurnClock) -> float:
        began_s = clock.began_s()
        time.sleep(0.02)
        return began_s

    async def main() -> None:
        clock = TurnClock()
        before_s = time.monotonic()
        first, second, third = await asyncio.gather(*(work(clock) for _ in range(3)))
        assert first == second == third >= before_s
        await asyncio.sleep(0)
        assert clock.began_s() >= first + 0.06, "another turn"

    run(main())
