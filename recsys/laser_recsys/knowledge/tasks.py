"""All tasks of one kind: a prompt for each user or item that has something to be asked from, in its group's pool."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from laser_recsys.frameworks.prompts import CountTokens, Prompt, PromptTooLong, PromptWriter
from laser_recsys.groups.groups import Groups
from laser_recsys.knowledge.rows import Task, pool_id


@dataclass(frozen=True, slots=True)
class WrittenTasks:
    """The tasks of one kind, and what is to be known of them.

    Attributes:
        kind: "user" or "item".
        tasks: in the order of the dataset's numbers.
        num_without_history: users that were left out.
        too_long: of each that was left out because its shortest prompt does not fit, the reason.
        num_shortened, num_dropped: prompts that were too long, and what they lost (ratings or words).
        measured: whether lengths were looked at.
        groups_without_tasks: groups whose pools nothing will fill.
    """

    kind: str
    tasks: list[Task]
    num_without_history: int
    too_long: list[str]
    num_shortened: int
    num_dropped: int
    measured: bool
    groups_without_tasks: list[int]

    def summary(self) -> str:
        """One line about lengths."""
        if not self.measured:
            return "lengths not measured (--model)"
        lost = "of the oldest ratings" if self.kind == "user" else "words of descriptions"
        return f"{self.num_shortened} were too long and lost {self.num_dropped} {lost}"

    def warnings(self) -> list[str]:
        """What the caller should know."""
        lines = []
        if self.num_without_history:
            lines.append(
                f"{self.num_without_history} users have no past ratings, so nothing to be asked from: left out"
            )
        if self.too_long:
            lines.append(
                f"{len(self.too_long)} {self.kind}s are left out, their prompts do not fit: {self.too_long[0]}"
            )
        lines += [
            f"group {group} of the {self.kind}s has no prompts: its pool stays empty"
            for group in self.groups_without_tasks
        ]
        return lines


def write_tasks(
    writer: PromptWriter, kind: str, groups: Groups, count_tokens: CountTokens | None, max_tokens: int
) -> WrittenTasks:
    """Writes the prompts of all users or items of the dataset.

    Args:
        writer: of the framework and the dataset.
        kind: "user" or "item".
        groups: of all users or items of the dataset.
        count_tokens: measures prompts; None: they are not measured.
        max_tokens: longest prompt.

    Raises:
        TemplateError: the framework asks nothing about this kind.
        ValueError: one was not grouped.
    """
    dataset = writer.dataset
    keys = sorted(dataset.users if kind == "user" else dataset.items)
    with_history = set(np.unique(writer.past.user_ids).tolist()) if kind == "user" else set(keys)
    asked = [key for key in keys if key in with_history]
    prompts = {key: writer.write(kind, key) for key in asked}
    too_long: list[str] = []
    if count_tokens is not None and prompts:
        lengths = count_tokens([prompt.text for prompt in prompts.values()], prompts[asked[0]].system)
        for key, length in zip(asked, lengths, strict=True):
            if length > max_tokens:
                try:
                    prompts[key] = writer.fitted(kind, key, count_tokens, max_tokens)
                except PromptTooLong as error:
                    too_long.append(str(error))
                    del prompts[key]
    tasks = [_task(dataset.name, prompt, groups, key) for key, prompt in prompts.items()]
    used = Counter(groups.of(key) for key in prompts)
    return WrittenTasks(
        kind=kind,
        tasks=tasks,
        num_without_history=len(keys) - len(asked),
        too_long=too_long,
        num_shortened=sum(prompt.num_dropped > 0 for prompt in prompts.values()),
        num_dropped=sum(prompt.num_dropped for prompt in prompts.values()),
        measured=count_tokens is not None,
        groups_without_tasks=[group for group in range(groups.num_groups) if not used[group]],
    )


def _task(dataset: str, prompt: Prompt, groups: Groups, key: int) -> Task:
    try:
        group = groups.of(key)
    except KeyError:
        raise ValueError(
            f"{prompt.kind} {prompt.id} is in no group: run 'laser-recsys group' on this dataset"
        ) from None
    return Task(prompt, pool_id(dataset, prompt.framework, prompt.kind, group))
