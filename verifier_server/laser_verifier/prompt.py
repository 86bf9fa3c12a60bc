"""From a prompt's text to token ids: the model's chat template, or raw."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from laser_protocol.errors import InvalidRequest


def has_chat_template(tokenizer: Any) -> bool:
    """Whether text prompts become the user's turn of a chat."""
    return bool(getattr(tokenizer, "chat_template", None))


def encode_text(tokenizer: Any, text: str, raw: bool, system: str | None) -> list[int]:
    """Token ids of a text prompt.

    Args:
        raw: True takes the text as it stands, white space too; so does a model without a chat template.
        system: system turn; None leaves it to the template.

    Raises:
        InvalidRequest: the text is empty or gives no token, or a system turn has no place.
    """
    if not (text if raw else text.strip()):
        raise InvalidRequest("prompt is empty, must be text or token ids", field="prompt")
    if raw or not has_chat_template(tokenizer):
        if system is not None:
            why = "raw is true" if raw else "the model has no chat template"
            raise InvalidRequest(f"system must not be given where {why}", field="system")
        token_ids: list[int] = tokenizer.encode(text)
    else:
        turns = [] if system is None else [{"role": "system", "content": system}]
        turns.append({"role": "user", "content": text})
        try:
            rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            field = "prompt" if system is None else "system"
            raise InvalidRequest(f"{field} is refused by the model's chat template: {error}", field=field) from error
        token_ids = tokenizer.encode(rendered, add_special_tokens=False)
    if not token_ids:
        raise InvalidRequest("prompt gives no token", field="prompt")
    return token_ids
