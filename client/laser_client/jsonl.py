"""Reads the JSON-lines inputs of `laser`. An unreadable line is an InvalidRequest naming file, line and field."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laser_client.pools import Document
from laser_client.request import Prompt, Request, Settings
from laser_protocol.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One prompt of a file.

    Attributes:
        id: as given, or the number of its line.
        has_own_id: whether it was given.
        prompt: text or token ids.
        pool: pool id to draft from, or None: the command's.
    """

    id: str | int
    has_own_id: bool
    prompt: Prompt
    pool: str | None


def read_prompts(path: Path, pool: str | None, settings: Settings) -> list[PromptLine]:
    """The lines `{"prompt": TEXT or [token ids], "id": optional, "pool": optional}` of a file; empty lines are skipped.

    Args:
        path: the file; "-" is standard input.
        pool: of lines that name none.
        settings: what the prompts will be generated with, so that what cannot be sent is found here.

    Raises:
        InvalidRequest: names file, line and field.
    """
    lines = []
    for number, fields in _read_objects(path):
        if "prompt" not in fields:
            raise _at(path, number, InvalidRequest("prompt is missing", field="prompt"))
        line = PromptLine(
            id=_read_id(path, number, fields) if "id" in fields else number,
            has_own_id="id" in fields,
            prompt=fields["prompt"],
            pool=fields.get("pool", pool),
        )
        try:
            Request(line.prompt, line.pool, str(line.id), settings)
        except InvalidRequest as error:
            raise _at(path, number, error) from None
        lines.append(line)
    return lines


def read_documents(path: Path) -> list[Document]:
    """The lines `{"id": ..., "output_token_ids": [...]}` of a file; other fields and empty lines are skipped.

    Raises:
        InvalidRequest: names file, line and field.
    """
    documents = []
    for number, fields in _read_objects(path):
        for name in ("id", "output_token_ids"):
            if name not in fields:
                raise _at(path, number, InvalidRequest(f"{name} is missing", field=name))
        document_id = str(_read_id(path, number, fields))
        token_ids = fields["output_token_ids"]
        if not isinstance(token_ids, list):
            wrong = InvalidRequest(
                f"output_token_ids is a {type(token_ids).__name__}, must be a list of token ids",
                field="output_token_ids",
            )
            raise _at(path, number, wrong)
        try:
            documents.append(Document.make(document_id, token_ids))
        except InvalidRequest as error:
            raise _at(path, number, error) from None
    return documents


def _read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1, and the JSON objects on them."""
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    fields = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise _at(path, number, InvalidRequest(f"no JSON: {error}")) from None
                if not isinstance(fields, dict):
                    raise _at(path, number, InvalidRequest("must be a JSON object, {...}"))
                yield number, fields
    except OSError as error:
        raise InvalidRequest(f"input {path}: {error.strerror}", field="input") from error


def _read_id(path: Path, number: int, fields: dict[str, Any]) -> str | int:
    value = fields["id"]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _at(path, number, InvalidRequest(f"id is {value!r}, must be a string or an integer", field="id"))
    return value


def _at(path: Path, number: int, error: InvalidRequest) -> InvalidRequest:
    return InvalidRequest(f"{path} line {number}: {error}", field=error.field)
