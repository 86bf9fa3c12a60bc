"""Prompts that begin alike: the beginning is computed once, and nobody's output changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laser_verifier import prefix_cache
from laser_verifier.drafts import NoDrafts
from laser_verifier.prefix_cache import MIN_PREFIX_TOKENS, PrefixCache, SharedPrefix, num_shared
from tests.oracles import plain_decoding
from tests.verifier.tiny import ARCHITECTURES, VOCAB_SIZE, TinyServer, tiny_model, tiny_network
from tests.verifier.trees import RandomDrafts


def tokens(*values: int) -> Any:
    return np.asarray(values, np.int32)


BEGINNING = tuple(int(t) for t in np.random.default_rng(0).integers(0, VOCAB_SIZE, 40))


def test_finds_the_slot_that_holds_most() -> None:
    cache = PrefixCache(3)
    cache.hold(1, tokens(*range(30)), 20)
    cache.hold(2, tokens(*range(30)), 25)
    assert cache.find(tokens(*range(50)), set()) == SharedPrefix(2, 25, False)
    assert cache.find(tokens(9, *range(50)), set()).num_tokens == 0


def test_the_last_token_of_a_prompt_always_runs() -> None:
    cache = PrefixCache(1)
    cache.hold(0, tokens(*range(30)), 30)
    assert cache.find(tokens(*range(30)), set()).num_tokens == 29


def test_a_short_beginning_is_not_worth_a_copy() -> None:
    cache = PrefixCache(1)
    cache.hold(0, tokens(*range(MIN_PREFIX_TOKENS - 1)), MIN_PREFIX_TOKENS - 1)
    assert cache.find(tokens(*range(30)), set()).num_tokens == 0


def test_only_slots_that_begin_alike_are_compared_with_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for room is looked up in every step: prompts with nothing in common must cost next to nothing."""
    compared: list[int] = []
    monkeypatch.setattr(
        prefix_cache, "num_shared", lambda one, other: compared.append(int(other[-1])) or num_shared(one, other)
    )
    cache = PrefixCache(4)
    cache.hold(0, tokens(9, *range(1, 1000), 0), 1000)
    cache.hold(1, tokens(*range(MIN_PREFIX_TOKENS - 1), 9, 1), MIN_PREFIX_TOKENS + 1)
    cache.hold(2, tokens(*range(1000), 2), 20)
    cache.hold(3, tokens(*range(MIN_PREFIX_TOKENS), 3), 4)
    assert cache.find(tokens(*range(1000)), {2}) == SharedPrefix(2, 20, True)
    assert compared == [2, 3]
    assert cache.find(tokens(*range(MIN_PREFIX_TOKENS)), {2, 3}).num_tokens == 0
    assert compared == [2, 3], "too short for a copy"


def test_waits_only_for_sequences_ahead_that_bring_enough() -> None:
    cache = PrefixCache(2)
    cache.hold(1, tokens(*range(40)), 4)
    assert cache.find(tokens(*range(50)), {1}).is_coming
    assert not cache.find(tokens(*range(50)), {0}).is_coming
    cache.hold(1, tokens(*range(40)), 40 - MIN_PREFIX_TOKENS + 1)
    assert not cache.find(tokens(*range(50)), {1}).is_coming


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_prompts_that_begin_alike_give_what_they_give_alone(architecture: str) -> None:
    """They come together, then after slots were freed: the beginning is computed once each time it is not at hand."""
    network = tiny_network(architecture)
    prompts = [(*BEGINNING, *range(i, i + 5)) for i in range(6)]
    server = TinyServer(tiny_model(network), RandomDrafts(VOCAB_SIZE), max_sequences=3, max_step_tokens=64)
    outcomes = {prompt: server.submit(prompt, 12) for prompt in prompts}
    server.run()
    assert {p: outcome.token_ids for p, outcome in outcomes.items()} == {
        p: plain_decoding(network, p, 12) for p in prompts
    }
    assert server.engine.counters.num_reused_tokens == 5 * len(BEGINNING)


def test_nobody_waits_for_a_beginning_that_gets_no_room() -> None:
    """Four tokens a step go to the oldest prompt, the others to the shortest: the third gets none meanwhile."""
    server = TinyServer(tiny_model(tiny_network()), NoDrafts(), max_sequences=4, max_step_tokens=8)
    server.submit(range(1, 40), 2)
    other = server.submit(range(2, 32), 2)
    server.submit((*BEGINNING, *range(30)), 2)
    short = server.submit((*BEGINNING[:20], 1), 2)
    while not short.token_ids:
        server.engine.step()
    assert not other.token_ids


def test_a_prompt_as_long_still_waits_for_a_beginning_that_is_held_up_for_a_moment() -> None:
    server = TinyServer(tiny_model(tiny_network()), NoDrafts(), max_sequences=4, max_step_tokens=8)
    server.submit(range(1, 40), 2)
    for i in range(2):
        server.submit((*BEGINNING, i), 2)
    for _ in range(5):
        server.engine.step()
    server.submit(range(2, 10), 2)
    server.run()
    assert server.engine.counters.num_reused_tokens > len(BEGINNING) - MIN_PREFIX_TOKENS


def test_reuse_can_be_turned_off() -> None:
    server = TinyServer(tiny_model(tiny_network()), NoDrafts(), max_sequences=2, prefix_reuse=False)
    for i in range(4):
        server.submit((*BEGINNING, i), 4)
    server.run()
    assert server.engine.counters.num_reused_tokens == 0


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_mix_of_beginnings_cancels_and_slots_gives_plain_decoding(data: st.DataObject) -> None:
    network = tiny_network("llama", seed=1)
    server = TinyServer(
        tiny_model(network),
        RandomDrafts(VOCAB_SIZE),
        max_sequences=data.draw(st.integers(1, 4)),
        max_step_tokens=data.draw(st.integers(4, 64)),
    )
    outcomes: dict[tuple[int, ...], Any] = {}
    for i in range(data.draw(st.integers(2, 8))):
        prompt = (*BEGINNING[: data.draw(st.integers(0, 40))], i % 3, i)
        outcomes[prompt] = server.submit(prompt, 6, request_id=str(i))
        for _ in range(data.draw(st.integers(0, 3))):
            server.engine.step()
        if data.draw(st.booleans()):
            server.engine.cancel(str(i))
            del outcomes[prompt]
    server.run()
    for prompt, outcome in outcomes.items():
        assert outcome.token_ids == plain_decoding(network, prompt, 6)
