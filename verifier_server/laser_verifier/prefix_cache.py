"""Which slots of the KV cache hold the beginning of a prompt already. Host-side; knows nothing of tensors or models.

Prompts of one job share their beginning: the chat template, the system message, an instruction that comes first. A slot
keeps its keys and values after its sequence has left, until the next sequence writes over them, and a running sequence's
prompt can be read as well: so the slots themselves are the prefix cache, and it takes no memory of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A shorter shared beginning is not worth a copy, nor waiting for another sequence to compute it.
MIN_PREFIX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """The beginning of a prompt that a slot holds.

    Attributes:
        slot_idx: where. num_tokens: how long it is, at least MIN_PREFIX_TOKENS.
    """

    slot_idx: int
    num_tokens: int


class PrefixCache:
    """The tokens whose keys and values stand in each slot.

    Args:
        num_slots: S.
    """

    def __init__(self, num_slots: int) -> None:
        self._tokens: list[NDArray[np.int32]] = [np.empty(0, np.int32)] * num_slots

    def hold(self, slot_idx: int, token_ids: NDArray[np.int32]) -> None:
        """From now on the slot holds exactly these tokens, int32[n], from place 0 on (view kept, not copied)."""
        self._tokens[slot_idx] = token_ids

    def longest(self, prompt: NDArray[np.int32]) -> SharedPrefix | None:
        """The longest beginning of a prompt that any slot holds, or None. O(S x n).

        At most all but the prompt's last token: that one must run, for its logits.
        """
        best = SharedPrefix(-1, MIN_PREFIX_TOKENS - 1)
        for slot_idx, tokens in enumerate(self._tokens):
            num_tokens = num_shared(prompt[:-1], tokens)
            if num_tokens > best.num_tokens:
                best = SharedPrefix(slot_idx, num_tokens)
        return best if best.slot_idx >= 0 else None


def num_shared(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """Tokens that two sequences share from their begin on."""
    num_tokens = min(len(one), len(other))
    differing = np.flatnonzero(one[:num_tokens] != other[:num_tokens])
    return int(differing[0]) if len(differing) else num_tokens
