"""The verifier's smaller parts: draft budget, shard order, text streams, configuration, fingerprints."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence, Strip
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from laser_protocol.acceptance import Strict
from laser_protocol.errors import InvalidRequest
from laser_verifier.calibration import Calibration, isotonic
from laser_verifier.cli import main
from laser_verifier.config import EngineConfig, ModelConfig, RetrieverConfig
from laser_verifier.cpu.team import Team
from laser_verifier.draft_budget import choose_nodes
from laser_verifier.model import check_model_path, load_model, load_tokenizer, tokenizer_fingerprint, wrap_model
from laser_verifier.prompt import encode_text
from laser_verifier.schedule import share_room
from laser_verifier.sequence import Request
from laser_verifier.sequence import Sequence as RunningSequence
from laser_verifier.shards import choose_shard, rendezvous_order
from laser_verifier.startup import load_runner
from laser_verifier.step_cost import LearnedCost, StepCost
from laser_verifier.text import TextStream
from tests.verifier.tiny import VOCAB_SIZE, tiny_network, tiny_tokenizer

FREE = StepCost(np.asarray([1, 512]), np.asarray([1.0, 1.0]))
LINEAR = StepCost(np.asarray([1, 512]), np.asarray([1.0, 512.0]))


def falling(*probs: float) -> np.ndarray:
    return np.asarray(probs, np.float64)


def test_where_tokens_cost_nothing_every_node_is_verified() -> None:
    assert choose_nodes([falling(0.9, 0.1), falling(0.01)], 2, 2, FREE).num_nodes == [2, 1]


def test_where_a_token_costs_a_whole_step_none_is() -> None:
    choice = choose_nodes([falling(0.9, 0.5), falling(0.8)], 2, 2, LINEAR)
    assert choice.num_nodes == [0, 0] and choice.gain == 1.0 and choice.price >= 0.9


def test_the_most_probable_nodes_of_the_batch_are_taken_first() -> None:
    cost = StepCost(np.asarray([1, 4, 5, 512]), np.asarray([1.0, 1.0, 100.0, 1e6]))
    choice = choose_nodes([falling(0.9, 0.8, 0.1), falling(0.5, 0.4)], 2, 2, cost)
    assert choice.num_nodes == [2, 0] and choice.expected_tokens == pytest.approx(1.7)


@pytest.mark.parametrize(("num_prompt_tokens", "num_nodes"), [(0, 2), (60, 1)])
def test_a_step_that_prefills_values_its_time_as_one_that_does_not(num_prompt_tokens: int, num_nodes: int) -> None:
    """Up to 8 tokens all cost the same; beyond them, where a prompt moves the step, a node must be worth its time."""
    cost = StepCost(np.asarray([1, 8, 80]), np.asarray([1.0, 1.0, 28.0]))
    choice = choose_nodes([falling(0.95, 0.1)], 1 + num_prompt_tokens, 1, cost)
    assert choice.num_nodes == [num_nodes]


def test_what_drafting_takes_can_outweigh_nodes_that_are_worth_their_place() -> None:
    """Two tokens in a second plainly; two nodes give 1.8 more for half a second."""
    cost = StepCost(np.asarray([1, 2, 6]), np.asarray([1.0, 1.0, 2.0]))
    free, dear = (choose_nodes([falling(0.9, 0.9)], 2, 2, cost, drafting_s) for drafting_s in (0.0, 1.0))
    assert free.num_nodes == dear.num_nodes == [2]
    assert free.gain == pytest.approx(1.0 + (1.8 - 3.8 / 1.5 * 0.5) / 2)
    assert dear.gain == pytest.approx(1.0 + (1.8 - 2.0 * 1.5) / 2) and dear.gain < 1.0


@given(
    st.lists(st.lists(st.floats(0, 1, width=32), max_size=8).map(lambda p: sorted(p, reverse=True)), max_size=5),
    st.integers(1, 40),
)
def test_the_choice_is_the_best_prefix_cut_by_expected_tokens_per_second(
    probs: list[list[float]], num_sequences: int
) -> None:
    cost = StepCost(np.asarray([1, 8, 64]), np.asarray([1.0, 1.2, 4.0]))
    trees = [falling(*p) for p in probs]
    chosen = choose_nodes(trees, num_sequences, num_sequences, cost).num_nodes

    def rate(expected: float, num_nodes: int) -> float:
        return (num_sequences + expected) / cost.of(num_sequences + num_nodes)

    assert all(0 <= n <= len(t) for t, n in zip(trees, chosen, strict=True))
    chosen_rate = rate(sum(float(t[:n].sum()) for t, n in zip(trees, chosen, strict=True)), sum(chosen))
    flat = sorted((float(p) for t in trees for p in t), reverse=True)
    for k in range(len(flat) + 1):
        assert chosen_rate >= rate(sum(flat[:k]), k) - 1e-6


def test_the_cost_follows_steps_that_take_longer_and_forgets_an_outlier() -> None:
    cost = LearnedCost(StepCost(np.asarray([1, 8, 64]), np.asarray([1.0, 2.0, 8.0])))
    cost.observe(8, 2000.0)
    assert cost.now.of(8) < 2.2
    for _ in range(100):
        cost.observe(8, 4.0)
    assert cost.now.of(8) == pytest.approx(4.0, rel=0.05)
    # Sizes not run follow in part, and more tokens never cost less.
    assert cost.now.of(64) > 8.0 and cost.now.of(1) <= cost.now.of(8)


def test_a_machine_that_changes_its_speed_does_so_for_sizes_that_are_not_run_either() -> None:
    cost = LearnedCost(StepCost(np.asarray([1, 8, 64]), np.asarray([1.0, 2.0, 8.0])))
    for _ in range(1500):
        cost.observe(8, 1.0)
    assert cost.now.of(8) == pytest.approx(1.0, rel=0.02)
    assert cost.now.of(64) == pytest.approx(4.0, rel=0.1)


def test_sizes_that_keep_differing_from_what_was_measured_are_told_apart() -> None:
    cost = LearnedCost(StepCost(np.asarray([1, 8, 64]), np.asarray([1.0, 2.0, 8.0])))
    for _ in range(500):
        cost.observe(8, 2.0)
        cost.observe(64, 16.0)
    assert cost.now.of(8) == pytest.approx(2.0, rel=0.1)
    assert cost.now.of(64) == pytest.approx(16.0, rel=0.1)


def test_said_probabilities_are_believed_until_nodes_show_otherwise() -> None:
    calibration = Calibration()
    said = np.asarray([0.9, 0.5, 0.01], np.float32)
    assert calibration(said) == pytest.approx(said, abs=0.01)
    for _ in range(300):
        calibration.observe(np.full(20, 0.5, np.float32), np.arange(20) < 2)
    assert calibration(np.asarray([0.5], np.float32))[0] == pytest.approx(0.1, abs=0.05)
    many = calibration(np.linspace(0, 1, 101, dtype=np.float32))
    assert np.all(np.diff(many) >= 0.0) and many.min() >= 0.0 and many.max() <= 1.0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 10)), min_size=1, max_size=8))
def test_isotonic_equals_pooling_adjacent_violators(points: list[tuple[float, float]]) -> None:
    blocks: list[list[float]] = []
    for value, weight in points:
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (v, w, n), (x, y, m) = blocks[-2:]
            blocks[-2:] = [[(v * w + x * y) / (w + y), w + y, n + m]]
    expected = [value for value, _, n in blocks for _ in range(int(n))]
    values, weights = (np.asarray(column) for column in zip(*points, strict=True))
    assert isotonic(values, weights) == pytest.approx(expected, abs=1e-9)


def test_a_long_prompt_leaves_half_of_the_room_to_shorter_ones_behind_it() -> None:
    def waiting(num_tokens: int) -> RunningSequence:
        request = Request(f"r{num_tokens}", (1,) * num_tokens, "p", Strict(), 4)
        return RunningSequence(request, lambda event: None, TextStream(None, ()), num_tokens, 0, 0.0, 0.0)

    def shares(lengths: list[int], room: int) -> list[tuple[int, int]]:
        return [(s.num_pending, n) for s, n in share_room([waiting(n) for n in lengths], room)]

    assert shares([1000, 30, 20, 500], 100) == [(1000, 50), (30, 30), (20, 20)]
    assert shares([1000], 100) == [(1000, 100)]
    assert shares([1000, 10], 100) == [(1000, 90), (10, 10)]
    assert shares([1000, 10], 1) == [(1000, 1)]
    assert shares([1000, 10], 0) == []


def test_a_new_shard_takes_only_its_own_share_of_the_pools() -> None:
    pools = [f"p/{i}" for i in range(400)]
    before = {pool: rendezvous_order(pool, ["a", "b", "c"])[0] for pool in pools}
    after = {pool: rendezvous_order(pool, ["a", "b", "c", "d"])[0] for pool in pools}
    moved = [pool for pool in pools if before[pool] != after[pool]]
    assert all(after[pool] == "d" for pool in moved)
    assert 60 < len(moved) < 140


def test_a_hot_pool_spreads_once_its_shard_has_more_than_its_share() -> None:
    loads = {"a": 0, "b": 0, "c": 0}
    for _ in range(90):
        name = choose_shard("hot", loads)
        assert name is not None
        loads[name] += 1
    assert max(loads.values()) <= 1.25 * 30 + 2
    assert choose_shard("hot", {}) is None


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: multi-byte characters arrive in pieces."""
    vocabulary = {token: i for i, token in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BYTES = byte_tokenizer()


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Llama 2's kind: bytes as tokens <0x00> ... <0xFF>, which in a random order form no valid UTF-8."""
    vocabulary = {"<unk>": 0, "\u2581": 1, **{f"<0x{i:02X}>": i + 2 for i in range(256)}, "\u2581a": 258, "b": 259}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = Sequence([Replace("\u2581", " "), ByteFallback(), Fuse(), Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_bytes_that_form_no_character_never_stop_the_stream() -> None:
    tokenizer, rng = byte_fallback_tokenizer(), np.random.default_rng(0)
    for _ in range(200):
        stream = TextStream(tokenizer, ())
        pieces: list[str] = []
        for token_id in rng.integers(2, 258, 40).tolist():
            assert not stream.push(token_id)
            pieces.append(stream.take())
        assert "".join([*pieces, stream.finish()])


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["<0xC3>", "<0xA9>", "<0xE2>", "\u2581a", "b"], "\u00e9\ufffd ab"),
        (["<0xC3>", "<0xA9>", "<0xE2>", "<0x82>", "b", "\u2581a"], "\u00e9\ufffd\ufffdb a"),
        (["<0xC3>", "<0xA9>", "<0xE2>"], "\u00e9\ufffd"),
        (["<0xE2>", "\u2581a"], "\ufffd a"),
    ],
)
def test_bytes_that_form_no_character_are_replaced_and_eat_nothing_beside_them(tokens: list[str], text: str) -> None:
    tokenizer = byte_fallback_tokenizer()
    stream = TextStream(tokenizer, ())
    pieces = []
    for token_id in tokenizer.convert_tokens_to_ids(tokens):
        assert not stream.push(token_id)
        pieces.append(stream.take())
    assert "".join([*pieces, stream.finish()]) == text


def test_a_long_stop_string_costs_no_more_than_the_text_is_long() -> None:
    stream = TextStream(BYTES, ("a" * 250 + "b",))
    for token_id in BYTES.encode("a" * 40):
        assert not stream.push(token_id)
        assert stream.take() == ""
    assert stream.finish() == "a" * 40


def test_a_long_stop_string_is_looked_at_only_where_it_may_begin() -> None:
    looked_at: list[Any] = []

    class Watched(str):
        def __getitem__(self, key: Any) -> str:
            looked_at.append(key)
            return super().__getitem__(key)

        def startswith(self, *arguments: Any) -> bool:
            looked_at.append(arguments)
            return super().startswith(*arguments)

    stream = TextStream(BYTES, (Watched("a" * 256),))
    for token_id in BYTES.encode("c" * 40):
        stream.push(token_id)
        stream.take()
    assert len(looked_at) <= 2 * 40


@settings(deadline=None)
@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_streamed_text_is_the_text_cut_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    stream = TextStream(BYTES, tuple(stop))
    pieces: list[str] = []
    stopped = False
    for token_id in BYTES.encode(text):
        stopped = stream.push(token_id)
        pieces.append(stream.take())
        if stopped:
            break
    pieces.append(stream.finish())
    cuts = [at for at in (text.find(s) for s in stop) if at >= 0]
    # The stop string that is complete first ends the text, at its own beginning.
    if stopped:
        assert text.startswith("".join(pieces))
        assert any(text.find(s) == len("".join(pieces)) for s in stop)
    else:
        assert not cuts
        assert "".join(pieces) == text


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: EngineConfig(max_sequences=0), "max_sequences"),
        (lambda: EngineConfig(max_draft_nodes=257), "max_draft_nodes"),
        (lambda: EngineConfig(draft_policy="some"), "draft_policy"),
        (lambda: EngineConfig(max_step_tokens=4, max_sequences=8), "max_step_tokens"),
        (lambda: ModelConfig(""), "model"),
        (lambda: ModelConfig("m", device="tpu"), "device"),
        (lambda: ModelConfig("m", dtype="int8"), "dtype"),
        (lambda: ModelConfig("m", num_threads=0), "threads"),
        (lambda: ModelConfig("m", served_name=""), "served_model_name"),
        (lambda: RetrieverConfig(("host",)), "retriever"),
        (lambda: RetrieverConfig(("host:0",)), "retriever"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(make: Any, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        make()


def test_white_space_is_a_prompt_where_text_is_taken_raw() -> None:
    assert encode_text(BYTES, " \n", raw=True, system=None) == BYTES.encode(" \n")
    for text, raw in ((" \n", False), ("", True)):
        with pytest.raises(InvalidRequest, match="prompt is empty"):
            encode_text(BYTES, text, raw, system=None)


def test_the_vocabulary_has_only_tokens_that_have_an_embedding() -> None:
    network = tiny_network()
    network.set_input_embeddings(torch.nn.Embedding(VOCAB_SIZE - 3, 32))
    assert wrap_model(network, "tiny").vocab_size == VOCAB_SIZE - 3


def test_a_model_path_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model '/no/such/model': no such directory"):
        check_model_path(ModelConfig("/no/such/model"))


def test_a_chat_template_of_ones_own_takes_the_place_of_the_models(tmp_path: Path) -> None:
    tiny_network().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    template = tmp_path / "own.jinja"
    template.write_text("w1 {% for turn in messages %}{{ turn.content }} {% endfor %}w2", encoding="utf8")
    tokenizer = load_tokenizer(ModelConfig(str(tmp_path), chat_template=template))
    assert encode_text(tokenizer, "w7", raw=False, system=None) == tokenizer.encode(
        "w1 w7 w2", add_special_tokens=False
    )
    # transformers' own tag, and a refusal, which is a prompt's.
    template.write_text("{% generation %}w1{% endgeneration %}{{ raise_exception('no') }}", encoding="utf8")
    load_tokenizer(ModelConfig(str(tmp_path), chat_template=template))
    template.write_text("{% for %}", encoding="utf8")
    with pytest.raises(ValueError, match=r"chat_template .*own.jinja line 1: \w"):
        load_tokenizer(ModelConfig(str(tmp_path), chat_template=template))
    for content, wrong in ((b" \n", "own.jinja is empty"), (b"\xff", "cannot be read")):
        template.write_bytes(content)
        with pytest.raises(ValueError, match=f"chat_template .*{wrong}"):
            check_model_path(ModelConfig(str(tmp_path), chat_template=template))
    with pytest.raises(ValueError, match=r"chat_template .*cannot be read: .*No such file"):
        check_model_path(ModelConfig(str(tmp_path), chat_template=tmp_path / "none"))


def test_a_model_is_called_as_one_says(tmp_path: Path) -> None:
    tiny_network().save_pretrained(tmp_path / "tiny-7b")
    path = str(tmp_path / "tiny-7b")
    assert load_model(ModelConfig(path, device="cpu", dtype="float32")).name == "tiny-7b"
    assert load_model(ModelConfig(path, device="cpu", dtype="float32", served_name="shop")).name == "shop"


def test_the_model_takes_as_many_threads_as_one_says(tmp_path: Path) -> None:
    tiny_network().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    seen: list[int] = []

    def load() -> None:
        config = ModelConfig(str(tmp_path), device="cpu", dtype="float32", num_threads=1)
        load_runner(config, EngineConfig(max_sequences=2, max_model_len=64))
        seen.extend((torch.get_num_threads(), Team(torch.float32).num_threads))

    with ThreadPoolExecutor(1) as device:  # as the server does it: the number is a thread's own
        device.submit(load).result()
    assert seen == [1, 1]


def test_options_that_would_do_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", "/no/such/model", "--top-k", "3"]) == 2
    assert "top_k is 3, must be left out without --acceptance relaxed" in capsys.readouterr().err
    assert main(["serve", "--model", "/no/such/model", "--acceptance", "relaxed", "--top-k", "99"]) == 2
    assert "top_k is 99" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--version"])
    assert re.fullmatch(r"laser-verifier \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_damaged_weights_are_refused_with_the_models_name(tmp_path: Path) -> None:
    tiny_network().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    for content in (weights.read_bytes()[:-100], b"version https://git-lfs.github.com/spec/v1"):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=rf"model '{re.escape(str(tmp_path))}' cannot be loaded: \w"):
            load_model(ModelConfig(str(tmp_path), device="cpu", dtype="float32"))


def test_a_cache_that_no_memory_holds_is_refused_with_its_settings(tmp_path: Path) -> None:
    large = {"num_hidden_layers": 64, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 16}
    tiny_network(max_position_embeddings=2**20, **large).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    settings = EngineConfig(max_sequences=4096, max_model_len=2**20, max_step_tokens=4096)
    with pytest.raises(ValueError, match="max_sequences is 4096, max_model_len 1048576 and max_draft_nodes "):
        load_runner(ModelConfig(str(tmp_path), device="cpu", dtype="float32"), settings)


def test_fingerprints_tell_vocabularies_apart_and_ignore_their_order() -> None:
    assert tokenizer_fingerprint({"a": 0, "b": 1}) == tokenizer_fingerprint({"b": 1, "a": 0})
    assert tokenizer_fingerprint({"a": 0, "b": 1}) != tokenizer_fingerprint({"a": 1, "b": 0})
    assert tokenizer_fingerprint({"ab": 0}) != tokenizer_fingerprint({"a": 0})
