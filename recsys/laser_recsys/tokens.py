"""Prompts as tokens, as a verifier makes them: the model's tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Sequence

_BATCH = 1024
_INSTEAD = "take another framework or model"


class PromptTokenizer:
    """Tokenises prompts for one model.

    Args:
        model: model directory or hub id.

    Raises:
        OSError: there is no tokenizer.
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoTokenizer  # slow to import, and needed only where prompts are measured

        self._tokenizer = AutoTokenizer.from_pretrained(model)

    def token_ids(self, texts: Sequence[str], system: str = "") -> list[list[int]]:
        """Each text as the user's turn of the chat template, after a system turn if given; raw without a template.

        Raises:
            ValueError: the model has no template for the system turn, or its template refuses, as a verifier would.
        """
        if not self._tokenizer.chat_template:
            if system:
                raise ValueError(f"system is given, but the model has no chat template to hold it: {_INSTEAD}")
            return [list(ids) for ids in self._tokenizer(list(texts))["input_ids"]]
        from jinja2 import TemplateError  # as transformers: not everybody has it

        first = [{"role": "system", "content": system}] if system else []
        turns = [[*first, {"role": "user", "content": text}] for text in texts]
        try:
            encoded = self._tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except TemplateError as error:
            field = "system" if system else "the prompt"
            raise ValueError(f"{field} is refused by the model's chat template ({error}): {_INSTEAD}") from error
        return [list(ids) for ids in encoded["input_ids"]]

    def count(self, texts: Sequence[str], system: str = "") -> list[int]:
        """Tokens of each text."""
        return [
            len(ids)
            for start in range(0, len(texts), _BATCH)
            for ids in self.token_ids(texts[start : start + _BATCH], system)
        ]
