"""The forward of a packed Llama-shaped model: linear layers, and one kernel for all that stands between two.

A row's logits depend on the tokens of its own path and on nothing else, bit for bit: not on the batch, the tree it
stands in, the chunks its prompt came in, or the number of threads. So strict decoding equals plain decoding in bfloat16
too. Operations follow transformers/models/llama/modeling_llama.py; between two linear layers they are in float32,
rounded where a linear layer, the cache or a product of attention takes over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from laser_verifier.batch import StepBatch
from laser_verifier.cpu.attention_kernel import QUERY_TILE
from laser_verifier.cpu.cache import BlockedKVCache
from laser_verifier.cpu.llama import PackedLayer, PackedLlama
from laser_verifier.cpu.row_kernels import ROW_TILE
from laser_verifier.cpu.team import Arguments


@dataclass(frozen=True, slots=True)
class _Step:
    """The activations of one step. The kernels know their addresses, so they live until it ends.

    Attributes:
        hidden, normed: [M, C]. queries, attended: [M, Hq * D]. gated: [M, I].
        attention_tasks: int64[tasks, 3]. num_row_tasks: of the kernels that go row by row.
    """

    hidden: Tensor
    normed: Tensor
    queries: Tensor
    attended: Tensor
    gated: Tensor
    attention_tasks: NDArray[np.int64]
    num_row_tasks: int


class PackedForward:
    """Runs a PackedLlama over a cache of its own. Used by one thread.

    Args:
        model: packed. num_slots: S. slot_len: places per slot at least.
    """

    def __init__(self, model: PackedLlama, num_slots: int, slot_len: int) -> None:
        self._model = model
        self._shape = shape = model.kv_shape
        self.cache = cache = BlockedKVCache(shape, num_slots, slot_len, model.embedding.dtype)
        self._team = model.team
        self._cosines, self._sines = model.angles(cache.slot_len)
        num_threads = self._team.num_threads
        row = QUERY_TILE * (cache.slot_len + shape.head_size)
        self._scratch = torch.empty((num_threads, row), dtype=torch.float32)
        self._paths = torch.empty((num_threads, QUERY_TILE * (cache.slot_len + 5)), dtype=torch.int64)
        self._num_workers = torch.zeros(1, dtype=torch.int64)
        # What holds for all steps stands here; `_begin` fills in the step, the loop over layers the layer.
        epsilon = model.epsilon.data_ptr()
        self._norm = Arguments(0, len(model.norm), 0, 0, 0, 0, epsilon)
        self._gate = Arguments(0, model.intermediate_size, 0, 0)
        self._rotate = Arguments(
            0, model.num_query_heads, shape.num_heads, shape.head_size, cache.slot_len, 0, 0, 0, 0,
            self._cosines.data_ptr(), self._sines.data_ptr(), 0, 0, 0, 0, 0, epsilon,
        )  # fmt: skip
        self._attend = Arguments(
            model.num_query_heads, shape.num_heads, shape.head_size, cache.slot_len, 0, 0, 0, 0,
            model.scale.data_ptr(), 0, 0, 0, self._scratch.data_ptr(), self._paths.data_ptr(),
            self._num_workers.data_ptr(),
        )  # fmt: skip

    def logits(self, batch: StepBatch) -> Tensor:
        """Runs a step; [R, V] of its logit_rows. Keys and values of all its tokens are in the cache afterwards."""
        step = self._begin(batch)
        delta: Tensor | None = None
        for layer_idx, layer in enumerate(self._model.layers):
            self._add_norm(step, delta, layer.input_norm)
            self._attention(step, layer_idx, layer)
            self._add_norm(step, layer.output(step.attended), layer.mlp_norm)
            delta = self._mlp(step, layer)
        if not len(batch.logit_rows):
            return step.hidden.new_empty((0, len(self._model.embedding)))
        self._add_norm(step, delta, self._model.norm)
        return self._model.head(step.normed[torch.from_numpy(batch.logit_rows)])

    def _begin(self, batch: StepBatch) -> _Step:
        model, num_rows = self._model, batch.num_tokens
        hidden = F.embedding(torch.from_numpy(batch.token_ids), model.embedding)
        size = model.num_query_heads * self._shape.head_size
        step = _Step(
            hidden=hidden,
            normed=torch.empty_like(hidden),
            queries=hidden.new_empty((len(hidden), size)),
            attended=hidden.new_empty((len(hidden), size)),
            gated=hidden.new_empty((len(hidden), model.intermediate_size)),
            attention_tasks=self._attention_tasks(batch),
            num_row_tasks=-(-num_rows // ROW_TILE),
        )
        parents = batch.parents.ctypes.data
        self._norm.set(0, num_rows)
        self._norm.set(2, hidden.data_ptr())
        self._norm.set(5, step.normed.data_ptr())
        self._rotate.set(0, num_rows)
        self._rotate.set(6, step.queries.data_ptr())
        self._rotate.set(11, batch.position_ids.ctypes.data, batch.slots.ctypes.data, batch.places.ctypes.data)
        self._attend.set(4, step.queries.data_ptr())
        self._attend.set(7, step.attended.data_ptr())
        self._attend.set(9, step.attention_tasks.ctypes.data, batch.sequences.ctypes.data, parents)
        self._gate.set(0, num_rows)
        self._gate.set(3, step.gated.data_ptr())
        return step

    def _add_norm(self, step: _Step, delta: Tensor | None, weight: Tensor) -> None:
        """hidden += delta; normed = RMSNorm(hidden) * weight."""
        self._norm.set(3, _address(delta), weight.data_ptr())
        self._team.run(self._team.add_norm, self._norm, step.num_row_tasks)

    def _attention(self, step: _Step, layer_idx: int, layer: PackedLayer) -> None:
        """attended = attention of normed, whose keys and values go to the cache."""
        qkv = layer.qkv(step.normed)
        keys, values = self.cache.keys[layer_idx].data_ptr(), self.cache.values[layer_idx].data_ptr()
        self._rotate.set(5, qkv.data_ptr())
        self._rotate.set(7, keys, values)
        self._rotate.set(14, _address(layer.query_norm), _address(layer.key_norm))
        self._team.run(self._team.rotate, self._rotate, step.num_row_tasks)
        self._attend.set(5, keys, values)
        self._num_workers.zero_()
        self._team.run(self._team.attend, self._attend, len(step.attention_tasks))

    def _mlp(self, step: _Step, layer: PackedLayer) -> Tensor:
        joined = layer.gate_up(step.normed)
        self._gate.set(2, joined.data_ptr())
        self._team.run(self._team.gate, self._gate, step.num_row_tasks)
        return layer.down(step.gated)

    def compact(self, slots: list[int], sources: list[int], targets: list[int]) -> None:
        """Moves places in all layers: in slot `slots[i]`, `targets[i]` takes what `sources[i]` held.

        Within a slot both rise, and no target lies behind its source.
        """
        if not slots:
            return
        cache, shape = self.cache, self._shape
        moves = np.array((slots, sources, targets), np.int64)
        arguments = Arguments(
            len(slots), cache.num_slots, shape.num_heads, shape.head_size, cache.slot_len, cache.keys.data_ptr(),
            cache.values.data_ptr(), *(moves[i].ctypes.data for i in range(3)),
        )  # fmt: skip
        self._team.run(self._team.move, arguments, shape.num_layers * shape.num_heads)

    def _attention_tasks(self, batch: StepBatch) -> NDArray[np.int64]:
        """int64[tasks, 3]: sequence, head, first query. Neighbouring tasks share keys, which then are still at hand."""
        num_heads = self._shape.num_heads
        shared = self._model.num_query_heads // num_heads
        num_tiles = -(-batch.sequences[:, 2] * shared // QUERY_TILE)
        blocks = np.repeat(num_tiles, num_heads)
        tasks = np.empty((blocks.sum(), 3), np.int64)
        block = np.repeat(np.arange(len(blocks)), blocks)
        tasks[:, 0], tasks[:, 1] = block // num_heads, block % num_heads
        tasks[:, 2] = (np.arange(len(tasks)) - (np.cumsum(blocks) - blocks)[block]) * QUERY_TILE
        return tasks


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
