"""Who runs how many tokens in a step: all that decode, and of the prompts as much as leaves the others their pace.

Their pace is that of a step in which all that run decode, prompts included: what they have once the prompts are in.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from laser_verifier.config import EngineConfig
from laser_verifier.sequence import Sequence
from laser_verifier.step_cost import StepCost

# Prompt tokens of a step at least, however dear: a prompt must come to its end.
_MIN_PROMPT_TOKENS = 16


def schedule(running: Seq[Sequence], config: EngineConfig, cost: StepCost | None) -> list[tuple[Sequence, int]]:
    """The sequences of the next step, each with how many of its pending tokens run.

    Args:
        running: in the order of admission.
        cost: of a forward; None leaves only the limit on tokens.
    """
    decoding = [sequence for sequence in running if sequence.num_pending == 1]
    prefilling = [sequence for sequence in running if sequence.num_pending > 1]
    room = config.max_step_tokens - len(decoding)
    if decoding and prefilling and cost is not None:
        allowed_s = config.max_slowdown * cost.of(len(running))
        allowed = cost.largest_within(allowed_s, config.max_step_tokens) - len(decoding)
        room = min(room, max(allowed, _MIN_PROMPT_TOKENS))
    return [(sequence, 1) for sequence in decoding] + share_room(prefilling, room)


def share_room(prefilling: Seq[Sequence], room: int) -> list[tuple[Sequence, int]]:
    """Shares the room for prompts: half to the oldest, so that none starves, the rest to those nearest to their end.

    A long prompt thus holds up no short one, and short ones that keep coming slow a long one down to half at most.
    """
    shares: dict[int, int] = {}
    if prefilling and room > 0:
        shares[0] = min(prefilling[0].num_pending, max(1, room // 2))
        room -= shares[0]
    for i in sorted(range(1, len(prefilling)), key=lambda i: prefilling[i].num_pending):
        shares[i] = min(prefilling[i].num_pending, room)
        room -= shares[i]
    if prefilling and room > 0:
        shares[0] += min(prefilling[0].num_pending - shares[0], room)
    return [(prefilling[i], num_tokens) for i, num_tokens in sorted(shares.items()) if num_tokens > 0]
