"""What verifiers found of trees that were grown together."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from laser_retriever.growth import Trees

# Columns of a table of outcomes: row of the tree among `Trees`; how many of its nodes, the first ones, were verified;
# the deepest accepted of them, or -1; tokens that the step emitted.
ROW, NUM_VERIFIED, ACCEPTED_NODE, NUM_EMITTED = range(4)


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """Of trees that are calibrated alike.

    Attributes:
        trees: as they were drafted.
        rows: an outcome each, in the order of the columns.
    """

    trees: Trees
    rows: list[tuple[int, int, int, int]] = field(default_factory=list)

    def table(self) -> NDArray[np.int64]:
        """int64[K, 4], see the columns."""
        return np.array(self.rows, np.int64)
