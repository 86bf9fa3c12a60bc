"""Small files that say whether they are whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laser_retriever import checked_json
from laser_retriever.checked_json import DamagedJson, OtherVersion

VERSION = 3

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ['"', '["', "]", '\\"', "}", ",", "\n"]
)
values = st.lists(texts, max_size=9) | st.integers() | texts | st.dictionaries(texts, st.integers(), max_size=3)


@given(st.dictionaries(texts, values, max_size=5))
def test_what_was_encoded_is_decoded_and_is_plain_json(fields: dict[str, Any]) -> None:
    fields = {**fields, "format_version": VERSION}
    data = checked_json.encode(fields)
    assert checked_json.decode(data, VERSION) == fields
    first, second = data.split(b"\n")[:2]
    assert first == second
    body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    assert first.startswith(body[:-1] + b',"crc32":'), "other versions read it"


def test_lists_longer_than_a_portion_are_the_same_list() -> None:
    fields = {"ids": [f"u-{i}" for i in range(10_000)], "none": (), "format_version": VERSION}
    assert checked_json.decode(checked_json.encode(fields), VERSION) == {**fields, "none": []}
    assert json.loads(checked_json.encode(fields).splitlines()[0])["ids"] == fields["ids"]


@given(st.data())
def test_one_damaged_place_loses_nothing_and_damage_in_both_lines_is_told(data: st.DataObject) -> None:
    fields = {"ids": ["a", "b"], "format_version": VERSION}
    whole = checked_json.encode(fields)
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[place] ^= data.draw(st.integers(1, 255))
    assert checked_json.decode(bytes(damaged), VERSION) == fields
    half = len(whole) // 2
    damaged = bytearray(whole)
    for line in (0, half):
        damaged[line + 5] ^= 1
    with pytest.raises(DamagedJson):
        checked_json.decode(bytes(damaged), VERSION)


def test_another_version_is_told() -> None:
    with pytest.raises(OtherVersion, match="version is 4, this program reads 3"):
        checked_json.decode(checked_json.encode({"format_version": 4}), VERSION)
