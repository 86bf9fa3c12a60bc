"""Linear layers, their weights laid out once as `linear_kernel.py` reads them.

A row's bits are the same in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laser_verifier.cpu import linear_kernel
from laser_verifier.cpu.linear_kernel import PANEL
from laser_verifier.cpu.simd import has_bfloat16_products
from laser_verifier.cpu.team import Arguments, Kernel, Team

_KERNELS = {torch.bfloat16: linear_kernel.multiply_bfloat16, torch.float32: linear_kernel.multiply_float32}


class PackedLinear:
    """One or several linear layers over the same input, their outputs side by side.

    Args:
        team: that will run it.
        layers: with weights [N_i, K] of one float type, bfloat16 or float32, K a multiple of 16; not changed.
    """

    def __init__(self, team: Team, *layers: nn.Linear) -> None:
        weight = (
            torch.cat([layer.weight.detach() for layer in layers]) if len(layers) > 1 else layers[0].weight.detach()
        )
        self._num_outputs, num_inputs = weight.shape
        is_paired = weight.dtype == torch.bfloat16 and has_bfloat16_products()
        self._is_widened = weight.dtype == torch.bfloat16 and not is_paired
        step = 2 if is_paired else 1
        num_panels = -(-self._num_outputs // PANEL)
        padded = F.pad(weight, (0, 0, 0, num_panels * PANEL - self._num_outputs))
        # Within a panel of 32 outputs in the order in which they are summed.
        self._weight = padded.reshape(num_panels, PANEL, num_inputs // step, step).transpose(1, 2).contiguous()
        assert self._weight.data_ptr() % 64 == 0
        self._bias = torch.zeros(num_panels * PANEL)
        self._bias[: self._num_outputs] = torch.cat([_bias(layer) for layer in layers])
        self._num_panels = num_panels
        self._num_workers = torch.zeros(1, dtype=torch.int64)
        self._team, self._kernel = team, Kernel(_KERNELS[weight.dtype])
        self._arguments = Arguments(
            0, num_inputs, len(self._bias), 0, self._weight.data_ptr(), self._bias.data_ptr(), 0, 0,
            self._num_workers.data_ptr(),
        )  # fmt: skip

    def __call__(self, x: Tensor) -> Tensor:
        """[M, K] to [M, N], both contiguous."""
        out = x.new_empty((len(x), len(self._bias)))
        scratch = torch.empty((self._team.num_threads, len(x) + PANEL, x.shape[1]) if self._is_widened else 0)
        self._num_workers.zero_()
        self._arguments.set(0, len(x))
        self._arguments.set(3, x.data_ptr())
        self._arguments.set(6, out.data_ptr(), scratch.data_ptr())
        self._team.run(self._kernel, self._arguments, self._num_panels)
        return out[:, : self._num_outputs].contiguous()


def _bias(layer: nn.Linear) -> Tensor:
    return torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach().float()


def release(layers: Sequence[nn.Linear]) -> None:
    """Gives back the memory of layers that were packed; they cannot run any more."""
    for layer in layers:
        layer.register_parameter("weight", None)
        layer.register_parameter("bias", None)
