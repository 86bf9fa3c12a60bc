"""What becomes of a request: limits, ends, cancelling, queueing, learning, faults."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from laser_protocol.acceptance import Relaxed, Strict
from laser_protocol.errors import EngineDead, NotReady, Overloaded
from laser_protocol.tree import DraftTree
from laser_verifier import cli
from laser_verifier.batch import StepInput
from laser_verifier.draft_policy import DraftPolicy
from laser_verifier.drafts import NoDrafts
from laser_verifier.engine import run_engine
from laser_verifier.model import wrap_model
from laser_verifier.runner import ModelRunner
from laser_verifier.sequence import DraftStatus, FinishReason
from laser_verifier.startup import run_largest_step
from laser_verifier.step_cost import StepCost
from tests.oracles import plain_decoding
from tests.verifier.tiny import VOCAB_SIZE, TinyServer, tiny_model, tiny_network
from tests.verifier.trees import GoodDrafts, RandomDrafts, make_tree

PROMPT = (5, 6, 7)


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny_network("llama", seed=2)


def good(network: Any, num_tokens: int = 40) -> GoodDrafts:
    return GoodDrafts(VOCAB_SIZE, {PROMPT: plain_decoding(network, PROMPT, num_tokens)})


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 7, 20])
def test_exactly_max_new_tokens_are_emitted_however_deep_the_drafts_are(network: Any, max_new_tokens: int) -> None:
    server = TinyServer(tiny_model(network), good(network))
    outcome = server.submit(PROMPT, max_new_tokens)
    server.run()
    assert outcome.token_ids == plain_decoding(network, PROMPT, max_new_tokens)
    assert outcome.finished.reason is FinishReason.LENGTH
    assert outcome.finished.stats.num_output_tokens == max_new_tokens


@pytest.mark.parametrize("cut", range(12))
def test_output_ends_with_the_first_eos_wherever_in_a_step_it_falls(network: Any, cut: int) -> None:
    plain = plain_decoding(network, PROMPT, 40)
    eos = plain[cut]
    expected = plain[: plain.index(eos) + 1]
    model = tiny_model(network)
    ending = type(model)(**{f: getattr(model, f) for f in model.__slots__} | {"eos_token_ids": (eos,)})
    server = TinyServer(ending, good(network))
    outcome = server.submit(PROMPT, 40)
    server.run()
    assert outcome.token_ids == expected
    assert outcome.finished.reason is FinishReason.STOP
    assert outcome.finished.stats.num_output_tokens == len(expected)


def test_counts_add_up_over_a_drafted_request(network: Any) -> None:
    drafts = good(network)
    server = TinyServer(tiny_model(network), drafts)
    outcome = server.submit(PROMPT, 30)
    server.run()
    stats = outcome.finished.stats
    assert stats.num_prompt_tokens == len(PROMPT)
    assert stats.num_output_tokens == 30
    assert stats.num_accepted_tokens > 0
    # Every step emits its accepted tokens and one bonus token, except that the last may end before the bonus.
    assert stats.num_output_tokens - stats.num_accepted_tokens in (stats.num_steps, stats.num_steps - 1)
    assert stats.num_draft_tokens >= stats.num_accepted_tokens
    assert stats.num_relaxed_tokens == 0
    assert stats.draft_status is DraftStatus.OK


def test_relaxed_counts_the_tokens_that_are_not_the_argmax(network: Any) -> None:
    plain = plain_decoding(network, PROMPT, 30)
    other = plain_decoding(network, (5, 6, 8), 30)
    drafts = GoodDrafts(VOCAB_SIZE, {PROMPT: other})
    server = TinyServer(tiny_model(network), drafts)
    outcome = server.submit(PROMPT, 30, Relaxed(top_k=16, min_prob=0.0))
    server.run()
    assert outcome.token_ids != plain
    assert 0 < outcome.finished.stats.num_relaxed_tokens <= outcome.finished.stats.num_accepted_tokens


def test_draft_off_asks_for_no_tree_and_says_so(network: Any) -> None:
    drafts = good(network)
    server = TinyServer(tiny_model(network), drafts)
    outcome = server.submit(PROMPT, 10, draft=False)
    server.run()
    assert drafts.sequences == {}
    assert outcome.finished.stats.num_draft_tokens == 0
    assert outcome.finished.stats.draft_status is DraftStatus.OFF


@pytest.mark.parametrize("draft", [True, False])
def test_a_stop_string_ends_the_text_before_it_and_the_tokens_with_it(network: Any, draft: bool) -> None:
    plain = plain_decoding(network, PROMPT, 40)
    words = [f"w{token_id}" for token_id in plain]
    # Spans two tokens, and its first half may occur before: it must not be cut there.
    stop = f"{words[9]} {words[10]}"
    at = next(i for i in range(40) if words[i : i + 2] == stop.split())
    server = TinyServer(tiny_model(network), good(network))
    outcome = server.submit(PROMPT, 40, stop=(stop, "never"), draft=draft)
    server.run()
    assert outcome.text == " ".join(words[:at]) + (" " if at else "")
    assert outcome.token_ids == plain[: at + 2]
    assert outcome.finished.reason is FinishReason.STOP


def test_a_stop_string_in_one_token_with_half_a_character_at_the_end_is_cut_too(network: Any) -> None:
    """A blank and the first byte of a character give no text before the character's last byte, which never comes."""
    tokens = sorted(ByteLevel.alphabet())[:VOCAB_SIZE]
    tokens[plain_decoding(network, PROMPT, 2)[-1]] = "\u0120\u00e2"
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.decoder = ByteLevelDecoder()
    server = TinyServer(tiny_model(network), NoDrafts())
    server.engine._tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    outcome = server.submit(PROMPT, 2, stop=(" ",))
    server.run()
    assert outcome.text == tokens[outcome.token_ids[0]]
    assert outcome.finished.reason is FinishReason.STOP


def test_pieces_of_text_join_to_the_whole(network: Any) -> None:
    server = TinyServer(tiny_model(network), good(network))
    outcome = server.submit(PROMPT, 30)
    server.run()
    assert outcome.text == " ".join(f"w{token_id}" for token_id in outcome.token_ids)


def test_a_cancelled_request_frees_its_slot_at_the_next_step_and_gets_no_further_event(network: Any) -> None:
    drafts = good(network)
    server = TinyServer(tiny_model(network), drafts, max_sequences=1)
    first = server.submit(PROMPT, 200, request_id="first")
    second = server.submit(PROMPT, 5)
    server.engine.step()
    num_events = len(first.events)
    server.engine.cancel("first")
    server.run()
    assert len(first.events) == num_events
    assert second.finished.stats.num_output_tokens == 5
    assert drafts.sequences == {}


def test_a_cancelled_waiting_request_never_runs(network: Any) -> None:
    server = TinyServer(tiny_model(network), NoDrafts(), max_sequences=1)
    server.submit(PROMPT, 5)
    waiting = server.submit(PROMPT, 5, request_id="waiting")
    server.submit(PROMPT, 5, request_id="last")
    assert [server.engine.num_ahead(request_id) for request_id in ("waiting", "last", "unknown")] == [1, 2, 0]
    server.engine.cancel("waiting")
    server.engine.step()
    assert server.engine.num_ahead("last") == 0
    server.run()
    assert waiting.events == []


def test_a_full_queue_refuses_with_the_time_to_come_back(network: Any) -> None:
    server = TinyServer(tiny_model(network), NoDrafts(), max_sequences=1, max_queue=2)
    for _ in range(3):
        server.submit(PROMPT, 5)
    with pytest.raises(Overloaded) as caught:
        server.submit(PROMPT, 5)
    assert caught.value.retry_after_s is not None and caught.value.retry_after_s > 0


def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode(network: Any) -> None:
    server = TinyServer(tiny_model(network), NoDrafts(), max_sequences=4, max_step_tokens=10)
    short = server.submit(PROMPT, 12)
    long_prompt = tuple(i % VOCAB_SIZE for i in range(55))
    long = server.submit(long_prompt, 4)
    for _ in range(4):
        server.engine.step()
    assert len(short.token_ids) == 4 and long.token_ids == []
    server.run()
    assert long.token_ids == plain_decoding(network, long_prompt, 4)
    assert long.finished.stats.num_steps == 4


def test_beside_decoding_sequences_a_prompt_takes_no_more_of_a_step_than_their_pace_allows(network: Any) -> None:
    """A step costs 9 and 1 a token, so 11 once both decode: five times as long leaves 45 tokens for a prompt."""
    cost = StepCost(np.asarray([1, 2, 512]), np.asarray([10.0, 11.0, 521.0]))
    server = TinyServer(
        tiny_model(network), NoDrafts(), max_sequences=4, draft_policy="value", cost=cost, max_slowdown=5.0
    )
    short = server.submit(PROMPT, 60)
    server.engine.step()
    server.submit(tuple(i % VOCAB_SIZE for i in range(100)), 4)
    lengths: list[int] = []
    for _ in range(3):
        before = sum(sequence.num_cached for sequence in server.engine._running)
        server.engine.step()
        lengths.append(sum(sequence.num_cached for sequence in server.engine._running) - before - 1)
    assert lengths == [45, 45, 10]
    assert len(short.token_ids) == 4


def test_short_prompts_overtake_a_long_one_and_the_long_one_ends_all_the_same(network: Any) -> None:
    server = TinyServer(tiny_model(network), NoDrafts(), max_sequences=2, max_step_tokens=8)
    long_prompt = tuple(i % VOCAB_SIZE for i in range(120))
    long = server.submit(long_prompt, 2)
    shorts = [server.submit(PROMPT, 2) for _ in range(12)]
    while not long.token_ids:
        server.engine.step()
    assert sum(len(short.token_ids) == 2 for short in shorts) >= 6
    server.run()
    assert long.token_ids == plain_decoding(network, long_prompt, 2)


def test_learn_hands_over_pool_id_and_output_once_it_is_finished(network: Any) -> None:
    server = TinyServer(tiny_model(network), NoDrafts())
    outcome = server.submit(PROMPT, 6, pool="a/b", learn=True, document_id="user 7")
    server.submit(PROMPT, 6, pool="a/b", learn=False)
    server.run()
    assert server.learned == [("a/b", "user 7", outcome.token_ids)]


def test_stopping_ends_running_and_waiting_requests_and_takes_no_more(network: Any) -> None:
    server = TinyServer(tiny_model(network), NoDrafts(), max_sequences=1)
    outcomes = [server.submit(PROMPT, 50), server.submit(PROMPT, 50)]
    server.engine.step()
    server.engine.close()
    assert all(isinstance(outcome.events[-1], NotReady) and outcome.num_terminal == 1 for outcome in outcomes)
    with pytest.raises(NotReady):
        server.submit(PROMPT, 5)


def test_a_fault_in_a_step_ends_every_request_as_engine_dead_and_is_reported(network: Any) -> None:
    class Broken(NoDrafts):
        def collect(self, positions: Any, timeout_s: float) -> Any:
            raise RuntimeError("boom")

    server = TinyServer(tiny_model(network), Broken())
    outcome = server.submit(PROMPT, 5)
    died = threading.Event()
    run_engine(server.engine, threading.Event(), died.set)
    assert died.is_set()
    assert isinstance(outcome.events[-1], EngineDead) and outcome.num_terminal == 1
    with pytest.raises(EngineDead):
        server.submit(PROMPT, 5)


def test_an_engine_that_hangs_is_noticed_and_one_that_idles_or_goes_on_is_not(
    network: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cli, "_LONGEST_STEP_S", 0.3)
    monkeypatch.setattr(cli, "_WATCH_S", 0.02)
    server = TinyServer(tiny_model(network), NoDrafts())

    async def watch() -> tuple[bool, bool, bool]:
        died = asyncio.Event()
        watching = asyncio.create_task(cli.end_if_it_hangs(server.engine, died))
        await asyncio.sleep(0.6)
        idle = died.is_set()
        server.submit(PROMPT, 200)
        for _ in range(30):
            server.engine.step()
            await asyncio.sleep(0.02)
        goes_on = died.is_set()
        await asyncio.wait_for(died.wait(), 5)  # nobody steps
        await watching
        return idle, goes_on, died.is_set()

    assert asyncio.run(watch()) == (False, False, True)
    assert "engine.hangs" in caplog.text


def test_drafts_never_reach_beyond_the_positions_the_model_has() -> None:
    """Learned positions (GPT-2) have no row for a token beyond the context, not even for a draft nobody will accept."""
    network = tiny_network("gpt2", seed=1, n_positions=16)
    prompt = tuple(range(14))
    plain = plain_decoding(network, prompt, 2)

    class Deep(RandomDrafts):
        def _tree(self, sequence_id: int, token_ids: list[int]) -> DraftTree:
            return make_tree(len(token_ids), [plain[0], 1, 2, 3, 4, 5], list(range(-1, 5)))

    server = TinyServer(tiny_model(network), Deep(VOCAB_SIZE), max_model_len=16)
    outcome = server.submit(prompt, 2)
    server.run()
    assert outcome.token_ids == plain


def test_a_model_that_ignores_our_attention_is_refused() -> None:
    network = tiny_network("bloom")
    with pytest.raises(ValueError, match="bloom"):
        TinyServer(tiny_model(network), NoDrafts())


@pytest.mark.parametrize("architecture", ["falcon_h1", "doge", "llama4_text", "deepseek_v2"])
def test_a_model_that_our_attention_alone_does_not_make_right_is_refused(architecture: str) -> None:
    with pytest.raises(ValueError, match=rf"model type '{architecture}' (is not supported|does not run)"):
        TinyServer(tiny_model(tiny_network(architecture)), NoDrafts())


def test_a_model_ends_where_its_rotations_would_change_for_the_whole_batch() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    stretched = tiny_network("phi3", original_max_position_embeddings=64, rope_parameters=rope)
    assert tiny_model(stretched).context_len == 64
    assert tiny_model(tiny_network("llama")).context_len == 512


def test_a_tree_of_more_nodes_than_asked_for_is_dropped_and_counted(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Greedy(RandomDrafts):
        def _tree(self, sequence_id: int, token_ids: list[int]) -> DraftTree:
            return make_tree(len(token_ids), [1, 2, 3, 4, 5], list(range(-1, 4)))

    monkeypatch.setattr(DraftPolicy, "node_budget", lambda policy: 4)
    server = TinyServer(tiny_model(network), Greedy(VOCAB_SIZE), max_draft_nodes=8)
    outcome = server.submit(PROMPT, 6)
    server.run()
    assert outcome.token_ids == plain_decoding(network, PROMPT, 6)
    assert server.engine.counters.num_malformed_trees > 3 and server.engine.counters.num_draft_tokens == 0


def test_the_value_policy_drafts_where_it_pays_and_changes_no_output(network: Any) -> None:
    plain = plain_decoding(network, PROMPT, 40)
    sizes = np.arange(1, 65)
    for seconds, drafted in ((1.0 + sizes / 300, True), (sizes**4.0, False)):
        cost = StepCost(sizes, seconds)
        server = TinyServer(tiny_model(network), good(network), draft_policy="value", cost=cost)
        outcomes = [server.submit(PROMPT, 40) for _ in range(6)]
        server.run()
        assert all(outcome.token_ids == plain for outcome in outcomes)
        assert (server.engine.counters.num_accepted_tokens > 0) is drafted


def test_every_waiting_request_gets_its_end_when_one_cannot_start(network: Any) -> None:
    class Broken(NoDrafts):
        def open(self, opened: Any) -> None:
            raise RuntimeError("boom")

    server = TinyServer(tiny_model(network), Broken())
    outcomes = [server.submit(PROMPT, 5) for _ in range(4)]
    run_engine(server.engine, threading.Event())
    assert [outcome.num_terminal for outcome in outcomes] == [1, 1, 1, 1]


def test_the_cache_has_the_size_its_shape_gives(network: Any) -> None:
    model = tiny_model(network)
    server = TinyServer(model, NoDrafts(), max_sequences=3, max_model_len=50, max_draft_nodes=8)
    assert server.engine._runner.cache_size_bytes == 2 * 3 * (3 * 58) * 2 * 8 * 8


def test_a_drafted_token_that_overflows_in_float16_changes_nothing_for_the_others() -> None:
    """Token 7 alone has a part that the first layer's values multiply by more than float16 holds."""
    network = tiny_network()
    with torch.no_grad():
        network.model.embed_tokens.weight[:, 0] = 0.0
        network.model.embed_tokens.weight[7, 0] = 50.0
        network.model.layers[0].self_attn.v_proj.weight[:, 0] = 6e4
    runner = ModelRunner(wrap_model(network.half(), "tiny"), 2, 64, 8)
    prompt, nodes = np.arange(8, 28, dtype=np.int32), np.asarray([-1, -1, 0], np.int32)

    def logits(drafted: int) -> Any:
        """Of the prompt's end, and of another slot's that held a drafted token in places it does not use now."""
        tree = DraftTree(20, np.asarray([drafted, 5, 6], np.int32), nodes, np.ones(3, np.float32))
        first = runner.logits([StepInput(0, 0, prompt, tree, Strict(), 0.0, 0, 0, 9)])
        none = DraftTree.empty(5)
        short = StepInput(0, 0, prompt[:5], none, Strict(), 0.0, 0, 0, 9)
        second = runner.logits([short, StepInput(1, 0, prompt, DraftTree.empty(20), Strict(), 0.0, 0, 0, 9)])
        return torch.cat((first[[0, 2]], second))

    assert torch.isfinite(logits(4)).all()
    assert torch.equal(logits(7), logits(4))


def test_the_largest_step_that_may_come_is_run_at_the_start_where_memory_can_be_missing(network: Any) -> None:
    sizes: list[int] = []

    class Noting(ModelRunner):
        def run(self, inputs: Any) -> Any:
            sizes.append(sum(entry.num_tokens for entry in inputs))
            return super().run(inputs)

    run_largest_step(Noting(tiny_model(network), 5, 64, 8), 8)
    assert sizes == [5 * 9]
