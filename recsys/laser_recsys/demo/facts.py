"""What a run was: model, users, prompts, machine and versions, as lines for the report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence

from laser_client import Model
from laser_recsys.demo.study import Study
from laser_recsys.machine import processor_name
from laser_recsys.measurement import Run

_PACKAGES = ("laser-rec", "torch", "transformers", "grpcio")


def run_facts(study: Study, model: Model, warm_up: Run, runs: Sequence[Run]) -> tuple[tuple[str, str], ...]:
    """(what, value) lines.

    Args:
        study: who was asked.
        model: as the verifier names it.
        warm_up: of the warm-up users.
        runs: of the held-out users, plain decoding first.
    """
    drafted = [made for run in runs[1:] for made in run.generations]
    num_ok = sum(made.stats.draft_status == "ok" for made in drafted)
    num_prompt_tokens = sum(made.stats.num_prompt_tokens for made in runs[0].generations) / len(study.held_out)
    sizes = ", ".join(str(size) for size in study.groups.sizes())
    rates = f"{warm_up.tokens_per_second:.0f} tokens/s, {warm_up.tokens_per_step:.2f} tokens per step"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    return (
        ("model", f"{model.name} ({model.model_type}), {model.dtype} on {model.device}"),
        ("users", f"{len(study.warm_up)} warm-up, {len(study.held_out)} held out, none in both"),
        ("groups", f"{study.groups.num_groups}, by {study.groups.how}, of {sizes} users"),
        ("prompts", f"KAR for users, {num_prompt_tokens:.0f} tokens on average"),
        ("warm-up", f"{warm_up.num_tokens} tokens in {warm_up.seconds:.0f} s: {rates}, strict, the pools growing"),
        ("drafted from their pools", f"{num_ok} of {len(drafted)} strict and relaxed outputs"),
        ("processor", f"{processor_name()}, {os.cpu_count()} cores"),
        ("versions", f"{versions}, Python {platform.python_version()}"),
    )
