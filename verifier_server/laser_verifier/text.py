"""Text out of tokens as they come: whole characters only, cut before the first stop string."""

from __future__ import annotations

from typing import Any

from tokenizers.decoders import DecodeStream


class TextStream:
    """Turns a sequence's tokens into text piece by piece; the pieces joined are its whole text.

    Args:
        tokenizer: a fast transformers tokenizer. Special tokens give no text.
        stop: strings that end the text before their first occurrence. Without any, nothing is decoded before `take`.

    Attributes:
        stopped: one of them did.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = stop
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._token_ids: list[int] = []
        self._num_decoded = 0
        self._pending: list[int] = []  # the last of those, which gave no text yet
        self._decoded = ""
        self._num_sent = 0

    def push(self, token_id: int) -> bool:
        """Takes one token. Returns True if a stop string is now complete; the text then ends before it."""
        self._token_ids.append(token_id)
        if self._stop:
            self._decode_new()
        return self.stopped

    def take(self) -> str:
        """Text that became final since the last call: nothing that may yet turn out to begin a stop string."""
        self._decode_new()
        end = len(self._decoded) - self._held_back()
        piece = self._decoded[self._num_sent : end]
        self._num_sent = max(self._num_sent, end)
        return piece

    def finish(self) -> str:
        """The rest of the text. It may be what completes a stop string: `stopped` tells."""
        self._decode_new()
        if not self.stopped:
            # A character whose last bytes never came is replaced as the tokenizer does it.
            whole = self._decode_all(self._token_ids)
            is_longer = whole.startswith(self._decoded)
            self._append(whole[len(self._decoded) :] if is_longer else self._decode_all(self._pending))
        piece = self._decoded[self._num_sent :]
        self._num_sent = len(self._decoded)
        return piece

    def _decode_new(self) -> None:
        for token_id in self._token_ids[self._num_decoded :]:
            self._num_decoded += 1
            piece = self._decode(token_id)
            if piece:
                self._pending.clear()
                self._append(piece)
            else:
                self._pending.append(token_id)

    def _append(self, piece: str) -> None:
        # A stop string may span pieces, so the search starts far enough back to see one that ends in this piece.
        start = max(0, len(self._decoded) - max((len(s) for s in self._stop), default=0))
        self._decoded += piece
        found = [at for at in (self._decoded.find(s, start) for s in self._stop) if at >= 0]
        if found:
            self._decoded, self.stopped = self._decoded[: min(found)], True

    def _decode(self, token_id: int) -> str | None:
        try:
            return self._decoder.step(self._tokenizer.backend_tokenizer, token_id)
        except Exception:
            # The library's stream gives up ("Invalid prefix encountered") where byte tokens form no valid UTF-8, as
            # vocabularies with byte fallback allow. A new one goes on from those bytes, which it replaces.
            self._decoder = DecodeStream(skip_special_tokens=True)
            for pending in self._pending:
                self._decoder.step(self._tokenizer.backend_tokenizer, pending)
            return self._decoder.step(self._tokenizer.backend_tokenizer, token_id)

    def _decode_all(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def _held_back(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        return max(map(self._begun, self._stop), default=0)

    def _begun(self, stop: str) -> int:
        """Length of the longest end of the text that begins this one and is not all of it."""
        at = self._decoded.find(stop[0], max(0, len(self._decoded) - len(stop) + 1))
        # Only where its first character stands: with long stop strings, trying every length would hold up the step.
        while at >= 0 and not stop.startswith(self._decoded[at:]):
            at = self._decoded.find(stop[0], at + 1)
        return len(self._decoded) - at if at >= 0 else 0
