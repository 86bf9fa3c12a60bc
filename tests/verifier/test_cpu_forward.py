"""The processor's own forward: right for every model it takes, and every row the same bits in any company."""

from __future__ import annotations

import copy
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from laser_protocol.acceptance import Strict
from laser_protocol.tree import DraftTree
from laser_verifier.batch import StepInput
from laser_verifier.config import ModelConfig
from laser_verifier.cpu.linear import PackedLinear, Scratch
from laser_verifier.cpu.program import Program
from laser_verifier.cpu.simd import has_bfloat16_products, has_wide_registers
from laser_verifier.cpu.team import Team
from laser_verifier.drafts import NoDrafts
from laser_verifier.model import TargetModel, load_model, wrap_model
from laser_verifier.runner import ModelRunner
from tests.verifier.tiny import VOCAB_SIZE, TinyServer, tiny_network
from tests.verifier.trees import GoodDrafts, HostileDrafts, RandomDrafts, make_tree, trees

FAMILIES = {"llama": {}, "qwen2": {}, "qwen3": {"head_dim": 32}, "mistral": {"sliding_window": None}}
# Heads of one vector group and a rest, of a group alone, and more queries to a key than a tile takes evenly.
HEADS = [
    {"head_dim": 96},
    {"head_dim": 64, "num_attention_heads": 8},
    {"head_dim": 32, "num_attention_heads": 10, "hidden_size": 320},
]
Path = tuple[int, ...]


def network_of(family: str = "llama", dtype: torch.dtype = torch.float32, **changed: Any) -> Any:
    """A random model with sizes that the kernels take, and with biases and norm weights that are not all alike."""
    sizes = {"hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 4, **FAMILIES[family], **changed}
    network = tiny_network(family, **sizes)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand(parameter.shape, generator=generator) - 0.5)
    return network.to(dtype)


def packed_model(network: Any) -> TargetModel:
    model = wrap_model(copy.deepcopy(network), "tiny")
    assert model.packed is not None
    return model


def step(slot_idx: int, num_cached: int, token_ids: list[int], tree: DraftTree | None) -> StepInput:
    return StepInput(slot_idx, num_cached, np.asarray(token_ids, np.int32), tree, Strict(), 0.0, 0, 0, 99)


def empty(position: int = 0) -> DraftTree:
    return DraftTree.empty(position)


@pytest.mark.parametrize(
    ("family", "changed"), [*((family, {}) for family in FAMILIES), *(("qwen3", sizes) for sizes in HEADS)], ids=str
)
def test_logits_are_those_of_transformers(family: str, changed: dict[str, int]) -> None:
    network = network_of(family, **changed)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, 90).tolist()
    with torch.inference_mode():
        expected = network(torch.tensor([tokens])).logits[0, -1]
    runner = ModelRunner(packed_model(network), 2, 128, 8)
    torch.testing.assert_close(runner.logits([step(1, 0, tokens, empty())])[0], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("changed", [{}, *HEADS], ids=str)
def test_logits_in_bfloat16_are_as_near_to_those_in_float32_as_transformers_are(changed: dict[str, int]) -> None:
    """A prompt in two chunks and a tree behind it; each row against the whole path in float32."""
    exact, rounded = network_of("qwen3", **changed), network_of("qwen3", torch.bfloat16, **changed)
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, VOCAB_SIZE, 83).tolist()
    tree = make_tree(83, rng.integers(0, VOCAB_SIZE, 9).tolist(), [-1, 0, 0, 1, 3, 4, 2, -1, 7])
    runner = ModelRunner(packed_model(rounded), 2, 128, 16)
    runner.logits([step(1, 0, prompt[:37], None)])
    ours = runner.logits([step(1, 37, prompt[37:], tree)])
    paths = [[*prompt, *(int(tree.token_ids[i]) for i in tree.path(node_idx))] for node_idx in range(-1, 9)]
    with torch.inference_mode():
        expected = torch.stack([exact(torch.tensor([path])).logits[0, -1] for path in paths])
        theirs = torch.stack([rounded(torch.tensor([path])).logits[0, -1] for path in paths])
    assert (ours - expected).norm() <= 1.2 * (theirs - expected).norm()
    assert (ours - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("family", "changed"),
    [
        ("mistral", {"sliding_window": 7}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"hidden_size": 96}),
        ("llama", {"hidden_size": 129, "head_dim": 32, "num_attention_heads": 3}),
        ("llama", {"intermediate_size": 40}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 8}),
    ],
)
def test_a_model_with_anything_else_in_it_runs_through_transformers(family: str, changed: dict[str, Any]) -> None:
    assert wrap_model(network_of(family, **changed), "tiny").packed is None


def test_a_float_type_without_kernels_runs_through_transformers() -> None:
    assert wrap_model(network_of(dtype=torch.float64), "tiny").packed is None
    assert wrap_model(network_of(dtype=torch.float16), "tiny").packed is None


@pytest.mark.parametrize(("changed", "dtype"), [({}, torch.bfloat16), ({"hidden_act": "gelu"}, torch.float32)])
def test_without_bfloat16_instructions_only_what_our_kernels_run_is_bfloat16(
    changed: dict[str, Any], dtype: torch.dtype, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: False)
    network_of(**changed).save_pretrained(tmp_path)
    model = load_model(ModelConfig(str(tmp_path), device="cpu"))
    assert model.dtype == dtype
    assert (model.packed is not None) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_thread_computes_the_same_bits_as_all_and_a_long_step_leaves_short_ones_as_they_are(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(dtype=dtype)
    tokens = np.random.default_rng(1).integers(0, VOCAB_SIZE, 150).tolist()

    def logits() -> list[Tensor]:
        runner = ModelRunner(packed_model(network), 2, 200, 8)
        made = [runner.logits([step(0, 0, tokens[:9], empty())])]
        made.append(runner.logits([step(1, 0, tokens, empty())]))
        made.append(runner.logits([step(0, 0, tokens[:9], empty())]))
        return made

    first, long, again = logits()
    assert torch.equal(first, again) and not torch.equal(first, long)
    for name in ("torch.get_num_threads", "laser_verifier.cpu.team._OpenMP.find"):
        with monkeypatch.context() as patch:
            patch.setattr(name, (lambda: 1) if name.startswith("torch") else (lambda: None))
            assert packed_model(network).packed.team.num_threads == 1
            assert all(torch.equal(a, b) for a, b in zip(logits(), (first, long, again), strict=True))


def test_packing_leaves_no_second_copy_of_a_weight() -> None:
    model = packed_model(network_of())
    left = sum(parameter.numel() for parameter in model.network.parameters() if parameter.dim() > 1)
    assert left == model.network.get_input_embeddings().weight.numel()


def test_the_cache_has_the_size_its_shape_gives() -> None:
    runner = ModelRunner(packed_model(network_of()), 3, 50, 8)
    assert runner.cache_size_bytes == 2 * 3 * 3 * 64 * 2 * 32 * 4


def apply(linear: PackedLinear, x: Tensor, team: Team) -> Tensor:
    """One linear layer by itself."""
    out = x.new_empty((len(x), linear.padded_outputs))
    Program(team, linear.calls(x, out, Scratch.room(team, [linear], len(x)))).run()
    return out[:, : linear.num_outputs]


class PlainLogits:
    """The logits after any path, from a slot of its own, one token at a time, nothing beside it."""

    def __init__(self, model: TargetModel) -> None:
        self.runner = ModelRunner(model, 1, 160, 16)
        self.known: dict[Path, Tensor] = {}
        self.cached: Path = ()

    def after(self, path: Path) -> Tensor:
        if path not in self.known:
            shared = 0
            while shared < min(len(path) - 1, len(self.cached)) and path[shared] == self.cached[shared]:
                shared += 1
            for i in range(shared, len(path)):
                self.known[path[: i + 1]] = self.runner.logits([step(0, i, [path[i]], empty())])[0].clone()
            self.cached = path
        return self.known[path]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "bfloat16 wide heads"])
def plain(request: pytest.FixtureRequest) -> PlainLogits:
    dtype, _, has_wide_heads = request.param.partition(" ")
    sizes = HEADS[0] if has_wide_heads else {}
    return PlainLogits(packed_model(network_of("qwen3", getattr(torch, dtype), **sizes)))


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_row_has_the_same_bits_in_any_tree_batch_and_chunk(plain: PlainLogits, data: st.DataObject) -> None:
    num_slots = data.draw(st.integers(1, 5), label="sequences")
    runner = ModelRunner(plain.runner.model, num_slots, 128, 16)
    rng = np.random.default_rng(data.draw(st.integers(0, 3), label="prompts"))
    prompts = [rng.integers(0, VOCAB_SIZE, int(rng.integers(1, 60))).tolist() for _ in range(num_slots)]
    cached = [0] * num_slots
    while any(cached[s] < len(prompts[s]) for s in range(num_slots)):
        inputs, wanted = [], []
        for s in data.draw(st.permutations(range(num_slots)), label="order"):
            left = len(prompts[s]) - cached[s]
            if not left or (num_slots > 1 and data.draw(st.booleans(), label="waits")):
                continue
            n = data.draw(st.integers(1, left), label="chunk")
            tree = data.draw(trees(VOCAB_SIZE, 16, len(prompts[s])), label="tree") if n == left else None
            inputs.append(step(s, cached[s], prompts[s][cached[s] : cached[s] + n], tree))
            cached[s] += n
            if tree is not None:
                paths = [[int(tree.token_ids[i]) for i in tree.path(node_idx)] for node_idx in range(-1, len(tree))]
                wanted += [(*prompts[s], *path) for path in paths]
        if inputs:
            for row, path in zip(runner.logits(inputs), wanted, strict=True):
                assert torch.equal(row, plain.after(path)), f"{(row != plain.after(path)).sum()} of {len(row)} differ"


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", torch.float32), *((family, torch.bfloat16) for family in FAMILIES)], ids=str
)
def test_strict_output_is_plain_output_with_any_trees_and_batch(family: str, dtype: torch.dtype) -> None:
    model = packed_model(network_of(family, dtype))
    rng = np.random.default_rng(3)
    prompts = [tuple(rng.integers(0, VOCAB_SIZE, int(rng.integers(1, 40))).tolist()) for _ in range(8)]

    def outputs(drafts: Any, max_sequences: int) -> dict[Path, list[int]]:
        server = TinyServer(model, drafts, max_sequences=max_sequences)
        outcomes = {prompt: server.submit(prompt, 12) for prompt in prompts}
        server.run()
        return {prompt: outcome.token_ids for prompt, outcome in outcomes.items()}

    plain = outputs(NoDrafts(), 1)
    assert len({tuple(output) for output in plain.values()}) > 5
    for max_sequences in (1, 3, 8):
        good = GoodDrafts(VOCAB_SIZE, plain)
        for drafts in (NoDrafts(), good, RandomDrafts(VOCAB_SIZE), HostileDrafts(VOCAB_SIZE)):
            assert outputs(drafts, max_sequences) == plain
        assert good.num_accepted > 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(32, 16), (40, 64), (96, 144), (576, 1536)])
def test_a_linear_layer_is_exact_but_for_rounding_and_a_row_the_same_in_any_batch(
    num_outputs: int, num_inputs: int, has_bias: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(num_outputs)
    layer = nn.Linear(num_inputs, num_outputs, bias=has_bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    layer = layer.to(dtype)
    team = Team(dtype)
    linear = PackedLinear(team, layer)
    x = torch.randn((110, num_inputs), generator=generator).to(dtype)
    whole = apply(linear, x, team)
    exact = layer.double()(x.double()).detach()
    # The result is rounded to the type's bits, and each of num_inputs float32 additions to 24 of a sum no larger than
    # this.
    largest = (x.double().abs() @ layer.weight.abs().T).detach() + 4.0
    rounding = exact.abs() * torch.finfo(dtype).eps / 2
    assert bool(((whole.double() - exact).abs() <= rounding + num_inputs * 2**-24 * largest).all())
    for count in (*range(1, 27), 52, 70, 97, 110):
        for first in range(0, 110 - count + 1, 17):
            assert torch.equal(apply(linear, x[first : first + count], team), whole[first : first + count])


def test_layers_over_one_input_are_joined_and_left_as_they_are() -> None:
    layers = [nn.Linear(64, size, bias=size != 24) for size in (32, 24, 40)]
    before = [layer.weight.clone() for layer in layers]
    x = torch.randn(5, 64)
    team = Team(torch.float32)
    joined = apply(PackedLinear(team, *layers), x, team)
    torch.testing.assert_close(joined, torch.cat([layer(x) for layer in layers], dim=1).detach(), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_beginning_copied_from_another_slot_changes_nothing(dtype: torch.dtype) -> None:
    """41 tokens: two of bfloat16's values lie together, and the last of them alone."""
    model = packed_model(network_of(dtype=dtype))
    beginning = tuple(np.random.default_rng(5).integers(0, VOCAB_SIZE, 41).tolist())
    prompts = [(*beginning, *range(i, i + 5)) for i in range(6)]
    outputs = []
    for prefix_reuse in (False, True):
        server = TinyServer(model, RandomDrafts(VOCAB_SIZE), max_sequences=3, prefix_reuse=prefix_reuse)
        outcomes = [server.submit(prompt, 8) for prompt in prompts]
        server.run()
        assert (server.engine.counters.num_reused_tokens > 0) == prefix_reuse
        outputs.append([outcome.token_ids for outcome in outcomes])
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("is_wide", [False, True])
def test_all_this_holds_on_processors_without_products_of_bfloat16_with_few_registers_or_many(
    is_wide: bool, tmp_path: pathlib.Path
) -> None:
    """LLVM makes the vectors of one kind of processor out of another's, only slower."""
    if not has_bfloat16_products() and has_wide_registers() == is_wide:
        pytest.skip("this processor is such a one")
    program = (
        "import sys, pytest, laser_verifier.cpu.simd as simd; simd.has_bfloat16_products = lambda: False; "
        f"simd.has_wide_registers = lambda: {is_wide}; sys.exit(pytest.main([{__file__!r}, '-qx', '-p', "
        "'no:cacheprovider', '-k', '(bits or logits_in_bfloat16 or linear_layer) and not all_this_holds']))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
