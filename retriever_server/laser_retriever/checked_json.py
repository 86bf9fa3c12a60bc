"""Small JSON files that survive damage in one place: the same line twice, ending in its CRC-32."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

_CHECKSUM = b',"crc32":'
# Strings of a list that are encoded at once: the ids of a million documents would hold up every other thread.
_STRINGS_AT_ONCE = 4096


class DamagedJson(ValueError):
    """Neither line is what `encode` gave, or the format is another; the message says what would be right."""


class OtherVersion(DamagedJson):
    """Of another format, as far as one can see."""


def encode(fields: dict[str, Any]) -> bytes:
    """The file of these fields, one of which must be `format_version`."""
    body = ("{" + ",".join(f"{_dumps(name)}:{_dumps(value)}" for name, value in fields.items()) + "}").encode()
    return 2 * (body[:-1] + _CHECKSUM + _end(body))


def decode(data: bytes, format_version: int) -> dict[str, Any]:
    """The fields in a file.

    Raises:
        DamagedJson: says what is wrong.
        OtherVersion: that.
    """
    versions = set()
    for line in _lines(data):
        before, _, end = line.rpartition(_CHECKSUM)
        body = before + b"}"
        whole = end == _end(body)
        try:
            fields = _loads(body.decode()) if whole else json.loads(line)
            version = fields["format_version"]
        except (ValueError, KeyError, TypeError):
            continue
        if whole and version == format_version:
            return fields
        versions.add(version)
    if len(versions) == 1 and format_version not in versions:
        raise OtherVersion(f"its format version is {versions.pop()}, this program reads {format_version}")
    raise DamagedJson("it is damaged: no line has the CRC-32 that it names")


def _lines(data: bytes) -> Iterator[bytes]:
    """The two lines; then the halves, for of the lines' ends one may be what is damaged."""
    end = data.find(b"\n") + 1
    yield data[:end]
    yield data[end:]
    yield data[: len(data) // 2]
    yield data[len(data) // 2 :]


def _end(body: bytes) -> bytes:
    return b"%d}\n" % zlib.crc32(body)


def _dumps(value: Any) -> str:
    """As `json.dumps`, which lets no other thread run, in portions."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    portions = (value[start : start + _STRINGS_AT_ONCE] for start in range(0, len(value), _STRINGS_AT_ONCE))
    return "[" + ",".join(json.dumps(p, ensure_ascii=False, separators=(",", ":"))[1:-1] for p in portions) + "]"


def _loads(body: str) -> dict[str, Any]:
    """As `json.loads`; what `encode` wrote in portions."""
    try:
        return dict(_fields(body))
    except (ValueError, IndexError):  # another program's: with spaces, for instance
        return dict(json.loads(body))


def _fields(body: str) -> Iterator[tuple[str, Any]]:
    """The fields, lists of strings one string at a time."""
    value_at = json.JSONDecoder().raw_decode
    place = 0
    while body[place] != "}":
        name, place = value_at(body, place + 1)  # behind the bracket or a comma
        place += 1  # the colon
        if body.startswith('["', place):
            value = []
            while body[place] != "]":
                string, place = value_at(body, place + 1)
                value.append(string)
            place += 1
        else:
            value, place = value_at(body, place)
        yield name, value
