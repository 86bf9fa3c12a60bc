"""Linear layers, their weights reordered once instead of in every call.

Every row's bits are the same in any batch. Of our own kernel (`dot_kernel.py`) that is so by construction. oneDNN,
which takes what the kernel does not, blocks M x N and sums K in one order, except for a single row of a wide layer,
where it takes another kernel; so callers give at least `MIN_ROWS`. Seen on x86 processors with AVX-512 and held by
tests/verifier/test_cpu_forward.py; oneDNN itself promises nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from laser_verifier.cpu import dot_kernel
from laser_verifier.cpu.dot_kernel import PANEL
from laser_verifier.cpu.simd import has_bfloat16_products
from laser_verifier.cpu.team import Arguments, Kernel, Team

MIN_ROWS = 2

# [M, K] to [M, N], M >= MIN_ROWS, input and output contiguous.
PackedLinear = Callable[[Tensor], Tensor]


def pack_linear(team: Team, *layers: nn.Linear) -> PackedLinear:
    """One or several linear layers over the same input, their outputs side by side.

    Args:
        team: that will run it. layers: with weights [N_i, K]; not changed.
    """
    weight = torch.cat([layer.weight.detach() for layer in layers])
    bias = torch.cat([_bias(layer) for layer in layers]) if any(layer.bias is not None for layer in layers) else None
    if DotLinear.takes(weight):
        return DotLinear(team, weight, bias)
    return OneDnnLinear(weight, bias)


class DotLinear:
    """bfloat16 by our own kernel.

    Args:
        weight: [N, K] that `takes` says yes to. bias: [N] or None.
    """

    def __init__(self, team: Team, weight: Tensor, bias: Tensor | None) -> None:
        num_outputs, num_inputs = weight.shape
        # Panels of 32 outputs; within one, pair of inputs by pair of inputs, as the kernel reads them.
        panels = weight.reshape(num_outputs // PANEL, PANEL, num_inputs // 2, 2)
        self._weight = panels.transpose(1, 2).contiguous()
        assert self._weight.data_ptr() % 64 == 0
        self._bias = torch.zeros(num_outputs) if bias is None else bias.float()
        self._num_outputs, self._num_panels = num_outputs, num_outputs // PANEL
        self._team, self._kernel = team, Kernel(dot_kernel.multiply_bfloat16)
        self._arguments = Arguments(
            0, num_inputs // 2, num_outputs, 0, self._weight.data_ptr(), self._bias.data_ptr(), 0
        )

    @staticmethod
    def takes(weight: Tensor) -> bool:
        """Whether the kernel runs here and has this shape."""
        num_outputs, num_inputs = weight.shape
        fits = num_outputs % PANEL == 0 and num_inputs % 2 == 0
        return weight.dtype == torch.bfloat16 and fits and has_bfloat16_products()

    def __call__(self, x: Tensor) -> Tensor:
        """See PackedLinear."""
        out = x.new_empty((len(x), self._num_outputs))
        self._arguments.set(0, len(x))
        self._arguments.set(3, x.data_ptr())
        self._arguments.set(6, out.data_ptr())
        self._team.run(self._kernel, self._arguments, self._num_panels)
        return out


class OneDnnLinear:
    """Any type and shape by oneDNN.

    Args:
        weight: [N, K]. bias: [N] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """See PackedLinear."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._weight, self._bias, "none", [], "")
        return result


def _bias(layer: nn.Linear) -> Tensor:
    if layer.bias is not None:
        return layer.bias.detach()
    return torch.zeros(layer.out_features, dtype=layer.weight.dtype)


def release(layers: Sequence[nn.Linear]) -> None:
    """Gives back the memory of layers that were packed; they cannot run any more."""
    for layer in layers:
        layer.register_parameter("weight", None)
        layer.register_parameter("bias", None)
