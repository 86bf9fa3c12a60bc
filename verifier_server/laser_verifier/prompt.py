"""From a prompt's text to token ids: the model's chat template, or raw."""

from __future__ import annotations

from typing import Any

from laser_protocol.errors import InvalidRequest


def has_chat_template(tokenizer: Any) -> bool:
    """Whether text prompts become the user's turn of a chat."""
    return bool(getattr(tokenizer, "chat_template", None))


def encode_text(tokenizer: Any, text: str, raw: bool, system: str | None) -> list[int]:
    """Token ids of a text prompt.

    Args:
        raw: True takes the text as it stands; so does a model without a chat template.
        system: system turn; None leaves it to the template.

    Raises:
        InvalidRequest: the text is empty, or gives no token.
    """
    if not text.strip():
        raise InvalidRequest("prompt is empty, must be text or token ids", field="prompt")
    if raw or not has_chat_template(tokenizer):
        token_ids: list[int] = tokenizer.encode(text)
    else:
        turns = [] if system is None else [{"role": "system", "content": system}]
        turns.append({"role": "user", "content": text})
        rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        token_ids = tokenizer.encode(rendered, add_special_tokens=False)
    if not token_ids:
        raise InvalidRequest("prompt gives no token", field="prompt")
    return token_ids
