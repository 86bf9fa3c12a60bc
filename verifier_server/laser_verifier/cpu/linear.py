"""Linear layers, their weights laid out once as `linear_kernel.py` reads them.

A row's bits are the same in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laser_verifier.cpu.linear_kernel import PANEL
from laser_verifier.cpu.program import Call
from laser_verifier.cpu.row_kernels import ROW_TILE
from laser_verifier.cpu.simd import LANES, LINE_BYTES, has_bfloat16_products
from laser_verifier.cpu.team import Team


class PackedLinear:
    """One or several linear layers over the same input, their outputs side by side.

    Args:
        team: that will run it.
        layers: with weights [N_i, K] of one float type, bfloat16 or float32, K a multiple of 16; not changed.

    Attributes:
        num_inputs: K.
        num_outputs: N, the sum of N_i.
        padded_outputs: N up to the next multiple of 32: columns that the kernel writes.
        is_widened: whether it multiplies bfloat16 as float32.
    """

    def __init__(self, team: Team, *layers: nn.Linear) -> None:
        weights = [layer.weight.detach() for layer in layers]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        self.num_outputs, self.num_inputs = weight.shape
        self.padded_outputs = -(-self.num_outputs // PANEL) * PANEL
        is_paired = weight.dtype == torch.bfloat16 and has_bfloat16_products()
        self.is_widened = weight.dtype == torch.bfloat16 and not is_paired
        length = 2 if is_paired else 1
        padding = self.padded_outputs - self.num_outputs
        if padding:
            weight = F.pad(weight, (0, 0, 0, padding))
        panels = weight.reshape(-1, PANEL, self.num_inputs // length, length)
        # Within a panel of 32 outputs in the order in which they are summed.
        self._weight = panels.transpose(1, 2).contiguous()
        assert self._weight.data_ptr() % LINE_BYTES == 0 and self.num_inputs % LANES == 0
        self._bias = F.pad(torch.cat([_bias(layer) for layer in layers]), (0, padding))
        self._team = team

    def calls(self, x: Tensor, out: Tensor | None, scratch: Scratch) -> list[Call]:
        """out = x weights + bias, for as many rows as the calls' argument 0 says.

        Args:
            x: [M, K]. out: [M, padded_outputs]; None: to be set before it runs. Both contiguous.
            scratch: made for this layer and M or more; calls of one program may share it.
        """
        team, num_rows, source = self._team, len(x), x
        calls = []
        if self.is_widened:
            source = scratch.inputs
            widening = (num_rows, self.num_inputs, x.data_ptr(), source.data_ptr())
            calls.append(Call(team.widen, -(-num_rows // ROW_TILE), widening, (x, source)))
        values = (
            num_rows, self.num_inputs, self.padded_outputs, source.data_ptr(), self._weight.data_ptr(),
            self._bias.data_ptr(), 0 if out is None else out.data_ptr(), scratch.panels.data_ptr(),
        )  # fmt: skip
        calls.append(Call(team.linear, self.padded_outputs // PANEL, values, (self, source, out, scratch)))
        return calls


@dataclass(frozen=True, slots=True, eq=False)
class Scratch:
    """Room for what is widened; empty where nothing is.

    Attributes:
        inputs: float32[M * K]. panels: float32 [workers * 32 * K].
    """

    inputs: Tensor
    panels: Tensor

    @staticmethod
    def room(team: Team, linears: Sequence[PackedLinear], max_rows: int) -> Scratch:
        """For any of these layers with so many rows."""
        size = max(linear.num_inputs if linear.is_widened else 0 for linear in linears)
        return Scratch(torch.empty(max_rows * size), torch.empty(team.num_threads * PANEL * size))


def _bias(layer: nn.Linear) -> Tensor:
    return torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach().float()


def release(layers: Sequence[nn.Linear]) -> None:
    """Gives back the memory of layers that were packed; they cannot run any more."""
    for layer in layers:
        layer.register_parameter("weight", None)
        layer.register_parameter("bias", None)
