"""A framework: what is asked about users and items, read from a template file and checked before anything is asked.

The file is TOML. A prompt is its `context` (what is known) and its `instruction` (what to do); instruction-first puts
the instruction before the context, so that all prompts share a prefix which a server need not compute again.
"""

from __future__ import annotations

import importlib.resources
import json
import re
import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from laser_protocol.errors import InvalidRequest
from laser_protocol.pool_id import check_pool_id
from laser_recsys.errors import RecsysError

BUILTIN = ("kar", "once", "trawl", "rlmrec")
INSTRUCTION_FIRST = "-instruction-first"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,40}")
_ITEM_FIELDS = {"title", "year", "genres", "creator", "about", "facts"}
_ENTRY_FIELDS = _ITEM_FIELDS | {"stars", "rating", "place"}
_USER_FIELDS = {"history", "attributes"}
_NOUN_FIELDS = {"noun", "Noun"}


class TemplateError(RecsysError, ValueError):
    """A framework's template is wrong. The message names the file, the field and what would be right."""


class _Formatter(string.Formatter):
    """`str.format` with plain names only, and with `!j`: the value as JSON."""

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        return json.dumps(value, ensure_ascii=False) if conversion == "j" else value


_FORMATTER = _Formatter()


def fill(template: str, values: Mapping[str, object]) -> str:
    """The template with its fields replaced; lists outside `!j` are joined by commas."""
    conversions = {name for _, name, _, conversion in _FORMATTER.parse(template) if conversion == "j" and name}
    shown = {
        name: ", ".join(map(str, value)) if isinstance(value, list | tuple) and name not in conversions else value
        for name, value in values.items()
    }
    return _FORMATTER.vformat(template, (), shown)


@dataclass(frozen=True, slots=True)
class Template:
    """How one kind, users or items, is asked about.

    Attributes:
        context: what is known; users: with {history} and {attributes}, items: with the item's fields.
        instruction: what to do; knows the noun's fields only, so that it is the same for all.
        system: the chat template's system turn; empty: the model's own.
        entry: users: one item of the history.
        separator: users: between entries.
        history_len: users: how many of the newest ratings are shown, at least 1.
        about_words: how many words of an item's description {about} holds, at least 0.
        answer: "text", or "json": an object with "summarization" and "reasoning".
    """

    context: str
    instruction: str
    system: str = ""
    entry: str = ""
    separator: str = ", "
    history_len: int = 15
    about_words: int = 60
    answer: Literal["text", "json"] = "text"

    def join(self, context: str, instruction: str, instruction_first: bool) -> str:
        """The prompt of its two parts."""
        if instruction_first:
            return f"{instruction}\n\n{context.strip()}"
        return f"{context}{instruction}" if context.endswith("\n") else f"{context} {instruction}"


@dataclass(frozen=True, slots=True)
class Framework:
    """A framework: templates by kind, and the words that depend on what the items are.

    Attributes:
        name: component of the pools' ids.
        user, item: the templates; None: the framework asks nothing about these.
        nouns: {field: words} by noun ("movie", "book"); all have the same fields.
        instruction_first: whether the instruction stands first.
    """

    name: str
    user: Template | None
    item: Template | None
    nouns: Mapping[str, Mapping[str, str]]
    instruction_first: bool = False

    def template(self, kind: str) -> Template:
        """The template of "user" or "item".

        Raises:
            TemplateError: the framework has none.
        """
        template = self.user if kind == "user" else self.item
        if template is None:
            raise TemplateError(f"framework {self.name} has no [{kind}]")
        return template

    def noun_values(self, noun: str) -> dict[str, str]:
        """The fields that depend on what the items are.

        Raises:
            TemplateError: the framework does not know such items.
        """
        if self.nouns and noun not in self.nouns:
            raise TemplateError(f"framework {self.name} has no [nouns.{noun}]; it has {sorted(self.nouns)}")
        return {"noun": noun, "Noun": noun.capitalize(), **self.nouns.get(noun, {})}


def load_framework(name_or_path: str) -> Framework:
    """A built-in framework by name, or one's own by the path of its file; each also with `-instruction-first` appended.

    Raises:
        TemplateError: there is none, or its file is wrong; names the field and what would be right.
    """
    base = name_or_path.removesuffix(INSTRUCTION_FIRST)
    instruction_first = base != name_or_path
    if base in BUILTIN:
        source = f"{base}.toml"
        text = importlib.resources.files("laser_recsys.frameworks").joinpath(source).read_text(encoding="utf8")
    else:
        source = base
        try:
            text = Path(base).read_text(encoding="utf8")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(
                f"framework {base!r} is none of {', '.join(BUILTIN)} and no file in UTF-8: {error}"
            ) from error
    framework = parse_framework(source, text)
    if not instruction_first:
        return framework
    return Framework(framework.name + INSTRUCTION_FIRST, framework.user, framework.item, framework.nouns, True)


def parse_framework(source: str, text: str) -> Framework:
    """A framework out of its file's text; `source` names it in messages.

    Raises:
        TemplateError: names the field and what would be right.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TemplateError(f"{source} is no TOML: {error}") from error
    _check_keys(source, "", table, ("name", "source", "user", "item", "nouns"))
    name = table.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TemplateError(f"{source}: name is {name!r}, must match {_NAME.pattern}: it is part of pool ids")
    try:
        check_pool_id(name)
    except InvalidRequest as error:
        raise TemplateError(f"{source}: name is {name!r}, which is part of pool ids: {error}") from error
    nouns = table.get("nouns", {})
    if not isinstance(nouns, dict) or not all(
        isinstance(words, dict) and all(isinstance(word, str) for word in words.values()) for words in nouns.values()
    ):
        raise TemplateError(f"{source}: [nouns.X] must hold strings")
    if not any(isinstance(table.get(kind), dict) for kind in ("user", "item")):
        raise TemplateError(f"{source} has neither [user] nor [item]")
    own = {field for words in nouns.values() for field in words}
    for noun, words in nouns.items():
        if missing := sorted(own - _NOUN_FIELDS - words.keys()):
            raise TemplateError(f"{source}: [nouns.{noun}] lacks {missing[0]}, which another noun has: must hold it")
    common = _NOUN_FIELDS | own
    user, item = (_template(source, kind, table[kind], common) if kind in table else None for kind in ("user", "item"))
    return Framework(name, user, item, nouns)


def _template(source: str, kind: str, table: Mapping[str, Any], common: set[str]) -> Template:
    kinds: dict[str, type] = {field.name: str for field in fields(Template)} | {"history_len": int, "about_words": int}
    _check_keys(source, f"{kind}.", table, kinds)
    for field, value in table.items():
        if type(value) is not kinds[field]:
            raise TemplateError(f"{source}: {kind}.{field} is {value!r}, must be {kinds[field].__name__}")
    for field in ("context", "instruction", *(("entry",) if kind == "user" else ())):
        if not table.get(field, "").strip():
            raise TemplateError(f"{source}: {kind}.{field} is missing or empty")
    template = Template(**table)
    if template.answer not in ("text", "json"):
        raise TemplateError(f"{source}: {kind}.answer is {template.answer!r}, must be 'text' or 'json'")
    for field, least in (("history_len", 1), ("about_words", 0)):
        if getattr(template, field) < least:
            raise TemplateError(f"{source}: {kind}.{field} is {getattr(template, field)}, must be at least {least}")
    own = _USER_FIELDS if kind == "user" else _ITEM_FIELDS
    for field, allowed in (("context", own), ("entry", _ENTRY_FIELDS), ("instruction", set()), ("system", set())):
        _check_fields(source, f"{kind}.{field}", getattr(template, field), allowed | common)
    if kind == "user" and "{history}" not in template.context:
        raise TemplateError(f"{source}: user.context lacks {{history}}")
    return template


def _check_keys(source: str, prefix: str, table: Mapping[str, Any], known: Sequence[str] | Mapping[str, Any]) -> None:
    unknown = [key for key in table if key not in known]
    if unknown:
        raise TemplateError(f"{source}: {prefix}{unknown[0]} is unknown, must be one of {', '.join(known)}")


def _check_fields(source: str, where: str, template: str, allowed: set[str]) -> None:
    try:
        parsed = list(_FORMATTER.parse(template))
    except ValueError as error:
        raise TemplateError(f"{source}: {where}: {error} (a brace in the text is written twice)") from error
    for _, name, spec, conversion in parsed:
        if name is None:
            continue
        if name not in allowed:
            raise TemplateError(f"{source}: {where} has {{{name}}}, must be one of {', '.join(sorted(allowed))}")
        if spec or conversion not in (None, "j"):
            raise TemplateError(f"{source}: {where}: {{{name}}} may only be followed by !j")
