"""Segments: what is written comes back, and what is damaged is refused."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retriever_disks import FailingDisk, UnsyncedDisk

from laser_retriever import checked_json
from laser_retriever.durable import Disk
from laser_retriever.segment import (
    FORMAT_VERSION,
    MIN_MAPPED_BYTES,
    CorruptSegment,
    Segment,
    SegmentContent,
    StoredDocument,
    open_segment,
    write_segment,
)

documents_strategy = st.dictionaries(
    st.text(min_size=1, max_size=8), st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20), max_size=5
)


def write(directory: Path, documents: dict[str, list[int]], disk: Disk | None = None) -> Segment:
    content = SegmentContent(
        documents=[StoredDocument(key, np.array(tokens, np.int32), 7) for key, tokens in documents.items()],
        tombstones=["gone"],
        first_sequence=3,
        end_sequence=9,
        replaces=["seg-x"],
    )
    return open_segment(directory / write_segment(disk or UnsyncedDisk(), directory, content))


def documents_of(segment: Segment) -> dict[str, list[int]]:
    return {key: segment.index.document(i).tolist() for key, i in segment.document_idxs.items()}


@given(documents_strategy)
def test_a_segment_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, documents: dict[str, list[int]]
) -> None:
    directory = tmp_path_factory.mktemp("pool")
    name = write(directory, documents).name
    for into_memory in (False, True):
        read = open_segment(directory / name, into_memory=into_memory)
        assert documents_of(read) == documents
    assert read.meta.tombstones == ("gone",)
    assert (read.meta.first_sequence, read.meta.end_sequence, read.meta.replaces) == (3, 9, ("seg-x",))
    assert read.times_ms.tolist() == [7] * len(documents)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_segment_is_published_whole_or_not_at_all(tmp_path: Path, number: int) -> None:
    for at in range(40):
        disk = FailingDisk(OSError(number, "it failed"), at)
        directory = tmp_path / str(at)
        directory.mkdir()
        try:
            write(directory, {"a": [1, 2]}, disk)
        except OSError:
            left = list(directory.iterdir())
            # Once it is renamed, only the sync of its name can fail; then it is whole.
            assert left == [] or documents_of(open_segment(left[0])) == {"a": [1, 2]}
        else:
            assert at >= disk.num_operations
            return
    raise AssertionError("it never came through")


DERIVED = ["offsets.i64", "suffixes.i32", "times.i64"]


@pytest.mark.parametrize("file_name", DERIVED)
def test_what_follows_from_the_tokens_is_made_anew_where_a_bit_is_flipped_or_bytes_are_missing(
    tmp_path: Path, file_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    documents = {"a": [1, 2, 3], "b": [4]}
    segment = write(tmp_path, documents)
    suffixes = segment.index.suffixes.tolist()
    path = tmp_path / segment.name / file_name
    for damaged in damages(path.read_bytes()):
        path.write_bytes(damaged)
        caplog.clear()
        repaired = open_segment(tmp_path / segment.name)
        assert documents_of(repaired) == documents
        assert repaired.index.suffixes.tolist() == suffixes
        assert "segment.repaired" in caplog.text and file_name in caplog.text and segment.name in caplog.text
    path.unlink()
    assert documents_of(open_segment(tmp_path / segment.name)) == documents


def test_damage_in_one_place_of_what_a_segment_says_of_itself_changes_nothing(tmp_path: Path) -> None:
    documents = {"a": [1, 2, 3], "b": [4]}
    segment = write(tmp_path, documents)
    path = tmp_path / segment.name / "meta.json"
    whole = path.read_bytes()
    for damaged in damages(whole):
        path.write_bytes(damaged)
        if len(damaged) < len(whole) // 2:
            with pytest.raises(CorruptSegment, match=r"meta\.json: it is damaged"):
                open_segment(tmp_path / segment.name)
        else:
            assert open_segment(tmp_path / segment.name).meta == segment.meta


def test_a_damaged_token_is_never_served_and_costs_its_document_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    documents = {"a": [1, 2, 3], "b": [4]}
    segment = write(tmp_path, documents)
    path = tmp_path / segment.name / "tokens.i32"
    whole = path.read_bytes()
    for damaged in damages(whole):
        path.write_bytes(damaged)
        caplog.clear()
        opened = open_segment(tmp_path / segment.name)
        found = documents_of(opened)
        assert found.items() <= documents.items() and len(found) < 2
        assert len(found) == 1 or len(damaged) < len(whole)
        assert {*opened.meta.ids, *opened.meta.tombstones} == {"a", "b", "gone"}, "it hides what it hid"
        assert len(opened.times_ms) == len(found)
        assert "tokens.i32: has " in caplog.text and "must have" in caplog.text and segment.name in caplog.text
        assert f"lost_documents={2 - len(found)} of 2" in caplog.text
    path.unlink()
    assert documents_of(open_segment(tmp_path / segment.name)) == {}


def test_damaged_checksums_of_documents_matter_only_where_tokens_are_damaged_too(tmp_path: Path) -> None:
    documents = {"a": [1, 2, 3], "b": [4]}
    segment = write(tmp_path, documents)
    (tmp_path / segment.name / "checks.u32").write_bytes(b"")
    assert documents_of(open_segment(tmp_path / segment.name)) == documents
    (tmp_path / segment.name / "tokens.i32").write_bytes(b"")
    assert documents_of(open_segment(tmp_path / segment.name)) == {}


def damages(whole: bytes) -> Iterator[bytes]:
    """A bit flipped in every byte, and every truncation."""
    for i in range(len(whole)):
        yield whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :]
        yield whole[:i]


def test_a_segment_of_another_format_version_is_refused_by_its_number(tmp_path: Path) -> None:
    segment = write(tmp_path, {"a": [1]})
    path = tmp_path / segment.name / "meta.json"
    fields = checked_json.decode(path.read_bytes(), FORMAT_VERSION)
    path.write_bytes(checked_json.encode({**fields, "format_version": 99}))
    with pytest.raises(
        CorruptSegment, match=f"meta.json: its format version is 99, this program reads {FORMAT_VERSION}"
    ):
        open_segment(tmp_path / segment.name)


@pytest.mark.parametrize("num_tokens", [3, MIN_MAPPED_BYTES // 8], ids=["read", "mapped"])
def test_an_open_segment_outlives_its_files(tmp_path: Path, num_tokens: int) -> None:
    segment = write(tmp_path, {"a": list(range(num_tokens))})
    assert segment.index.tokens.flags.owndata == (num_tokens == 3)
    shutil.rmtree(tmp_path / segment.name)
    assert segment.index.document(0).tolist() == list(range(num_tokens))


def test_small_segments_keep_no_file_open_and_large_ones_two(tmp_path: Path) -> None:
    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    small = write(tmp_path, {"a": [1, 2]}).name
    large = write(tmp_path, {"a": list(range(MIN_MAPPED_BYTES // 8)), "b": [3]}).name
    for name, most in ((small, 0), (large, 2)):
        before = num_open()
        opened = [open_segment(tmp_path / name) for _ in range(10)]
        assert num_open() - before <= most * len(opened)


def test_a_damaged_token_among_very_many_documents_is_found_in_time(tmp_path: Path) -> None:
    documents = {str(i): [i] for i in range(100_000)}
    segment = write(tmp_path, documents)
    path = tmp_path / segment.name / "tokens.i32"
    data = bytearray(path.read_bytes())
    data[4 * 3 * 77 + 4] ^= 1  # a begin mark, the token, an end mark of each
    path.write_bytes(data)
    salvaged = open_segment(tmp_path / segment.name)
    assert len(salvaged.meta.ids) == 99_999
    assert salvaged.tombstones == {"gone", "77"}
    assert salvaged.tombstones is salvaged.tombstones, "asked for each document that is deleted"
