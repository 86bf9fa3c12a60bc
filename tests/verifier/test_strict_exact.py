"""Promise 1: strict output equals plain decoding, token for token, whatever the trees and the batch are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laser_protocol.tree import DraftTree
from laser_verifier.drafts import NoDrafts
from tests.oracles import plain_decoding
from tests.verifier.tiny import ARCHITECTURES, VOCAB_SIZE, TinyServer, tiny_model, tiny_network
from tests.verifier.trees import GoodDrafts, HostileDrafts, RandomDrafts, ScriptedDrafts, make_tree, trees

EOS = (3, 17)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def network(request: pytest.FixtureRequest) -> Any:
    return tiny_network(request.param)


@pytest.fixture(scope="module")
def plain(network: Any) -> dict[tuple[int, ...], list[int]]:
    return {prompt: plain_decoding(network, prompt, 24) for prompt in prompts_of(0, 9)}


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_network("llama", seed=1, eos_token_ids=EOS)


def prompts_of(seed: int, count: int, longest: int = 20) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(0, VOCAB_SIZE, int(rng.integers(1, longest))).tolist()) for _ in range(count)]


@pytest.mark.parametrize("kind", ["none", "good", "random", "hostile"])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_output_is_plain_decoding_for_every_architecture_tree_and_batch(
    network: Any, plain: dict[tuple[int, ...], list[int]], kind: str, batch: int
) -> None:
    drafts: Any = {
        "none": NoDrafts(),
        "good": GoodDrafts(VOCAB_SIZE, plain),
        "random": RandomDrafts(VOCAB_SIZE),
        "hostile": HostileDrafts(VOCAB_SIZE),
    }[kind]
    server = TinyServer(tiny_model(network), drafts, max_sequences=batch)
    outcomes = {prompt: server.submit(prompt, 24) for prompt in plain}
    server.run()
    assert {prompt: outcome.token_ids for prompt, outcome in outcomes.items()} == plain
    if kind == "good":
        assert drafts.num_accepted > 9
    if kind == "hostile":
        assert server.engine.counters.num_malformed_trees > 0
        assert server.engine.counters.num_stale_trees > 0
        assert server.engine.counters.num_draft_tokens > 0


def test_output_is_plain_decoding_where_two_slots_far_apart_are_left(
    network: Any, plain: dict[tuple[int, ...], list[int]]
) -> None:
    server = TinyServer(tiny_model(network), RandomDrafts(VOCAB_SIZE), max_sequences=len(plain))
    lengths = [24 if i in (0, len(plain) - 1) else 2 for i in range(len(plain))]
    outcomes = [server.submit(prompt, length) for prompt, length in zip(plain, lengths, strict=True)]
    server.run()
    expected = [output[:length] for output, length in zip(plain.values(), lengths, strict=True)]
    assert [outcome.token_ids for outcome in outcomes] == expected


class PoisonedDrafts(ScriptedDrafts):
    """One token in the middle of every tree."""

    def _tree(self, sequence_id: int, token_ids: list[int]) -> DraftTree:
        return make_tree(len(token_ids), [1, self.vocab_size - 1, 2, 4], [-1, -1, 0, 1])


def test_a_drafted_token_whose_embedding_is_no_number_changes_no_output() -> None:
    network = tiny_network("llama", seed=1)
    plain = {prompt: plain_decoding(network, prompt, 24) for prompt in prompts_of(0, 9)}
    poison = next(i for i in reversed(range(VOCAB_SIZE)) if not any(i in (*p, *output) for p, output in plain.items()))
    model = tiny_model(network)
    server = TinyServer(model, PoisonedDrafts(poison + 1), max_sequences=3)
    with torch.no_grad():
        model.network.get_input_embeddings().weight[poison] = torch.nan
    outcomes = {prompt: server.submit(prompt, 24) for prompt in plain}
    server.run()
    assert {prompt: outcome.token_ids for prompt, outcome in outcomes.items()} == plain
    assert server.engine.counters.num_draft_tokens > 0


class DrawnDrafts(ScriptedDrafts):
    """Trees that Hypothesis draws."""

    def __init__(self, data: st.DataObject) -> None:
        super().__init__(VOCAB_SIZE)
        self.data = data

    def _tree(self, sequence_id: int, token_ids: list[int]) -> DraftTree:
        return self.data.draw(trees(VOCAB_SIZE, 10, len(token_ids)))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_output_is_plain_decoding_for_any_tree_and_any_coming_and_going(llama: Any, data: st.DataObject) -> None:
    """Sequences join and leave between steps, some are cancelled, prompts are prefilled in chunks."""
    server = TinyServer(
        tiny_model(llama),
        DrawnDrafts(data),
        max_sequences=data.draw(st.integers(1, 4), label="slots"),
        max_step_tokens=data.draw(st.sampled_from([4, 9, 64]), label="step tokens"),
    )
    waiting = prompts_of(data.draw(st.integers(0, 50)), 6)
    expected, outcomes = {}, {}
    while waiting or server.engine.is_busy:
        if waiting and data.draw(st.booleans(), label="join"):
            prompt = waiting.pop()
            num_tokens = data.draw(st.integers(1, 16), label="max_new_tokens")
            expected[prompt] = plain_decoding(llama, prompt, num_tokens, EOS)
            outcomes[prompt] = server.submit(prompt, num_tokens, request_id=str(prompt))
        if outcomes and data.draw(st.integers(0, 15), label="cancel") == 0:
            cancelled = data.draw(st.sampled_from(sorted(outcomes)))
            if outcomes[cancelled].num_terminal == 0:
                server.engine.cancel(str(cancelled))
                outcomes.pop(cancelled)
        server.engine.step()
    for prompt, outcome in outcomes.items():
        assert outcome.token_ids == expected[prompt]
        assert outcome.num_terminal == 1


@pytest.mark.parametrize("kind", ["good", "random", "hostile"])
def test_sampling_with_drafts_equals_plain_sampling_of_the_same_seed(llama: Any, kind: str) -> None:
    prompts = prompts_of(5, 6)
    sampling = {prompt: {"temperature": 0.8, "seed": 100 + i} for i, prompt in enumerate(prompts)}
    expected = {prompt: plain_decoding(llama, prompt, 24, EOS, **sampling[prompt]) for prompt in prompts}
    drafts: Any = {
        "good": GoodDrafts(VOCAB_SIZE, expected),
        "random": RandomDrafts(VOCAB_SIZE),
        "hostile": HostileDrafts(VOCAB_SIZE),
    }[kind]
    server = TinyServer(tiny_model(llama), drafts, max_sequences=3)
    outcomes = {prompt: server.submit(prompt, 24, **sampling[prompt]) for prompt in prompts}
    server.run()
    assert {prompt: outcome.token_ids for prompt, outcome in outcomes.items()} == expected
    assert len({tuple(output) for output in expected.values()}) == len(prompts)
    if kind == "good":
        assert drafts.num_accepted > 6
