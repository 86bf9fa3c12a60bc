"""Small JSON files that survive damage in one place: the same line twice, ending in its CRC-32."""

from __future__ import annotations

import json
import zlib
from typing import Any

_CHECKSUM = b',"crc32":'


class DamagedJson(ValueError):
    """Neither line is what `encode` gave, or the format is another; the message says what would be right."""


class OtherVersion(DamagedJson):
    """Of another format, as far as one can see."""


def encode(fields: dict[str, Any]) -> bytes:
    """The file of these fields, one of which must be `format_version`."""
    body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    return 2 * (body[:-1] + _CHECKSUM + _end(body))


def decode(data: bytes, format_version: int) -> dict[str, Any]:
    """The fields in a file.

    Raises:
        DamagedJson: says what is wrong.
        OtherVersion: that.
    """
    versions = set()
    middle = len(data) // 2  # beside the lines' ends, one of which may be what is damaged
    for line in (*data.splitlines(keepends=True), data[:middle], data[middle:]):
        before, _, end = line.rpartition(_CHECKSUM)
        body = before + b"}"
        whole = end == _end(body)
        try:
            fields = json.loads(body if whole else line)
            version = fields["format_version"]
        except (ValueError, KeyError, TypeError):
            continue
        if whole and version == format_version:
            return dict(fields)
        versions.add(version)
    if len(versions) == 1 and format_version not in versions:
        raise OtherVersion(f"its format version is {versions.pop()}, this program reads {format_version}")
    raise DamagedJson("it is damaged: no line has the CRC-32 that it names")


def _end(body: bytes) -> bytes:
    return b"%d}\n" % zlib.crc32(body)
