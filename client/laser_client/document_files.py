"""Documents of a pool as files: JSON lines or Parquet, in and out.

A row has `id` and `output_token_ids`. A Parquet file also names the tokenizer in its schema's metadata.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laser_client.jsonl import read_documents
from laser_client.output import finishing, import_pyarrow, open_writer
from laser_client.pools import Document
from laser_protocol.errors import InvalidRequest
from laser_protocol.packing import unpack_token_ids

_FINGERPRINT_KEY = b"laser.tokenizer_fingerprint"
_COLUMNS = ("id", "output_token_ids")


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """What was read.

    Attributes:
        documents: in the file's order.
        tokenizer_fingerprint: of the tokenizer whose ids they are made of; "" where the file does not say.
    """

    documents: list[Document]
    tokenizer_fingerprint: str = ""


def read_document_file(path: Path) -> DocumentFile:
    """Reads `.parquet` as Parquet and anything else as JSON lines; other fields are skipped.

    Raises:
        InvalidRequest: names file, line or row, and field; or Parquet without pyarrow.
    """
    return _read_parquet(path) if path.suffix == ".parquet" else DocumentFile(read_documents(path))


def write_document_file(path: Path, tokenizer_fingerprint: str, documents: Iterable[Document]) -> int:
    """Writes documents in the format that the path's ending names. Returns how many.

    The file appears when it is whole: an earlier one stays if the documents end in an error.

    Raises:
        InvalidRequest: another ending than .jsonl or .parquet; the file cannot be written; or Parquet without pyarrow.
    """

    def make_schema(pyarrow: Any) -> Any:
        fields = [("id", pyarrow.string()), ("output_token_ids", pyarrow.list_(pyarrow.int32()))]
        return pyarrow.schema(fields, metadata={_FINGERPRINT_KEY: tokenizer_fingerprint})

    num_documents = 0
    with finishing(open_writer(path, None, make_schema, in_place=False)) as writer:
        for document in documents:
            writer.write({"id": document.id, "output_token_ids": unpack_token_ids(document.packed_token_ids)})
            num_documents += 1
    return num_documents


def _read_parquet(path: Path) -> DocumentFile:
    pyarrow = import_pyarrow(path, "input")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            for name in _COLUMNS:
                if (number := schema.names.count(name)) != 1:
                    found = "is missing" if not number else f"stands {number} times, must stand once"
                    raise InvalidRequest(f"{path}: column {name} {found}", field=name)
            documents = [
                _make_document(path, row, fields)
                for row, fields in enumerate(
                    (fields for batch in file.iter_batches(columns=list(_COLUMNS)) for fields in batch.to_pylist()), 1
                )
            ]
    except OSError as error:
        raise InvalidRequest(f"input {path}: {error.strerror or error}", field="input") from error
    except pyarrow.ArrowException as error:
        raise InvalidRequest(f"input {path}: cannot be read as Parquet: {error}", field="input") from error
    return DocumentFile(documents, (schema.metadata or {}).get(_FINGERPRINT_KEY, b"").decode(errors="replace"))


def _make_document(path: Path, row: int, fields: dict[str, Any]) -> Document:
    document_id, token_ids = (fields[name] for name in _COLUMNS)
    try:
        if not isinstance(document_id, str | int) or isinstance(document_id, bool):
            raise InvalidRequest(f"id is {document_id!r}, must be a string or an integer", field="id")
        if not isinstance(token_ids, list):
            raise InvalidRequest(
                f"output_token_ids is {token_ids!r}, must be a list of token ids", field="output_token_ids"
            )
        return Document.make(str(document_id), token_ids)
    except InvalidRequest as error:
        raise InvalidRequest(f"{path} row {row}: {error}", field=error.field) from None
