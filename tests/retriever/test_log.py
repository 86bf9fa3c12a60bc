"""The write-ahead log: torn, damaged, followed and out of order."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from laser_protocol.errors import StorageUnavailable
from laser_retriever.log import HEADER_SIZE, LogReader, LogWriter, Record, encode_frame


def record(document_id: str, *tokens: int) -> Record:
    return Record(document_id, np.array(tokens, np.int32) if tokens else None)


def read(path: Path) -> list[tuple[int, str, list[int] | None]]:
    _, records = LogReader(path).poll()
    return [(n, r.document_id, None if r.token_ids is None else r.token_ids.tolist()) for n, r in records]


def test_records_come_back_in_order_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "log.wal"
    writer = LogWriter(path, 5)
    writer.append([record("a", 1, 2), record("b")])
    writer.append([record("ü", 3)])
    writer.close()
    assert read(path) == [(5, "a", [1, 2]), (6, "b", None), (7, "ü", [3])]


def test_a_log_cut_at_any_byte_of_its_last_frame_keeps_all_before_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.wal"
    writer = LogWriter(path, 0)
    writer.append([record("a", 1, 2)])
    keep = path.stat().st_size
    writer.append([record("b", 3, 4, 5)])
    writer.close()
    whole = path.read_bytes()
    for size in range(keep, len(whole)):
        path.write_bytes(whole[:size])
        assert read(path) == [(0, "a", [1, 2])]
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            recovered = LogWriter(path, 0)
        assert ("log.recovered" in caplog.text) == (size > keep)
        assert path.stat().st_size == keep
        recovered.append([record("c", 6)])
        recovered.close()
        assert read(path) == [(0, "a", [1, 2]), (1, "c", [6])]


def test_a_flipped_bit_loses_one_document_at_most_and_never_gives_a_wrong_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.wal"
    writer = LogWriter(path, 0)
    frames = [record("a", 1, 2), record("b", 3), record("c", 4)]
    writer.append(frames)
    writer.close()
    whole = path.read_bytes()
    expected = [(0, "a", [1, 2]), (1, "b", [3]), (2, "c", [4])]
    for i in range(HEADER_SIZE, len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        found = read(path)
        assert len(found) == 2
        assert all(item in expected for item in found)
    assert "log.damaged" in caplog.text


def test_a_damaged_header_gives_no_records_and_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "log.wal"
    writer = LogWriter(path, 0)
    writer.append([record("a", 1)])
    writer.close()
    path.write_bytes(b"X" + path.read_bytes()[1:])
    assert read(path) == []
    with pytest.raises(StorageUnavailable, match=r"log\.wal is damaged"):
        LogWriter(path, 0)


def test_a_reader_sees_only_what_is_new_and_notices_another_log(tmp_path: Path) -> None:
    path = tmp_path / "log.wal"
    reader = LogReader(path)
    assert reader.poll()[1] == []
    writer = LogWriter(path, 0)
    writer.append([record("a", 1)])
    restarted, records = reader.poll()
    assert (restarted, len(records)) == (True, 1)
    writer.append([record("b", 2)])
    restarted, records = reader.poll()
    assert (restarted, [r.document_id for _, r in records]) == (False, ["b"])
    writer.close()
    path.unlink()
    LogWriter(path, 2).close()
    assert reader.poll() == (True, [])


def test_a_frame_not_yet_written_to_its_end_is_read_once_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log.wal"
    LogWriter(path, 0).close()
    reader = LogReader(path)
    frame = encode_frame(0, record("a", 1, 2))
    for part, expected in ((frame[:9], 0), (frame[9:], 1)):
        with path.open("ab") as file:
            file.write(part)
        assert len(reader.poll()[1]) == expected


def test_after_a_failed_sync_nothing_more_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(tmp_path / "log.wal", 0)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageUnavailable, match="Input/output error"):
            writer.append([record("a", 1)])
    with pytest.raises(StorageUnavailable, match="an earlier write"):
        writer.append([record("b", 2)])
    writer.close()


def test_a_full_disk_is_named_and_writing_goes_on_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.wal"
    writer = LogWriter(path, 0)
    whole_write = os.pwrite

    def half(descriptor: int, data: memoryview, offset: int) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole_write(descriptor, data[: len(data) // 2], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        with pytest.raises(StorageUnavailable, match="disk full"):
            writer.append([record("a", *range(1, 40))])
    writer.append([record("b", 2)])
    writer.close()
    assert read(path) == [(0, "b", [2])]
