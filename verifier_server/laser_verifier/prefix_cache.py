"""Which slots of the KV cache hold the beginning of a prompt already. Host-side; knows nothing of tensors or models.

Prompts of one job share their beginning: the chat template, the system message, an instruction that comes first. A slot
keeps its keys and values after its sequence has left, until the next one writes over them, and a running sequence's
prompt can be read as well: so the slots themselves are the prefix cache, and it takes no memory of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A shorter shared beginning is worth neither a copy nor waiting until another sequence has computed it.
MIN_PREFIX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """What the slots hold of a prompt's beginning.

    Attributes:
        slot_idx: the slot that holds most of it. num_tokens: how much; 0 if none holds MIN_PREFIX_TOKENS.
        is_coming: a sequence ahead is computing a longer beginning that is the same.
    """

    slot_idx: int
    num_tokens: int
    is_coming: bool


class PrefixCache:
    """The tokens whose keys and values stand in each slot, from place 0 on.

    Args:
        num_slots: S.
    """

    def __init__(self, num_slots: int) -> None:
        self._tokens: list[NDArray[np.int32]] = [np.empty(0, np.int32)] * num_slots
        self._heads = [b""] * num_slots
        self._num_held = [0] * num_slots

    def hold(self, slot_idx: int, token_ids: NDArray[np.int32], num_held: int) -> None:
        """From now on the slot holds the first `num_held` of these tokens, int32[n] (kept, not copied), and no others.

        The rest are those it will hold: a prompt's, while it is prefilled.
        """
        self._tokens[slot_idx] = token_ids
        self._heads[slot_idx] = _head(token_ids)
        self._num_held[slot_idx] = num_held

    def find(self, prompt: NDArray[np.int32], slots_ahead: Collection[int]) -> SharedPrefix:
        """What the slots hold of a prompt, int32[n], and whether waiting brings more.

        At most all but the prompt's last token: that one must run, for its logits. O(S), and O(n) for each slot that
        begins as it does: every prompt that waits is looked up in every step.

        Args:
            slots_ahead: slots of the sequences that run before this one; only for them it may wait.
        """
        best_idx, best, coming = 0, 0, 0
        prompt = prompt[:-1]
        head = _head(prompt)
        for slot_idx, num_held in enumerate(self._num_held):
            if self._heads[slot_idx] != head:
                continue
            shared = num_shared(prompt, self._tokens[slot_idx])
            if min(shared, num_held) > best:
                best_idx, best = slot_idx, min(shared, num_held)
            if shared > coming and slot_idx in slots_ahead:
                coming = shared
        return SharedPrefix(best_idx, best if best >= MIN_PREFIX_TOKENS else 0, coming >= best + MIN_PREFIX_TOKENS)


def _head(token_ids: NDArray[np.int32]) -> bytes:
    return token_ids[:MIN_PREFIX_TOKENS].tobytes()


def num_shared(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """Tokens that two sequences share from their begin on."""
    num_tokens = min(len(one), len(other))
    differing = np.flatnonzero(one[:num_tokens] != other[:num_tokens])
    return int(differing[0]) if len(differing) else num_tokens
