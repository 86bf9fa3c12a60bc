"""How fast a machine could be at most: the operations of prompts and outputs at the machine's matrix rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def roofline(model: Path, prompts: Sequence[Sequence[int]], num_new_tokens: int, operations_per_s: float) -> float:
    """Output tokens/s if linear layers ran at the matrix rate and nothing else took time; shared prefixes not counted.

    Args:
        model: directory of a transformers causal LM.
        prompts: token ids each; all but lm_head is done for them once.
        num_new_tokens: emitted for all of them together.
        operations_per_s: floating-point operations, the machine's best (`gemm_tflops` of `benchmarks.forward`).
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    linear = [layer.weight.numel() for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
    head = network.get_output_embeddings().weight.numel()
    operations = 2 * (sum(linear) * num_new_tokens + (sum(linear) - head) * sum(map(len, prompts)))
    return num_new_tokens / (operations / operations_per_s)
