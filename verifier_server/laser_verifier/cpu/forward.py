"""The forward of a packed Llama-shaped model: oneDNN's linear layers, and one kernel for all that stands between two.

A row's logits depend on the tokens of its own path and on nothing else, bit for bit: not on the batch, the tree it
stands in, the chunks its prompt came in, or the number of threads. So strict decoding equals plain decoding in bfloat16
too. Operations follow transformers/models/llama/modeling_llama.py; between two linear layers they are in float32
throughout, rounded where a linear layer or the cache takes over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from laser_verifier.batch import StepBatch
from laser_verifier.cpu.cache import BlockedKVCache
from laser_verifier.cpu.kernels import QUERY_TILE, ROW_TILE
from laser_verifier.cpu.linear import MIN_ROWS
from laser_verifier.cpu.llama import PackedLayer, PackedLlama
from laser_verifier.cpu.team import Arguments, Team


@dataclass(frozen=True, slots=True)
class _LayerArguments:
    """What the kernels of one layer get; addresses of the step are filled in as they come."""

    layer: PackedLayer
    input_norm: Arguments
    rotate: Arguments
    attend: Arguments
    mlp_norm: Arguments


class PackedForward:
    """Runs a PackedLlama over a cache of its own. Used by one thread.

    Args:
        model: packed. num_slots: S. slot_len: places per slot at least.
    """

    def __init__(self, model: PackedLlama, num_slots: int, slot_len: int) -> None:
        self._model = model
        dtype = model.embedding.dtype
        self.cache = BlockedKVCache(model.kv_shape, num_slots, slot_len, dtype)
        self._team = Team(dtype)
        self._cosines, self._sines = model.angles(self.cache.slot_len)
        row = QUERY_TILE * (self.cache.slot_len + model.kv_shape.head_size + 1)
        self._scratch = torch.empty((self._team.num_threads, row), dtype=torch.float32)
        self._num_workers = torch.zeros(1, dtype=torch.int64)
        self._layers = [self._layer_arguments(i, layer) for i, layer in enumerate(model.layers)]
        self._final_norm = self._norm_arguments(model.norm)
        self._gate = Arguments(0, model.intermediate_size, 0, 0)

    def _norm_arguments(self, weight: Tensor) -> Arguments:
        return Arguments(0, len(weight), 0, 0, weight.data_ptr(), 0, self._model.epsilon.data_ptr())

    def _layer_arguments(self, layer_idx: int, layer: PackedLayer) -> _LayerArguments:
        model, cache, shape = self._model, self.cache, self._model.kv_shape
        keys, values = cache.keys[layer_idx].data_ptr(), cache.values[layer_idx].data_ptr()
        query_norm, key_norm = (0 if w is None else w.data_ptr() for w in (layer.query_norm, layer.key_norm))
        rotate = Arguments(
            0, model.num_query_heads, shape.num_heads, shape.head_size, cache.slot_len, 0, 0, keys, values,
            self._cosines.data_ptr(), self._sines.data_ptr(), 0, 0, 0, query_norm, key_norm, model.epsilon.data_ptr(),
        )  # fmt: skip
        attend = Arguments(
            model.num_query_heads, shape.num_heads, shape.head_size, cache.slot_len, 0, keys, values, 0,
            model.scale.data_ptr(), 0, 0, 0, 0, self._scratch.data_ptr(), self._num_workers.data_ptr(),
        )  # fmt: skip
        return _LayerArguments(
            layer, self._norm_arguments(layer.input_norm), rotate, attend, self._norm_arguments(layer.mlp_norm)
        )

    def logits(self, batch: StepBatch) -> Tensor:
        """Runs a step; [R, V] of its logit_rows. Keys and values of all its tokens are in the cache afterwards."""
        model, team = self._model, self._team
        num_rows, num_row_tasks = batch.num_tokens, -(-batch.num_tokens // ROW_TILE)
        tasks = self._attention_tasks(batch)
        hidden = F.embedding(torch.from_numpy(_padded(batch.token_ids)), model.embedding)
        size = model.num_query_heads * model.kv_shape.head_size
        # A single row is run twice (see linear.py); what stands in the second must only be finite.
        normed = torch.zeros_like(hidden)
        queries = torch.empty((len(hidden), size), dtype=torch.float32)
        attended, gated = (hidden.new_zeros((len(hidden), width)) for width in (size, model.intermediate_size))
        delta: Tensor | None = None

        def add_norm(arguments: Arguments, delta: Tensor | None) -> None:
            arguments.set(0, num_rows)
            arguments.set(2, hidden.data_ptr(), 0 if delta is None else delta.data_ptr())
            arguments.set(5, normed.data_ptr())
            team.run(team.add_norm, arguments, num_row_tasks)

        for own in self._layers:
            add_norm(own.input_norm, delta)
            qkv = own.layer.qkv(normed)
            own.rotate.set(0, num_rows)
            own.rotate.set(5, qkv.data_ptr(), queries.data_ptr())
            own.rotate.set(11, batch.position_ids.ctypes.data, batch.slots.ctypes.data, batch.places.ctypes.data)
            team.run(team.rotate, own.rotate, num_row_tasks)
            own.attend.set(4, queries.data_ptr())
            own.attend.set(7, attended.data_ptr())
            own.attend.set(9, tasks.ctypes.data, batch.sequences.ctypes.data)
            own.attend.set(11, batch.parents.ctypes.data, batch.position_ids.ctypes.data)
            self._num_workers.zero_()
            team.run(team.attend, own.attend, len(tasks))
            add_norm(own.mlp_norm, own.layer.output(attended))
            joined = own.layer.gate_up(normed)
            self._gate.set(0, num_rows)
            self._gate.set(2, joined.data_ptr(), gated.data_ptr())
            team.run(team.gate, self._gate, num_row_tasks)
            delta = own.layer.down(gated)
        if not len(batch.logit_rows):
            return hidden.new_empty((0, len(model.embedding)))
        add_norm(self._final_norm, delta)
        rows = torch.from_numpy(_padded(batch.logit_rows))
        return model.head(normed[rows])[: len(batch.logit_rows)]

    def compact(self, slots: list[int], sources: list[int], targets: list[int]) -> None:
        """Moves places in all layers: in slot `slots[i]`, `targets[i]` takes what `sources[i]` held.

        Within a slot both rise, and no target lies behind its source.
        """
        if not slots:
            return
        cache, shape = self.cache, self._model.kv_shape
        moves = np.array((slots, sources, targets), np.int64)
        arguments = Arguments(
            len(slots), cache.num_slots, shape.num_heads, shape.head_size, cache.slot_len, cache.keys.data_ptr(),
            cache.values.data_ptr(), *(moves[i].ctypes.data for i in range(3)),
        )  # fmt: skip
        self._team.run(self._team.move, arguments, shape.num_layers * shape.num_heads)

    def _attention_tasks(self, batch: StepBatch) -> NDArray[np.int64]:
        """int64[tasks, 3]: sequence, head, first query. Neighbouring tasks share keys, which then are still at hand."""
        num_heads = self._model.kv_shape.num_heads
        shared = self._model.num_query_heads // num_heads
        num_tiles = -(-batch.sequences[:, 2] * shared // QUERY_TILE)
        blocks = np.repeat(num_tiles, num_heads)
        tasks = np.empty((blocks.sum(), 3), np.int64)
        block = np.repeat(np.arange(len(blocks)), blocks)
        tasks[:, 0], tasks[:, 1] = block // num_heads, block % num_heads
        tasks[:, 2] = (np.arange(len(tasks)) - (np.cumsum(blocks) - blocks)[block]) * QUERY_TILE
        return tasks


def _padded(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """At least MIN_ROWS values: the last one again."""
    return values if len(values) >= MIN_ROWS else np.repeat(values, MIN_ROWS)
