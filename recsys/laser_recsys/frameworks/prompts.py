"""Prompts about users and items of a dataset, in a framework's words, made to fit the model's length.

Only the past is shown: a prompt never knows a held-back rating.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from laser_recsys.datasets.dataset import Dataset, Item, Ratings
from laser_recsys.frameworks.template import Framework, Template, fill


class PromptTooLong(ValueError):
    """Even the shortest prompt about somebody does not fit. The message says what would be right."""


# Texts and their system messages to numbers of tokens, chat template included.
CountTokens = Callable[[Sequence[str], str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question to the LLM.

    Attributes:
        id: user or item id; the document's id in the pool.
        kind: "user" or "item".
        framework: its name.
        text: what is asked, before the chat template.
        system: the chat template's system turn; empty: the model's own.
        num_dropped: what was left out to fit: history entries of a user, description words of an item.
        answer: "text", or "json" where an object is asked for.
    """

    id: str
    kind: str
    framework: str
    text: str
    system: str = ""
    num_dropped: int = 0
    answer: str = "text"


@dataclass(frozen=True, slots=True)
class PromptWriter:
    """Writes prompts in one framework about one dataset.

    Attributes:
        framework: the words.
        dataset: titles, genres, descriptions.
        past: ratings that may be shown, of any users.
    """

    framework: Framework
    dataset: Dataset
    past: Ratings

    def user(self, user_id: int, num_dropped: int = 0) -> Prompt:
        """The question about one user, without the `num_dropped` oldest of the ratings that would be shown.

        Raises:
            ValueError: the user has no ratings in `past`.
        """
        template = self.framework.template("user")
        recent = self._shown(user_id)
        if not len(recent):
            raise ValueError(f"user {user_id} has no ratings to write a prompt from")
        nouns = self.framework.noun_values(self.dataset.noun)
        recent = recent.take(slice(num_dropped, None))
        entries = [
            fill(
                template.entry,
                {
                    **nouns,
                    **_item_values(self.dataset.items[item_id], template.about_words),
                    "stars": _stars(stars),
                    "rating": f"{stars:g}",
                    "place": place,
                },
            )
            for place, (item_id, stars) in enumerate(
                zip(recent.item_ids.tolist(), recent.stars.tolist(), strict=True), 1
            )
        ]
        user = self.dataset.users[user_id]
        values: dict[str, object] = {
            **nouns,
            "history": template.separator.join(entries),
            "attributes": ", ".join(f"{name}: {value}" for name, value in user.attributes.items()),
        }
        return self._prompt("user", user.id, values, num_dropped)

    def item(self, item_id: int, num_dropped: int = 0) -> Prompt:
        """The question about one item, without the last `num_dropped` words of the description that would be shown."""
        template = self.framework.template("item")
        item = self.dataset.items[item_id]
        values = _item_values(item, max(self._num_words(item, template) - num_dropped, 0))
        return self._prompt(
            "item", item.id, {**self.framework.noun_values(self.dataset.noun), **values}, num_dropped
        )  # fmt: skip

    def write(self, kind: str, key: int, num_dropped: int = 0) -> Prompt:
        """The question about a user or an item."""
        return self.user(key, num_dropped) if kind == "user" else self.item(key, num_dropped)

    def fitted(self, kind: str, key: int, count_tokens: CountTokens, max_tokens: int) -> Prompt:
        """The longest prompt that has at most `max_tokens`: the oldest history, or the description's end, is left out.

        Raises:
            PromptTooLong: it is longer even without them.
        """
        low, high = 0, self.num_droppable(kind, key)  # it fits with `high` dropped, or never
        while low < high:
            middle = (low + high) // 2
            prompt = self.write(kind, key, middle)
            low, high = (
                (low, middle) if count_tokens([prompt.text], prompt.system)[0] <= max_tokens else (middle + 1, high)
            )
        prompt = self.write(kind, key, high)
        num_tokens = count_tokens([prompt.text], prompt.system)[0]
        if num_tokens > max_tokens:
            raise PromptTooLong(
                f"{kind} {prompt.id}: the shortest {prompt.framework} prompt has {num_tokens} tokens, must have at "
                f"most {max_tokens}: a larger max_model_len, or fewer new tokens"
            )
        return prompt

    def num_droppable(self, kind: str, key: int) -> int:
        """How much can be left out: all history but the newest rating, or all words of the description."""
        if kind == "user":
            return len(self._shown(key)) - 1
        return self._num_words(self.dataset.items[key], self.framework.template("item"))

    def _shown(self, user_id: int) -> Ratings:
        return self.past.of_user(user_id).take(slice(-self.framework.template("user").history_len, None))

    @staticmethod
    def _num_words(item: Item, template: Template) -> int:
        return min(len(item.description.split()), template.about_words)

    def _prompt(self, kind: str, prompt_id: str, values: dict[str, object], num_dropped: int) -> Prompt:
        template = self.framework.template(kind)
        context, instruction = fill(template.context, values), fill(template.instruction, values)
        return Prompt(
            prompt_id,
            kind,
            self.framework.name,
            template.join(context, instruction, self.framework.instruction_first),
            fill(template.system, values),
            num_dropped,
            template.answer,
        )


def _item_values(item: Item, about_words: int) -> dict[str, object]:
    known = [*([str(item.year)] if item.year else []), *item.genres[:5]]
    return {
        "title": item.title,
        "year": item.year if item.year else "unknown",
        "genres": list(item.genres),
        "creator": item.creator or "unknown",
        "about": " ".join(item.description.split()[:about_words]),
        "facts": f" ({', '.join(known)})" if known else "",
    }


def _stars(stars: float) -> str:
    return "1 star" if stars == 1 else f"{stars:g} stars"
