from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from laser_recsys.datasets.dataset import Dataset, Item
from laser_recsys.frameworks.answers import knowledge_text, parse_answer
from laser_recsys.frameworks.prompts import PromptWriter
from laser_recsys.frameworks.template import BUILTIN, TemplateError, load_framework, parse_framework
from laser_recsys.groups.groups import Groups
from laser_recsys.knowledge.tasks import KindTasks

OWN = """
name = "own"
[user]
context = "Liked: {history}"
instruction = "What next?"
entry = "{title}"
"""


def words(texts: Sequence[str], system: str) -> list[int]:
    """A tokenizer whose tokens are words."""
    return [len(text.split()) + len(system.split()) for text in texts]


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("noun", ["movie", "book"])
@pytest.mark.parametrize("kind", ["user", "item"])
def test_every_framework_asks_about_users_and_items_of_every_kind_with_their_titles(
    dataset: Dataset, name: str, noun: str, kind: str
) -> None:
    writer = PromptWriter(load_framework(name), replace(dataset, noun=noun), dataset.ratings)
    prompt = writer.write(kind, 1)
    assert (prompt.id, prompt.kind, prompt.framework) == ("1", kind, name)
    assert "Toy Story" in prompt.text and noun in (prompt.text + prompt.system).lower()
    assert not re.search(r"\{\w", prompt.text + prompt.system) and "\\n" not in prompt.text


@pytest.mark.parametrize("name", BUILTIN)
def test_instruction_first_prompts_share_a_prefix_up_to_what_is_known(dataset: Dataset, name: str) -> None:
    writer = PromptWriter(load_framework(f"{name}-instruction-first"), dataset, dataset.ratings)
    first, second = writer.user(1), writer.user(2)
    assert first.framework == f"{name}-instruction-first"
    instruction = first.text.split("\n\n")[0]
    assert second.text.startswith(instruction) and len(instruction.split()) > 8


def test_rlmrec_shows_items_as_json_lines_and_asks_for_json(dataset: Dataset) -> None:
    prompt = PromptWriter(load_framework("rlmrec"), dataset, dataset.ratings).user(1)
    lines = [json.loads(line) for line in prompt.text.splitlines() if line.startswith("{")]
    assert [line["title"] for line in lines][:2] == ["Hunt for Red October, The", "Toy Story"]
    assert lines[0]["attributes"] == ["Action", "Thriller"]
    assert '{"summarization":' in prompt.system
    assert prompt.answer == "json"


def test_a_title_with_braces_and_quotes_stands_as_it_is(dataset: Dataset) -> None:
    items = {**dataset.items, 1: Item("1", 'The {odd} "one" {0}', 1990)}
    changed = replace(dataset, items=items)
    assert 'The {odd} "one" {0}' in PromptWriter(load_framework("kar"), changed, dataset.ratings).item(1).text
    line = PromptWriter(load_framework("rlmrec"), changed, dataset.ratings).item(1).text.splitlines()[0]
    assert json.loads(line)["title"] == 'The {odd} "one" {0}'


def test_a_template_of_ones_own_is_used_like_the_others(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    writer = PromptWriter(load_framework(str(path)), dataset, dataset.ratings)
    assert writer.user(1).text.endswith("Time of the Great Giving, unkonwn What next?")
    assert load_framework(f"{path}-instruction-first").name == "own-instruction-first"
    with pytest.raises(TemplateError, match=r"framework own has no \[item\]"):
        writer.item(1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "own"', 'name = "Own!"', "name is 'Own!', must match"),
        ('name = "own"', "", "name is None, must match"),
        ('name = "own"', 'name = "logic"', "name is 'logic', which is part of pool ids: .* none starting with"),
        ("[user]", "[person]", "person is unknown, must be one of name, source, user, item, nouns"),
        ("entry =", "entries =", "user.entries is unknown, must be one of context, instruction"),
        ('entry = "{title}"', "", "user.entry is missing or empty"),
        ("{title}", "{titel}", r"user.entry has \{titel\}, must be one of .*title"),
        ("{title}", "{title.__class__}", r"user.entry has \{title.__class__\}, must be one of"),
        ("{title}", "{title:>99}", r"user.entry: \{title\} may only be followed by !j"),
        ("{title}", "{title", "user.entry: .*a brace in the text is written twice"),
        ("{history}", "history", r"user.context lacks \{history\}"),
        ("What next?", "What {history}?", r"user.instruction has \{history\}, must be one of Noun, noun"),
        ('"{title}"', "7", "user.entry is 7, must be str"),
        ("[user]", "[user]\nhistory_len = 0", "user.history_len is 0, must be at least 1"),
        ("[user]", '[user]\nanswer = "xml"', "user.answer is 'xml', must be 'text' or 'json'"),
        ("[user]", "[user", "own.toml is no TOML"),
        ("[user]", "[nouns]\nmovie = 1\n[user]", r"\[nouns.X\] must hold strings"),
        (
            "[user]",
            '[nouns.cd]\nNoun = "CD"\nmood = "m"\n[nouns.book]\n[user]',
            r"\[nouns.book\] lacks mood, which another noun has: must hold it",
        ),
    ],
)
def test_a_wrong_template_is_named_with_field_value_and_what_is_right(old: str, new: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        parse_framework("own.toml", OWN.replace(old, new))


def test_a_framework_that_does_not_exist_is_an_error_that_lists_the_built_in_ones(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="is none of kar, once, trawl, rlmrec and no file"):
        load_framework(str(tmp_path / "nothing.toml"))


def test_a_prompt_that_is_too_long_loses_its_oldest_history_and_no_more_than_needed(dataset: Dataset) -> None:
    writer = PromptWriter(load_framework("kar"), dataset, dataset.ratings)
    whole = writer.user(1)
    assert writer.fitted("user", 1, words, words([whole.text], "")[0]) == whole
    shorter = writer.fitted("user", 1, words, words([whole.text], "")[0] - 1)
    assert shorter.num_dropped == 1
    assert "Hunt for Red October" in whole.text and "Hunt for Red October" not in shorter.text
    assert "unkonwn" in shorter.text
    with pytest.raises(ValueError, match=r"user 1: the shortest kar prompt has \d+ tokens, must have at most 10"):
        writer.fitted("user", 1, words, 10)


def test_an_item_prompt_that_is_too_long_loses_the_end_of_its_description(dataset: Dataset) -> None:
    described = replace(dataset.items[1], description=" ".join(f"w{n}" for n in range(50)))
    writer = PromptWriter(load_framework("trawl"), replace(dataset, items={1: described}), dataset.ratings)
    whole = words([writer.item(1).text], "")[0]
    shorter = writer.fitted("item", 1, words, whole - 20)
    assert (words([shorter.text], "")[0], shorter.num_dropped) == (whole - 20, 20)
    assert "w29" in shorter.text and "w30" not in shorter.text


def test_tasks_count_what_was_shortened_and_name_users_without_history_and_groups_without_prompts(
    dataset: Dataset,
) -> None:
    past = dataset.ratings.take(dataset.ratings.user_ids != 3)
    writer = PromptWriter(load_framework("kar"), dataset, past)
    past_keys = np.unique(past.user_ids)
    groups = Groups(past_keys, np.zeros_like(past_keys), 2, "by hand")
    longest = max(words([writer.user(int(key)).text], "")[0] for key in past_keys)
    written = KindTasks(writer, "user", groups, words, longest - 1)
    tasks = list(written)
    assert len(tasks) == written.num_tasks == written.num_asked == 11
    assert written.summary() == "11 were too long and lost 11 of the oldest ratings"
    assert {task.pool for task in tasks} == {"ml-100k/kar/user/0"}
    assert written.warnings() == [
        "1 users have no past ratings, so nothing to be asked from: left out",
        "group 1 of the users has no prompts: its pool stays empty",
    ]
    with pytest.raises(ValueError, match="user 1 is in no group: run 'laser-recsys group' on this dataset"):
        list(KindTasks(writer, "user", Groups(past_keys[1:], past_keys[1:] * 0, 1, ""), None, 0))


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ('{"summarization": "a", "reasoning": "b"}', ("a", "b")),
        ('Sure!\n```json\n{"reasoning": "b", "summarization": "a\nc"}\n```', ("a\nc", "b")),
        ('{"x": 1} {"summarization": "a", "reasoning": "b"}', ("a", "b")),
        ('{"summarization": "a", "reasoning": "b', None),
        ('{"summarization": "a"}', None),
        ('{"summarization": "", "reasoning": "b"}', None),
        ('{"summarization": ["a"], "reasoning": "b"}', None),
        pytest.param(2000 * '{"a": ' + '{"summarization": "a", "reasoning": "b"}', ("a", "b"), id="too deep"),
        pytest.param('{"a": ' + 5000 * "9" + "}", None, id="too long a number"),
        pytest.param('{"summarization": "\\ud83d a", "reasoning": "b"}', ("? a", "b"), id="half a character"),
        ("no object", None),
    ],
)
def test_a_json_answer_is_found_in_what_surrounds_it_or_fails(text: str, parsed: tuple[str, str] | None) -> None:
    answer = parse_answer(text)
    assert (None if answer is None else (answer.summarization, answer.reasoning)) == parsed
    assert knowledge_text(text) == (text if parsed is None else " ".join(parsed))
