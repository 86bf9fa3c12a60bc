"""The float type in which torch, oneDNN and vLLM are quickest on this processor: what peers are measured in."""

from __future__ import annotations

import torch


def peer_dtype(dtype: torch.dtype = torch.bfloat16) -> torch.dtype:
    """bfloat16 where oneDNN has it; elsewhere it is emulated, several times slower than float32."""
    return dtype if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
