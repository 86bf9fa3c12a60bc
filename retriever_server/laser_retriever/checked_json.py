"""Small JSON files that survive damage in one place: the same line twice, its last field the CRC-32 of the others."""

from __future__ import annotations

import json
import zlib
from typing import Any

_CHECKSUM = "crc32"


class DamagedJson(ValueError):
    """Neither line is what `encode` gave, or the format is another; the message says what would be right."""


def encode(fields: dict[str, Any]) -> bytes:
    """The file of these fields, one of which must be `format_version`."""
    return 2 * _line(fields)


def decode(data: bytes, format_version: int) -> dict[str, Any]:
    """The fields in a file.

    Raises:
        DamagedJson: says what is wrong.
    """
    versions = set()
    middle = len(data) // 2  # beside the lines' ends, one of which may be what is damaged
    for line in (*data.splitlines(keepends=True), data[:middle], data[middle:]):
        try:
            fields = json.loads(line)
            versions.add(fields["format_version"])
            del fields[_CHECKSUM]
            # By the bytes, so that nothing that merely reads as the same value passes.
            if line == _line(fields) and fields["format_version"] == format_version:
                return dict(fields)
        except (ValueError, KeyError, TypeError):
            continue
    if len(versions) == 1 and format_version not in versions:
        raise DamagedJson(f"its format version is {versions.pop()}, this program reads {format_version}")
    raise DamagedJson("it is damaged: no line has the CRC-32 that it names")


def _line(fields: dict[str, Any]) -> bytes:
    return _dump({**fields, _CHECKSUM: zlib.crc32(_dump(fields))}) + b"\n"


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
