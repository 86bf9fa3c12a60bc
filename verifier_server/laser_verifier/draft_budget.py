"""How many draft nodes a step verifies: those whose expected tokens are worth their share of the forward.

Every tree lists its nodes by non-increasing probability of lying on the emitted path, so the K most probable nodes of
the whole batch are a prefix of every tree, and their sum is what they are expected to emit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laser_verifier.step_cost import StepCost


@dataclass(frozen=True, slots=True)
class Choice:
    """What a step verifies.

    Attributes:
        num_nodes: per tree, the length of the prefix that is verified.
        expected_tokens: that these nodes emit, the sum of their probabilities.
        price: probability a further node would have needed to be worth its place.
        gain: what a step of this kind is worth with drafting over what it is worth without, in tokens; time counts
            at the best rate. What drafting itself takes is in it, so it may be below 1.
    """

    num_nodes: list[int]
    expected_tokens: float
    price: float
    gain: float


def choose_nodes(
    probs: Sequence[NDArray[np.float64]],
    num_verified_tokens: int,
    num_sequences: int,
    cost: StepCost,
    drafting_s: float = 0.0,
) -> Choice:
    """Chooses the nodes so that tokens per second are highest.

    A second is worth the tokens that the decoding sequences alone, with the best choice of their nodes, emit in it. A
    step that also prefills is judged by that rate: the time it takes for prompts is not the nodes' fault, nor does it
    make them cheaper.

    Args:
        probs: one non-increasing float64[n] per tree.
        num_verified_tokens: tokens the step runs anyway, prefill included, at least `num_sequences`.
        num_sequences: sequences that get their bonus token from this step, at least 1.
        cost: of a forward.
        drafting_s: seconds a step spends on having trees at all. For this step's choice they are spent already; whether
            to draft on is what `gain` tells.
    """
    flat = np.concatenate([*probs, np.empty(0)])
    owner = np.repeat(np.arange(len(probs)), [len(p) for p in probs])
    # Stable, so that among equal probabilities a tree's earlier nodes come first and the choice stays a prefix.
    order = np.argsort(-flat, kind="stable")
    expected = np.concatenate(([0.0], np.cumsum(flat[order])))
    counts = np.arange(len(flat) + 2)
    rate = float(((num_sequences + expected) / (cost(num_sequences + counts[:-1]) + drafting_s)).max())
    rate = max(rate, num_sequences / cost.of(num_sequences))
    seconds = cost(num_verified_tokens + counts)
    num_chosen = int(np.argmax(expected - rate * seconds[:-1]))
    num_nodes: list[int] = np.bincount(owner[order[:num_chosen]], minlength=len(probs)).tolist()
    price = rate * float(seconds[num_chosen + 1] - seconds[num_chosen])
    surplus = float(expected[num_chosen]) - rate * (float(seconds[num_chosen] - seconds[0]) + drafting_s)
    return Choice(num_nodes, float(expected[num_chosen]), price, 1.0 + surplus / num_sequences)
