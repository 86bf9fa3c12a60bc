"""The forward of a packed Llama-shaped model, as a program of kernels: linear layers and what stands between two.

A row's logits depend on the tokens of its own path and on nothing else, bit for bit: not on the batch, the tree it
stands in, the chunks its prompt came in, or the number of threads. So strict decoding equals plain decoding in bfloat16
too. Operations follow transformers/models/llama/modeling_llama.py; between two linear layers they are in float32,
rounded where a linear layer, the cache or a product of attention takes over.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laser_verifier.batch import StepBatch
from laser_verifier.cpu.attention_kernel import QUERY_TILE
from laser_verifier.cpu.cache import BlockedKVCache
from laser_verifier.cpu.linear import Scratch
from laser_verifier.cpu.llama import PackedLayer, PackedLlama
from laser_verifier.cpu.program import Call, Program
from laser_verifier.cpu.row_kernels import ROW_TILE


class _Plan:
    """The kernels of a forward and the memory they work in, for steps of up to `max_rows` tokens.

    Args:
        model: packed. cache: of its keys and values. rotation: cosines and sines, float32 [positions, D / 2].
        max_rows: most tokens of a step.

    Attributes:
        hidden, delta: [max_rows, C], tokens' vectors and what the last layer adds to them.
        layers, head: programs of all decoder layers; of the last norm and the vocabulary's logits.
    """

    def __init__(
        self, model: PackedLlama, cache: BlockedKVCache, rotation: tuple[Tensor, Tensor], max_rows: int
    ) -> None:
        self._model, self._cache, self.max_rows = model, cache, max_rows
        shape, first = model.kv_shape, model.layers[0]
        query_size = model.num_query_heads * shape.head_size
        self._rotation = rotation

        def rows(size: int) -> Tensor:
            return model.embedding.new_empty((max_rows, size))

        self.hidden, self.delta, self._normed = (rows(len(model.norm)) for _ in range(3))
        self._qkv, self._queries, self._attended = rows(first.qkv.num_outputs), rows(query_size), rows(query_size)
        self._joined, self._gated = rows(2 * model.intermediate_size), rows(model.intermediate_size)
        linears = [first.qkv, first.output, first.gate_up, first.down, model.head]
        self._scratch = Scratch.room(model.team, linears, max_rows)
        self._scores = torch.empty((model.team.num_threads, QUERY_TILE * (cache.slot_len + shape.head_size)))
        self._paths = torch.empty((model.team.num_threads, QUERY_TILE * (cache.slot_len + 5)), dtype=torch.int64)
        layers = [self._layer(layer_idx, layer) for layer_idx, layer in enumerate(model.layers)]
        self.layers = Program(model.team, [call for layer in layers for call in layer])
        self.head = Program(
            model.team,
            [self._add_norm(self.delta, model.norm), *model.head.calls(self._normed, None, self._scratch)],
        )

    def _layer(self, layer_idx: int, layer: PackedLayer) -> list[Call]:
        delta = self.delta if layer_idx else None
        return [
            self._add_norm(delta, layer.input_norm),
            *layer.qkv.calls(self._normed, self._qkv, self._scratch),
            *self._attention(layer_idx, layer),
            *layer.output.calls(self._attended, self.delta, self._scratch),
            self._add_norm(self.delta, layer.mlp_norm),
            *layer.gate_up.calls(self._normed, self._joined, self._scratch),
            Call(
                self._model.team.gate, 0,
                (0, self._model.intermediate_size, self._joined.data_ptr(), self._gated.data_ptr()),
            ),
            *layer.down.calls(self._gated, self.delta, self._scratch),
        ]  # fmt: skip

    def _add_norm(self, delta: Tensor | None, weight: Tensor) -> Call:
        """hidden += delta; normed = RMSNorm(hidden) * weight."""
        return Call(
            self._model.team.add_norm, 0,
            (0, len(weight), self.hidden.data_ptr(), _address(delta), weight.data_ptr(), self._normed.data_ptr(),
             self._model.epsilon.data_ptr()),
        )  # fmt: skip

    def _attention(self, layer_idx: int, layer: PackedLayer) -> list[Call]:
        """attended = attention of qkv, whose keys and values go to the cache."""
        model, cache, shape = self._model, self._cache, self._model.kv_shape
        keys, values = cache.keys[layer_idx].data_ptr(), cache.values[layer_idx].data_ptr()
        cosines, sines = self._rotation
        return [
            Call(
                model.team.rotate, 0,
                (0, model.num_query_heads, shape.num_heads, shape.head_size, cache.slot_len, self._qkv.data_ptr(),
                 self._queries.data_ptr(), keys, values, cosines.data_ptr(), sines.data_ptr(), 0, 0, 0,
                 _address(layer.query_norm), _address(layer.key_norm), model.epsilon.data_ptr()),
            ),
            Call(
                model.team.attend, 0,
                (model.num_query_heads, shape.num_heads, shape.head_size, cache.slot_len, self._queries.data_ptr(),
                 keys, values, self._attended.data_ptr(), model.scale.data_ptr(), 0, 0, 0, self._scores.data_ptr(),
                 self._paths.data_ptr()),
            ),
        ]  # fmt: skip

    def run_layers(self, batch: StepBatch) -> None:
        """`hidden`, and `delta` that is still to be added to it, of all tokens; their keys and values are cached."""
        team, num_rows, program = self._model.team, batch.num_tokens, self.layers
        torch.index_select(self._model.embedding, 0, torch.from_numpy(batch.token_ids), out=self.hidden[:num_rows])
        tasks = _attention_tasks(batch, self._model)
        num_row_tasks = -(-num_rows // ROW_TILE)
        program.set(team.widen, {0: num_rows}, num_row_tasks)
        program.set(team.linear, {0: num_rows})
        program.set(team.add_norm, {0: num_rows}, num_row_tasks)
        program.set(team.gate, {0: num_rows}, num_row_tasks)
        positions, slots, places = (x.ctypes.data for x in (batch.position_ids, batch.slots, batch.places))
        program.set(team.rotate, {0: num_rows, 11: positions, 12: slots, 13: places}, num_row_tasks)
        sequences, parents = batch.sequences.ctypes.data, batch.parents.ctypes.data
        program.set(team.attend, {9: tasks.ctypes.data, 10: sequences, 11: parents}, len(tasks))
        program.run()

    def run_head(self, logit_rows: NDArray[np.int64]) -> Tensor:
        """[R, V] of these rows, at least one, after `run_layers`."""
        team, head, num_rows = self._model.team, self._model.head, len(logit_rows)
        rows = torch.from_numpy(logit_rows)
        self.hidden[:num_rows] = self.hidden[rows]
        self.delta[:num_rows] = self.delta[rows]
        logits = self.hidden.new_empty((num_rows, head.padded_outputs))
        num_row_tasks = -(-num_rows // ROW_TILE)
        self.head.set(team.add_norm, {0: num_rows}, num_row_tasks)
        self.head.set(team.widen, {0: num_rows}, num_row_tasks)
        self.head.set(team.linear, {0: num_rows, 6: logits.data_ptr()})
        self.head.run()
        return logits[:, : head.num_outputs].contiguous()


class PackedForward:
    """Runs a PackedLlama over a cache of its own. Used by one thread.

    Args:
        model: packed. num_slots: S. slot_len: places per slot at least.
    """

    # Tokens of a step that memory is prepared for at first; for more it is made anew, twice as large as needed.
    _FIRST_ROWS = 64

    def __init__(self, model: PackedLlama, num_slots: int, slot_len: int) -> None:
        self._model = model
        self.cache = BlockedKVCache(model.kv_shape, num_slots, slot_len, model.embedding.dtype)
        self._rotation = model.angles(self.cache.slot_len)
        self._plan = self._plan_for(self._FIRST_ROWS)

    def _plan_for(self, max_rows: int) -> _Plan:
        return _Plan(self._model, self.cache, self._rotation, max_rows)

    def logits(self, batch: StepBatch) -> Tensor:
        """Runs a step; [R, V] of its logit_rows. Keys and values of all its tokens are in the cache afterwards."""
        if batch.num_tokens > self._plan.max_rows:
            del self._plan  # both would not be needed at once
            self._plan = self._plan_for(2 * batch.num_tokens)
        self._plan.run_layers(batch)
        if not len(batch.logit_rows):
            return self._model.embedding.new_empty((0, self._model.head.num_outputs))
        return self._plan.run_head(batch.logit_rows)

    def compact(self, slots: list[int], sources: list[int], targets: list[int]) -> None:
        """Moves places in all layers: in slot `slots[i]`, `targets[i]` takes what `sources[i]` held.

        Within a slot both rise, and no target lies behind its source.
        """
        if not slots:
            return
        cache, shape, team = self.cache, self._model.kv_shape, self._model.team
        moves = np.array((slots, sources, targets), np.int64)
        call = Call(
            team.move, shape.num_layers * shape.num_heads,
            (len(slots), cache.num_slots, shape.num_heads, shape.head_size, cache.slot_len, cache.keys.data_ptr(),
             cache.values.data_ptr(), *(moves[i].ctypes.data for i in range(3))),
        )  # fmt: skip
        Program(team, [call]).run()


def _attention_tasks(batch: StepBatch, model: PackedLlama) -> NDArray[np.int64]:
    """int64[tasks, 3]: sequence, head, first query. Neighbouring tasks share keys, which then are still at hand."""
    num_heads = model.kv_shape.num_heads
    shared = model.num_query_heads // num_heads
    num_tiles = -(-batch.sequences[:, 2] * shared // QUERY_TILE)
    blocks = np.repeat(num_tiles, num_heads)
    tasks = np.empty((blocks.sum(), 3), np.int64)
    block = np.repeat(np.arange(len(blocks)), blocks)
    tasks[:, 0], tasks[:, 1] = block // num_heads, block % num_heads
    tasks[:, 2] = (np.arange(len(tasks)) - (np.cumsum(blocks) - blocks)[block]) * QUERY_TILE
    return tasks


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
