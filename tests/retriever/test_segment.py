"""Segments: what is written comes back, and what is damaged is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laser_retriever.segment import CorruptSegment, Segment, open_segment, write_segment

documents_strategy = st.dictionaries(
    st.text(min_size=1, max_size=8), st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20), max_size=5
)


def write(directory: Path, documents: dict[str, list[int]]) -> Segment:
    pairs = [(key, np.array(tokens, np.int32)) for key, tokens in documents.items()]
    return write_segment(directory, pairs, tombstones=["gone"], first_sequence=3, end_sequence=9, replaces=["seg-x"])


@given(documents_strategy)
def test_a_segment_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, documents: dict[str, list[int]]
) -> None:
    directory = tmp_path_factory.mktemp("pool")
    written = write(directory, documents)
    read = open_segment(directory / written.name)
    assert read.meta == written.meta
    assert read.meta.tombstones == ("gone",)
    assert (read.meta.first_sequence, read.meta.end_sequence, read.meta.replaces) == (3, 9, ("seg-x",))
    assert {key: read.index.document(i).tolist() for key, i in read.document_idxs.items()} == documents


def test_a_segment_is_published_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, {"a": [1, 2]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file_name", ["tokens.i32", "offsets.i64", "suffixes.i32"])
def test_a_flipped_bit_anywhere_in_an_array_is_noticed(tmp_path: Path, file_name: str) -> None:
    segment = write(tmp_path, {"a": [1, 2, 3], "b": [4]})
    path = tmp_path / segment.name / file_name
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        with pytest.raises(CorruptSegment, match=file_name):
            open_segment(tmp_path / segment.name)


@pytest.mark.parametrize("file_name", ["tokens.i32", "offsets.i64", "suffixes.i32", "meta.json"])
def test_a_truncated_or_missing_file_is_noticed(tmp_path: Path, file_name: str) -> None:
    segment = write(tmp_path, {"a": [1, 2, 3]})
    path = tmp_path / segment.name / file_name
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptSegment):
        open_segment(tmp_path / segment.name)
    path.unlink()
    with pytest.raises(CorruptSegment, match="is missing"):
        open_segment(tmp_path / segment.name)


def test_a_segment_of_another_format_version_is_refused_by_its_number(tmp_path: Path) -> None:
    segment = write(tmp_path, {"a": [1]})
    path = tmp_path / segment.name / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(CorruptSegment, match="format version is 99"):
        open_segment(tmp_path / segment.name)


def test_an_open_segment_outlives_its_files(tmp_path: Path) -> None:
    segment = write(tmp_path, {"a": [5, 6, 7]})
    shutil.rmtree(tmp_path / segment.name)
    assert segment.index.document(0).tolist() == [5, 6, 7]
