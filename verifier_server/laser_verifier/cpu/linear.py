"""Linear layers, their weights laid out once as `linear_kernel.py` reads them.

A row's bits are the same in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laser_verifier.cpu.linear_kernel import PANEL
from laser_verifier.cpu.program import Call
from laser_verifier.cpu.simd import has_bfloat16_products
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
    """

    def __init__(self, team: Team, *layers: nn.Linear) -> None:
        weights = [layer.weight.detach() for layer in layers]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        self.num_outputs, self.num_inputs = weight.shape
        self.padded_outputs = -(-self.num_outputs // PANEL) * PANEL
        is_paired = weight.dtype == torch.bfloat16 and has_bfloat16_products()
        self._is_widened = weight.dtype == torch.bfloat16 and not is_paired
        length = 2 if is_paired else 1
        padding = self.padded_outputs - self.num_outputs
        panels = F.pad(weight, (0, 0, 0, padding)).reshape(-1, PANEL, self.num_inputs // length, length)
        # Within a panel of 32 outputs in the order in which they are summed.
        self._weight = panels.transpose(1, 2).contiguous()
        assert self._weight.data_ptr() % 64 == 0
        self._bias = F.pad(torch.cat([_bias(layer) for layer in layers]), (0, padding))
        self._team = team

    def scratch_len(self, max_rows: int) -> int:
        """How many float32 a call needs beside input and output."""
        return self._team.num_threads * (max_rows + PANEL) * self.num_inputs if self._is_widened else 0

    def call(self, x: Tensor, out: Tensor, scratch: Tensor) -> Call:
        """out = x weights + bias.

        Args:
            x: [M, K], M as the program's argument 0 says. out: [M, padded_outputs]. Both contiguous.
            scratch: float32, at least `scratch_len` of them; calls of one program may share it.
        """
        return Call(
            self._team.linear, self.padded_outputs // PANEL,
            (len(x), self.num_inputs, self.padded_outputs, x.data_ptr(), self._weight.data_ptr(),
             self._bias.data_ptr(), out.data_ptr(), scratch.data_ptr()),
        )  # fmt: skip


def _bias(layer: nn.Linear) -> Tensor:
    return torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach().float()


def release(layers: Sequence[nn.Linear]) -> None:
    """Gives back the memory of layers that were packed; they cannot run any more."""
    for layer in layers:
        layer.register_parameter("weight", None)
        layer.register_parameter("bias", None)
