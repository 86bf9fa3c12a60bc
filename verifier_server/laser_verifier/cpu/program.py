"""Kernels that run one after another without a way back to Python between them.

A forward is some three hundred kernels of fractions of a millisecond. Each by itself costs its caller some ten
microseconds and its threads a start; so all are listed once, with the addresses they read and write, and a step only
fills in its numbers. The threads meet at a barrier after each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from laser_verifier.cpu.team import Kernel, Team
from laser_verifier.cpu.typed import HEADER, NEXT_TASK, NEXT_WORKER, NUM_TASKS


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel of a program.

    Attributes:
        kernel: compiled.
        num_tasks: that its threads share out.
        values: its arguments, as its docstring lists them.
        keeps: what must live as long as it, being known to it by address only.
    """

    kernel: Kernel
    num_tasks: int
    values: tuple[int, ...]
    keeps: tuple[object, ...] = ()


class Program:
    """A list of calls.

    Args:
        team: that runs it. calls: at least one.
    """

    def __init__(self, team: Team, calls: Sequence[Call]) -> None:
        self._team, self._calls = team, calls
        self._table = np.zeros((len(calls), HEADER + max(len(call.values) for call in calls)), np.int64)
        for row, call in zip(self._table, calls, strict=True):
            row[NUM_TASKS] = call.num_tasks
            row[HEADER : HEADER + len(call.values)] = call.values
        self._rows = {
            kernel: np.array([i for i, call in enumerate(calls) if call.kernel is kernel])
            for kernel in {call.kernel for call in calls}
        }
        self._addresses = np.array([call.kernel.address for call in calls], np.int64)
        self._arguments = np.array(
            [*[0] * HEADER, len(calls), self._table.ctypes.data, self._table.strides[0], self._addresses.ctypes.data,
             team.barrier],
            np.int64,
        )  # fmt: skip

    def set(self, kernel: Kernel, values: Mapping[int, int], num_tasks: int | None = None) -> None:
        """Changes arguments, by their place in its docstring's list, in all calls of a kernel; there may be none."""
        rows = self._rows.get(kernel)
        if rows is None:
            return
        for index, value in values.items():
            self._table[rows, HEADER + index] = value
        if num_tasks is not None:
            self._table[rows, NUM_TASKS] = num_tasks

    def run(self) -> None:
        """Runs all calls in order; returns when all are done."""
        self._table[:, NEXT_TASK] = 0
        self._table[:, NEXT_WORKER] = 0
        self._team.run(self._arguments.ctypes.data)
