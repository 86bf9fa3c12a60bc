"""What a tokenizer's fingerprint may look like."""

from __future__ import annotations

from laser_protocol.errors import InvalidRequest

# A sha256 in hexadecimal digits has 64. Longer ones would not fit into an error's details.
MAX_LEN = 128


def check_fingerprint(fingerprint: str) -> None:
    """Raises InvalidRequest unless it is 1 to MAX_LEN printable ASCII characters."""
    if not fingerprint:
        raise InvalidRequest("tokenizer_fingerprint is '', must be given", field="tokenizer_fingerprint")
    if len(fingerprint) > MAX_LEN or not (fingerprint.isascii() and fingerprint.isprintable()):
        raise InvalidRequest(
            f"tokenizer_fingerprint is {fingerprint[:80]!r}, {len(fingerprint)} characters long, must be at most "
            f"{MAX_LEN} printable ASCII characters: the sha256 that GetModel tells",
            field="tokenizer_fingerprint",
        )
