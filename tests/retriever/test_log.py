"""The write-ahead log: torn, damaged, followed, failing and begun anew."""

from __future__ import annotations

import errno
import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from retriever_disks import FailingDisk, UnsyncedDisk

from laser_protocol.errors import StorageUnavailable
from laser_retriever.durable import Disk
from laser_retriever.log import COPIES, FRAME_MAGIC, HEADER_SIZE, LogReader, Record, encode_frames
from laser_retriever.log_writer import LogWriter

Read = list[tuple[int, str, list[int] | None]]


def record(document_id: str, *tokens: int) -> Record:
    return Record(document_id, np.array(tokens, np.int32) if tokens else None, 5)


def read(path: Path) -> Read:
    _, records = LogReader(path).poll()
    assert all(r.time_ms == 5 for _, r in records)
    return [(n, r.document_id, None if r.token_ids is None else r.token_ids.tolist()) for n, r in records]


def write(path: Path, *batches: list[Record], disk: Disk | None = None, first_sequence: int = 0) -> LogWriter:
    writer = LogWriter(disk or UnsyncedDisk(), path, first_sequence)
    for batch in batches:
        writer.append(batch)
    return writer


def test_records_come_back_in_order_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "log.wal"
    write(path, [record("a", 1, 2), record("b")], [record("ü", 3)], first_sequence=5).close()
    assert read(path) == [(5, "a", [1, 2]), (6, "b", None), (7, "ü", [3])]


def test_a_log_cut_at_any_byte_of_its_last_batch_keeps_all_before_it_and_is_written_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.wal"
    writer = write(path, [record("a", 1, 2)])
    keep = path.stat().st_size
    writer.append([record("b", 3, 4, 5)])
    writer.close()
    whole = path.read_bytes()
    middle = keep + (len(whole) - keep) // COPIES
    for size in range(keep, len(whole) + 1):
        path.write_bytes(whole[:size])
        expected: Read = [(0, "a", [1, 2])] + ([(1, "b", [3, 4, 5])] if size >= middle else [])
        assert read(path) == expected
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            recovered = write(path)
        assert ("log.recovered" in caplog.text) == (size not in (keep, middle, len(whole)))
        recovered.append([record("c", 6)])
        recovered.close()
        assert read(path) == [*expected, (len(expected), "c", [6])]


def test_a_flipped_bit_anywhere_loses_no_document_and_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.wal"
    write(path, [record("a", 1, 2), record("b", 3)], [record("c", 4)]).close()
    whole = path.read_bytes()
    expected = read(path)
    last_copy = len(whole) - (len(encode_frames(2, [record("c", 4)])) // COPIES)
    for i in range(len(whole)):
        for bit in (0, 7):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << bit)]) + whole[i + 1 :])
            caplog.clear()
            assert read(path) == expected
            # A damaged end cannot be told from one that is still being written; the next writer says what it cuts off.
            assert "log.damaged" in caplog.text or i < HEADER_SIZE or i >= last_copy
            recovered = write(path)
            recovered.close()
            assert read(path) == expected
            assert caplog.text or i < HEADER_SIZE


def test_when_all_copies_of_a_record_are_damaged_the_others_are_kept_and_the_message_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.wal"
    write(path, [record("a", 1)], [record("b", 222)], [record("c", 3)]).close()
    path.write_bytes(path.read_bytes().replace(np.array([222], "<i4").tobytes(), b"\0\0\0\0"))
    assert read(path) == [(0, "a", [1]), (2, "c", [3])]
    assert "log.lost" in caplog.text and "records=1-1" in caplog.text


def test_a_log_that_became_shorter_than_it_was_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.wal"
    write(path, [record("a", 1)], [record("b", 2)]).close()
    reader = LogReader(path)
    assert len(reader.poll()[1]) == 2
    whole = path.read_bytes()
    path.write_bytes(whole[: HEADER_SIZE + (len(whole) - HEADER_SIZE) // 2])
    restarted, records = reader.poll()
    assert (restarted, [r.document_id for _, r in records]) == (True, ["a"])
    assert "log.shrunk" in caplog.text


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "header is damaged"), (b"x" * 200, "header is damaged"), (None, "format version is 99")]
)
def test_what_is_no_log_of_this_format_gives_no_records_and_is_not_written_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes | None, message: str
) -> None:
    path = tmp_path / "log.wal"
    write(path, [record("a", 1)]).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + b"\x63" + whole[9:36] + whole[36:44] + b"\x63" + whole[45:] if data is None else data)
    before = path.read_bytes()
    assert read(path) == []
    assert message in caplog.text and str(path) in caplog.text
    with pytest.raises(StorageUnavailable, match=message):
        write(path)
    assert path.read_bytes() == before


def test_a_payload_that_is_no_record_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.wal"
    write(path, [record("a", 1)]).close()
    payload = encode_frames(1, [record("b", 2)])[12:][: -12 - len(encode_frames(1, [record("b", 2)])) // 2] + b"x"
    with path.open("ab") as file:
        file.write(struct.pack("<4sII", FRAME_MAGIC, len(payload), zlib.crc32(payload)) + payload)
        file.write(encode_frames(2, [record("c", 3)]))
    assert read(path) == [(0, "a", [1]), (2, "c", [3])]


def test_a_reader_follows_a_log_through_its_replacement(tmp_path: Path) -> None:
    path = tmp_path / "log.wal"
    reader = LogReader(path)
    assert reader.poll() == (False, [])
    writer = write(path, [record("a", 1)])
    restarted, records = reader.poll()
    assert (restarted, len(records)) == (True, 1)
    writer.append([record("b", 2)])
    restarted, records = reader.poll()
    assert (restarted, [r.document_id for _, r in records]) == (False, ["b"])
    mark = writer.mark()
    writer.append([record("c", 3)])
    writer.drop_before(mark)
    restarted, records = reader.poll()
    assert (restarted, [(n, r.document_id) for n, r in records]) == (True, [(2, "c")])
    writer.append([record("d", 4)])
    assert [(n, r.document_id) for n, r in reader.poll()[1]] == [(3, "d")]
    writer.close()
    path.unlink()
    assert reader.poll() == (True, [])


def test_a_batch_not_yet_written_to_its_end_is_read_once_it_is_and_once_only(tmp_path: Path) -> None:
    path = tmp_path / "log.wal"
    write(path).close()
    reader = LogReader(path)
    reader.poll()
    data = encode_frames(0, [record("a", 1, 2)])
    half = len(data) // 2
    for start, end, expected in ((0, 9, 0), (9, half + 3, 1), (half + 3, len(data), 0)):
        with path.open("ab") as file:
            file.write(data[start:end])
        assert len(reader.poll()[1]) == expected


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_after_a_failure_at_any_operation_nothing_more_goes_to_that_file_and_nothing_acknowledged_is_lost(
    tmp_path: Path, number: int
) -> None:
    error = OSError(number, "it failed")
    for at in range(20):
        path = tmp_path / f"{at}.wal"
        disk = FailingDisk()
        writer = write(path, [record("a", 1)], disk=disk)
        disk.error, disk.num_operations, disk._at = error, 0, at
        inode = path.stat().st_ino
        acknowledged: Read = [(0, "a", [1])]
        failures = 0
        for i in range(5):
            try:
                writer.append([record(f"b{i}", i + 2)])
                acknowledged.append((len(acknowledged), f"b{i}", [i + 2]))
            except StorageUnavailable as raised:
                failures += 1
                assert ("disk full" in str(raised)) == (number == errno.ENOSPC)
        assert failures == (at < 10)
        writer.close()
        assert (path.stat().st_ino == inode) == (at >= 8), "the append after the failed one goes to a new file"
        # The last record, if its sync failed, may have been stored or not.
        assert read(path)[: len(acknowledged)] == acknowledged


def test_a_log_that_is_read_in_pieces_comes_whole_into_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.wal"
    writer = write(path, [record("a", 1)], [record("b", 2, 3)], [record("c", 4)])
    mark = writer.mark()
    writer.append([record("d", *range(50))])
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: pread(descriptor, min(size, 7), offset))
    writer.drop_before(mark)
    assert read(path) == [(3, "d", list(range(50)))]
    assert path.stat().st_size == HEADER_SIZE + len(encode_frames(3, [record("d", *range(50))]))
    writer.close()


def test_a_log_from_which_acknowledged_bytes_are_gone_is_not_replaced_by_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "log.wal"
    writer = write(path)
    mark = writer.mark()
    writer.append([record("a", 1)])
    os.truncate(path, path.stat().st_size - 1)
    inode = path.stat().st_ino
    with pytest.raises(OSError, match=r"log\.wal ends at \d+, must have \d+ bytes"):
        writer.drop_before(mark)
    assert path.stat().st_ino == inode
    writer.close()
