"""All tasks of one kind: a prompt for each user or item that has something to be asked from, in its group's pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from laser_recsys.frameworks.prompts import CountTokens, Prompt, PromptTooLong, PromptWriter
from laser_recsys.groups.groups import Groups
from laser_recsys.knowledge.rows import Task, pool_id, pool_root

_BATCH = 1024  # prompts measured together


class KindTasks:
    """The tasks of all users or items of a dataset, made one after the other; to be gone through once.

    Args:
        writer: of the framework and the dataset.
        kind: "user" or "item".
        groups: of all users or items of the dataset.
        count_tokens: measures prompts; None: they are not measured.
        max_tokens: longest prompt.
        split: that the prompts are made from (`split_mark`), which their pools are named after.

    Attributes:
        num_asked: how many users or items there is something to be asked from; those whose prompts do not fit get none.
        num_tasks: made so far.
    """

    def __init__(
        self,
        writer: PromptWriter,
        kind: str,
        groups: Groups,
        count_tokens: CountTokens | None,
        max_tokens: int,
        split: str = "",
    ) -> None:
        self._writer = writer
        self._kind = kind
        self._groups = groups
        self._count_tokens = count_tokens
        self._max_tokens = max_tokens
        dataset = writer.dataset
        self._pool_root = pool_root(dataset.name, split)
        keys = sorted(dataset.users if kind == "user" else dataset.items)
        with_history = set(np.unique(writer.past.user_ids).tolist()) if kind == "user" else set(keys)
        self._asked = [key for key in keys if key in with_history]
        self.num_asked = len(self._asked)
        self.num_tasks = 0
        self._num_without_history = len(keys) - len(self._asked)
        self._too_long: list[str] = []
        self._num_shortened = self._num_dropped = 0
        self._used_groups: set[int] = set()

    def __iter__(self) -> Iterator[Task]:
        """In the order of the dataset's numbers.

        Raises:
            TemplateError: the framework asks nothing about this kind.
            ValueError: one was not grouped.
        """
        for start in range(0, len(self._asked), _BATCH):
            for key, prompt in self._prompts(self._asked[start : start + _BATCH]):
                self.num_tasks += 1
                self._num_shortened += prompt.num_dropped > 0
                self._num_dropped += prompt.num_dropped
                yield Task(prompt, self._pool(prompt, key))

    def _prompts(self, keys: Sequence[int]) -> Iterator[tuple[int, Prompt]]:
        prompts = [self._writer.write(self._kind, key) for key in keys]
        if self._count_tokens is None:
            yield from zip(keys, prompts, strict=True)
            return
        lengths = self._count_tokens([prompt.text for prompt in prompts], prompts[0].system)
        for key, prompt, length in zip(keys, prompts, lengths, strict=True):
            if length <= self._max_tokens:
                yield key, prompt
                continue
            try:
                yield key, self._writer.fitted(self._kind, key, self._count_tokens, self._max_tokens)
            except PromptTooLong as error:
                self._too_long.append(str(error))

    def _pool(self, prompt: Prompt, key: int) -> str:
        try:
            group = self._groups.of(key)
        except KeyError:
            raise ValueError(
                f"{prompt.kind} {prompt.id} is in no group: run 'laser-recsys group' on this dataset"
            ) from None
        self._used_groups.add(group)
        return pool_id(self._pool_root, prompt.framework, prompt.kind, group)

    def summary(self) -> str:
        """One line about lengths, once all were made."""
        if self._count_tokens is None:
            return "lengths not measured (--model)"
        lost = "of the oldest ratings" if self._kind == "user" else "words of descriptions"
        return f"{self._num_shortened} were too long and lost {self._num_dropped} {lost}"

    def warnings(self) -> list[str]:
        """What the caller should know, once all were made."""
        lines = []
        if self._num_without_history:
            lines.append(
                f"{self._num_without_history} users have no past ratings, so nothing to be asked from: left out"
            )
        if self._too_long:
            lines.append(
                f"{len(self._too_long)} {self._kind}s are left out, their prompts do not fit: {self._too_long[0]}"
            )
        lines += [
            f"group {group} of the {self._kind}s has no prompts: its pool stays empty"
            for group in range(self._groups.num_groups)
            if group not in self._used_groups
        ]
        return lines
