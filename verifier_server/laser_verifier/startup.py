"""What happens before a verifier serves: the model loaded, what a forward costs measured, the largest step tried."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from laser_protocol.acceptance import Relaxed, Strict
from laser_protocol.tree import DraftTree
from laser_verifier.batch import StepInput
from laser_verifier.config import EngineConfig, ModelConfig
from laser_verifier.kv_cache import is_out_of_memory
from laser_verifier.model import TargetModel, load_model, load_tokenizer
from laser_verifier.runner import ModelRunner
from laser_verifier.step_cost import StepCost, measure_step_cost


def load_runner(
    model_config: ModelConfig, engine_config: EngineConfig
) -> tuple[Any, EngineConfig, ModelRunner, StepCost]:
    """Tokenizer, the configuration that fits the model, its runner and what a forward of it costs.

    Raises:
        ValueError: the model cannot be loaded or used, or the configuration is too large for it or for the memory.
    """
    if model_config.num_threads is not None:
        torch.set_num_threads(model_config.num_threads)  # of this thread, which is to run the model
    tokenizer, model = load_tokenizer(model_config), load_model(model_config)
    config = _fit_to_model(engine_config, model)
    try:
        runner = ModelRunner(model, config.max_sequences, config.max_model_len, config.max_draft_nodes)
        cost = measure_runner(runner, config.max_step_tokens)
        if model.device.type != "cpu":  # whose memory ends without a word
            run_largest_step(runner, config.max_draft_nodes)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"max_sequences is {config.max_sequences}, max_model_len {config.max_model_len} and max_draft_nodes "
            f"{config.max_draft_nodes}, too much for this memory: {reason}"
        ) from error
    return tokenizer, config, runner, cost


def measure_runner(runner: ModelRunner, max_tokens: int) -> StepCost:
    """What a forward of this runner costs: one sequence, `M` tokens behind a context of a quarter of its slot.

    All but the first are children of that one: rows that decode see a context and little else, not each other. A
    prompt's rows see each other, and are priced by the same curve.
    """
    context = min(256, runner.slot_len // 4)
    # Larger steps are prompts', which cost no more a token; as a tree they would ask for logits by the gigabyte.
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if size <= min(max_tokens, runner.slot_len // 2)]

    def run(num_tokens: int) -> None:
        nodes = num_tokens - 1
        tree = DraftTree(
            context + 1,
            np.zeros(nodes, np.int32),
            np.full(nodes, -1, np.int32),
            np.ones(nodes, np.float32),
        )
        runner.run([StepInput(0, context, np.zeros(1, np.int32), tree, Strict(), 0.0, 0, 0, num_tokens)])

    return measure_step_cost(run, sizes if len(sizes) > 1 else [1, 2])


def run_largest_step(runner: ModelRunner, max_draft_nodes: int) -> None:
    """One step with as many logits as any may have: memory that they do not fit into is then missing at the start."""
    tree = DraftTree(
        1,
        np.zeros(max_draft_nodes, np.int32),
        np.full(max_draft_nodes, -1, np.int32),
        np.ones(max_draft_nodes, np.float32),
    )
    last = np.zeros(1, np.int32)
    runner.run([StepInput(slot, 0, last, tree, Relaxed(), 0.0, 0, 0, 1) for slot in range(runner.num_slots)])


def _fit_to_model(config: EngineConfig, model: TargetModel) -> EngineConfig:
    """The configuration with max_model_len within what the model was made for."""
    if model.context_len is None or config.max_model_len <= model.context_len:
        return config
    if config.max_model_len != EngineConfig().max_model_len:
        raise ValueError(f"max_model_len is {config.max_model_len}, the model takes at most {model.context_len}")
    return dataclasses.replace(config, max_model_len=model.context_len)
