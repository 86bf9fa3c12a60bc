"""Linear layers in the layout oneDNN's matrix product wants, reordered once instead of in every call.

Every row's bits are the same in any batch: oneDNN blocks M x N and sums K in one order, except for a single row of a
wide layer, where it takes another kernel; so callers give at least `MIN_ROWS`. Seen on x86 processors with AVX-512 and
held by tests/verifier/test_cpu_forward.py; oneDNN itself promises nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MIN_ROWS = 2

_linear = torch.ops.mkldnn._linear_pointwise.default
_reorder = torch.ops.mkldnn._reorder_linear_weight


class PackedLinear:
    """One or several linear layers over the same input, their outputs side by side.

    Args:
        layers: with weights [N_i, K]; not changed.
    """

    def __init__(self, *layers: nn.Linear) -> None:
        self._weight: Tensor = _reorder(torch.cat([layer.weight.detach() for layer in layers]).contiguous())
        self._bias: Tensor | None = None
        if any(layer.bias is not None for layer in layers):
            self._bias = torch.cat([_bias(layer) for layer in layers])

    def __call__(self, x: Tensor) -> Tensor:
        """[M, K] to [M, N], M >= MIN_ROWS."""
        result: Tensor = _linear(x, self._weight, self._bias, "none", [], "")
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
