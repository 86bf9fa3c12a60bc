"""What a forward costs against its floor, on the CPU: ours, our path through transformers, transformers itself.

    python -m benchmarks.forward --model DIR [--dtype bfloat16] [--rounds 9]

A case S x (1 + n) is S sequences with 300 cached tokens each, one verified token and a tree of n nodes. Its floor is
what a library's layers cost: oneDNN's linear layers on that many rows, prepacked (lm_head for all of them, as all are
verified); the keys and values of the context at the read bandwidth measured here; and for everything else five of
torch's own element-wise operators a layer over rows x hidden size: what two norms, rotation, gate and attention would
cost if each were one trivial operator. Our own linear layers stand beside it (linear_ms), and what nothing can beat
(bound_ms): the weights once at the read bandwidth or their products at the best rate seen, whichever is longer, and
the keys and values. Everything is measured in turns in one run; figures are medians of milliseconds. On a processor
where oneDNN has no bfloat16 all but our own forward is float32, which is the fastest they have there.

Prefill: one prompt of 261 tokens, lm_head for its last row. Its rate counts the floating-point operations of linear
layers and causal attention; the machine's rate is that of the same linear layers alone at the same number of rows.
Prints one JSON line per case and a table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks._peer_dtype import peer_dtype
from laser_protocol.acceptance import Strict
from laser_protocol.tree import DraftTree
from laser_verifier.batch import StepInput, pack
from laser_verifier.config import ModelConfig
from laser_verifier.cpu.linear import PackedLinear, Scratch
from laser_verifier.cpu.llama import PackedLlama
from laser_verifier.cpu.program import Program
from laser_verifier.forward import make_forward
from laser_verifier.model import TargetModel, load_model
from laser_verifier.runner import ModelRunner

CONTEXT_LEN, PROMPT_LEN = 300, 261
CASES = ((1, 1), (1, 16), (1, 32), (8, 5), (32, 1), (32, 4))
SMALL_OPERATORS_PER_LAYER = 5


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each, measured in turns; the first round is thrown away."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def tree_of(num_nodes: int, position: int) -> DraftTree:
    """A binary tree."""
    parents = np.array([(i - 1) // 2 if i else -1 for i in range(num_nodes)], np.int32)
    return DraftTree(position, np.arange(num_nodes, dtype=np.int32), parents, np.ones(num_nodes, np.float32))


def step_inputs(num_sequences: int, num_rows: int) -> list[StepInput]:
    """One step of a case."""
    return [
        StepInput(
            slot_idx=slot_idx,
            num_cached=CONTEXT_LEN,
            token_ids=np.array([5], np.int32),
            tree=tree_of(num_rows - 1, CONTEXT_LEN + 1),
            acceptance=Strict(),
            temperature=0.0,
            seed=0,
            num_output=0,
            max_depth=num_rows,
        )
        for slot_idx in range(num_sequences)
    ]


def our_linear_layers(model: PackedLlama, num_rows: int, num_logit_rows: int) -> Callable[[], object]:
    """All linear layers of a forward and nothing else, lm_head for some rows only, as our forward runs them."""

    def program(linears: list[PackedLinear], num_rows: int) -> Program:
        def rows(size: int) -> Tensor:
            return torch.randn(num_rows, size).to(model.embedding.dtype)

        inputs = {x.num_inputs: rows(x.num_inputs) for x in linears}
        outputs = {x.padded_outputs: rows(x.padded_outputs) for x in linears}
        scratch = Scratch.room(model.team, linears, num_rows)
        calls = [x.calls(inputs[x.num_inputs], outputs[x.padded_outputs], scratch) for x in linears]
        return Program(model.team, [call for part in calls for call in part])

    layers = program([x for each in model.layers for x in (each.qkv, each.output, each.gate_up, each.down)], num_rows)
    head = program([model.head], num_logit_rows)

    def run() -> None:
        layers.run()
        head.run()

    return run


@dataclasses.dataclass(frozen=True)
class OneDnnLinears:
    """The linear layers of a model as oneDNN runs them, prepacked and joined where the input is the same."""

    layers: list[list[Callable[[Tensor], Tensor]]]
    head: Callable[[Tensor], Tensor]

    @staticmethod
    def of(network: Any) -> OneDnnLinears:
        """Per decoder layer qkv, output, gate and up, down; and the head."""

        def packed(*layers: nn.Linear) -> Callable[[Tensor], Tensor]:
            weight = torch.ops.mkldnn._reorder_linear_weight(torch.cat([x.weight.detach() for x in layers]))
            bias = None if layers[0].bias is None else torch.cat([x.bias.detach() for x in layers])
            return lambda x: torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")

        parts = [(x.self_attn, x.mlp) for x in network.model.layers]
        return OneDnnLinears(
            [
                [packed(a.q_proj, a.k_proj, a.v_proj), packed(a.o_proj), packed(m.gate_proj, m.up_proj),
                 packed(m.down_proj)]
                for a, m in parts
            ],
            packed(network.lm_head),
        )  # fmt: skip

    def run(self, network: Any, num_rows: int, num_logit_rows: int) -> Callable[[], object]:
        """All of them and nothing else."""
        config = network.config
        hidden, wanted = (torch.randn(n, config.hidden_size).to(network.dtype) for n in (num_rows, num_logit_rows))
        attended = torch.randn(num_rows, network.model.layers[0].self_attn.o_proj.in_features).to(network.dtype)
        gated = torch.randn(num_rows, config.intermediate_size).to(network.dtype)

        def run() -> None:
            for qkv, output, gate_up, down in self.layers:
                qkv(hidden), output(attended), gate_up(hidden), down(gated)
            self.head(wanted)

        return run


def small_operators(model: PackedLlama, num_rows: int) -> Callable[[], object]:
    """The allowance for all that is neither a linear layer nor the read of the context."""
    x = torch.randn(num_rows, model.embedding.shape[1]).to(model.embedding.dtype)

    def run() -> None:
        for _ in range(SMALL_OPERATORS_PER_LAYER * model.kv_shape.num_layers):
            torch.neg(x)

    return run


def read_bytes_per_ms(rounds: int) -> float:
    """Bandwidth of reading 512 MiB, far more than any cache holds."""
    data = torch.ones(2**29 // 4, dtype=torch.float32)
    return data.nbytes / medians({"read": data.sum}, rounds)["read"]


def transformers_eager(network: Any, num_sequences: int, num_rows: int) -> Callable[[], object]:
    """transformers with its own attention and cache; a chain stands for the tree, which it could not verify."""
    cache = DynamicCache()
    network(torch.ones(num_sequences, CONTEXT_LEN, dtype=torch.int64), past_key_values=cache, logits_to_keep=1)
    rows = torch.ones(num_sequences, num_rows, dtype=torch.int64)

    def run() -> None:
        network(rows, past_key_values=cache)
        cache.crop(-num_rows)

    return run


@dataclasses.dataclass(frozen=True)
class Peers:
    """The same weights: packed, under our attention in transformers, transformers' own, and as oneDNN's layers."""

    packed: TargetModel
    unpacked: TargetModel
    eager: Any
    onednn: OneDnnLinears


def load(path: str, dtype: str) -> Peers:
    """Loads the model once for each."""
    packed = load_model(ModelConfig(path, device="cpu", dtype=dtype))
    if packed.packed is None:
        raise SystemExit(f"model type {packed.model_type!r} in {packed.dtype} has no packed forward here")
    network, eager = (
        AutoModelForCausalLM.from_pretrained(path, dtype=peer_dtype(packed.dtype), attn_implementation=kind).eval()
        for kind in ("sdpa", "eager")
    )
    return Peers(
        packed,
        dataclasses.replace(packed, network=network, dtype=network.dtype, packed=None),
        eager,
        OneDnnLinears.of(eager),
    )


def measure_case(
    peers: Peers, num_sequences: int, num_rows: int, bytes_per_ms: float, flops_per_ms: float, rounds: int
) -> dict[str, Any]:
    """One case, all contenders in turns."""
    model = peers.packed.packed
    assert model is not None
    slot_len, rows = CONTEXT_LEN + 64, num_sequences * num_rows
    runner = ModelRunner(peers.packed, num_sequences, CONTEXT_LEN + 32, 32)
    ours, old = (make_forward(peer, num_sequences, slot_len) for peer in (peers.packed, peers.unpacked))
    inputs = step_inputs(num_sequences, num_rows)
    batch = pack(inputs, torch.device("cpu"))
    took = medians(
        {
            "linear": our_linear_layers(model, rows, rows),
            "onednn": peers.onednn.run(peers.eager, rows, rows),
            "small": small_operators(model, rows),
            "ours": lambda: ours.logits(batch),
            "step": lambda: runner.run(inputs),
            "old": lambda: old.logits(batch),
            "eager": transformers_eager(peers.eager, num_sequences, num_rows),
        },
        rounds,
    )
    shape, element = model.kv_shape, model.embedding.element_size()
    kv_bytes = 2 * num_sequences * CONTEXT_LEN * shape.num_layers * shape.num_heads * shape.head_size * element
    floor = took["onednn"] + took["small"] + kv_bytes / bytes_per_ms
    weights = num_weights(peers.packed, model)
    bound = max(weights * element / bytes_per_ms, 2 * rows * weights / flops_per_ms) + kv_bytes / bytes_per_ms
    return {
        "case": f"{num_sequences}x{num_rows}",
        "forward_ms": took["ours"],
        "floor_ms": floor,
        "ratio": took["ours"] / floor,
        "bound_ms": bound,
        "onednn_ms": took["onednn"],
        "linear_ms": took["linear"],
        "kv_ms": kv_bytes / bytes_per_ms,
        "small_ms": took["small"],
        "outside_share": (took["step"] - took["ours"]) / took["step"],
        "old_ms": took["old"],
        "eager_ms": took["eager"],
    }


def measure_prefill(peers: Peers, rounds: int) -> dict[str, Any]:
    """The prompt alone."""
    model = peers.packed.packed
    assert model is not None
    prompt = np.arange(PROMPT_LEN, dtype=np.int32)
    batch = pack([StepInput(0, 0, prompt, DraftTree.empty(PROMPT_LEN), Strict(), 0.0, 0, 0, 1)], torch.device("cpu"))
    ours, old = (make_forward(peer, 1, PROMPT_LEN + 64) for peer in (peers.packed, peers.unpacked))
    ids = torch.from_numpy(prompt.astype(np.int64)).unsqueeze(0)
    took = medians(
        {
            "linear": our_linear_layers(model, PROMPT_LEN, 1),
            "onednn": peers.onednn.run(peers.eager, PROMPT_LEN, 1),
            "ours": lambda: ours.logits(batch),
            "old": lambda: old.logits(batch),
            "eager": lambda: peers.eager(ids, logits_to_keep=1),
        },
        rounds,
    )
    linear, attention = num_operations(peers.packed, model)
    machine_rate = linear / min(took["linear"], took["onednn"])
    return {
        "case": f"prefill {PROMPT_LEN}",
        "forward_ms": took["ours"],
        "onednn_ms": took["onednn"],
        "linear_ms": took["linear"],
        "tflops": (linear + attention) / took["ours"] / 1e9,
        "gemm_tflops": machine_rate / 1e9,
        "gemm_share": (linear + attention) / took["ours"] / machine_rate,
        "old_ms": took["old"],
        "eager_ms": took["eager"],
    }


def num_operations(target: TargetModel, model: PackedLlama) -> tuple[int, int]:
    """Floating-point operations of the prompt's linear layers (lm_head for one row) and of its causal attention."""
    shape, hidden_size = model.kv_shape, model.embedding.shape[1]
    query_size = model.num_query_heads * shape.head_size
    head = hidden_size * target.vocab_size
    linear = 2 * (PROMPT_LEN * (num_weights(target, model) - head) + head)
    return linear, 2 * shape.num_layers * query_size * PROMPT_LEN * (PROMPT_LEN + 1)


def num_weights(target: TargetModel, model: PackedLlama) -> int:
    """Weights of all linear layers, lm_head included."""
    shape, hidden_size = model.kv_shape, model.embedding.shape[1]
    query_size, kv_size = model.num_query_heads * shape.head_size, shape.num_heads * shape.head_size
    per_layer = hidden_size * (2 * query_size + 2 * kv_size + 3 * model.intermediate_size)
    return shape.num_layers * per_layer + hidden_size * target.vocab_size


def print_table(results: list[dict[str, Any]]) -> None:
    """The results under their column names."""
    columns = list(results[0])
    print("  ".join(column.rjust(max(len(column), 11)) for column in columns))
    for result in results:
        print("  ".join(str(result[column]).rjust(max(len(column), 11)) for column in columns))
    print()


def rounded(result: dict[str, Any]) -> dict[str, Any]:
    """Floats with three digits behind the point."""
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}


@torch.inference_mode()
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True, metavar="DIR", help="see laser-recsys model --output")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    peers = load(arguments.model, arguments.dtype)
    bytes_per_ms = read_bytes_per_ms(arguments.rounds)
    print(json.dumps({"dtype": arguments.dtype, "threads": torch.get_num_threads(), "read_gb_s": bytes_per_ms / 1e6}))
    prefill = rounded(measure_prefill(peers, arguments.rounds))
    print(json.dumps(prefill), flush=True)
    results = []
    for case in CASES:
        measured = measure_case(peers, *case, bytes_per_ms, prefill["gemm_tflops"] * 1e9, arguments.rounds)
        results.append(rounded(measured))
        print(json.dumps(results[-1]), flush=True)
    print()
    print_table(results)
    print_table([prefill])


if __name__ == "__main__":
    main()
