"""What requests and documents may be at most: refused by callers before it is sent, by servers once it came."""

from __future__ import annotations

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_TEMPERATURE = 100.0
# Of the UTF-8 of a document's or request's id.
MAX_ID_BYTES = 256
MAX_DOCUMENT_TOKENS = 1_048_576
# Of one gRPC message, to either side.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
