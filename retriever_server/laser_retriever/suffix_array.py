"""Suffix arrays over int32 tokens: building, and finding where a query occurs. Pure kernels; no pools, no files.

The order is bounded: suffixes are sorted by their first SORT_DEPTH tokens, equal ones by position. Queries up to that
length see no difference from a full sort. Building is prefix doubling with linear passes (Manber and Myers, "Suffix
arrays: a new method for on-line string searches", 1993), stopped at the depth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from laser_retriever.kernel import kernel

SORT_DEPTH = 32

# Marks inside a token array. Neither is a token, so no query made of tokens matches across them.
END_MARK = -1
BEGIN_MARK = -2


def build_suffix_array(tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Sorts all suffixes by their first SORT_DEPTH tokens.

    Args:
        tokens: int32[T], T below 2^31, each at least BEGIN_MARK.

    Returns:
        int32[T], start positions in sorted order. O(T) passes, 16 bytes per token beside the result.
    """
    if len(tokens) == 0:
        return np.empty(0, np.int32)
    ranks = tokens.astype(np.int64) - BEGIN_MARK
    if int(ranks.max()) >= max(1 << 20, 4 * len(tokens)):
        # Few distinct ids far apart: a counting sort over their range would need more memory than the tokens.
        ranks = np.unique(tokens, return_inverse=True)[1].astype(np.int64)
    return _sort_suffixes(ranks.astype(np.int32), int(ranks.max()) + 1)


@kernel
def _sort_suffixes(ranks: NDArray[np.int32], num_ranks: int) -> NDArray[np.int32]:
    """Sorts suffixes of `ranks` (int32[T], overwritten, 0 <= rank < num_ranks)."""
    n = len(ranks)
    suffixes = np.empty(n, np.int32)
    starts = np.zeros(num_ranks + 1, np.int64)
    for i in range(n):
        starts[ranks[i] + 1] += 1
    for rank in range(num_ranks):
        starts[rank + 1] += starts[rank]
    cursors = np.empty(n, np.int32)
    place = starts.copy()
    for i in range(n):
        suffixes[place[ranks[i]]] = i
        place[ranks[i]] += 1
    # From here on a suffix's rank is the index where its bucket starts.
    for i in range(n):
        ranks[i] = starts[ranks[i]]
    ordered = np.empty(n, np.int32)
    depth = 1
    while depth < SORT_DEPTH:
        num_buckets = _double_depth(suffixes, ordered, ranks, cursors, depth)
        suffixes, ordered = ordered, suffixes
        depth *= 2
        if num_buckets == n:
            break
    return suffixes


@kernel
def _double_depth(
    suffixes: NDArray[np.int32],
    ordered: NDArray[np.int32],
    ranks: NDArray[np.int32],
    cursors: NDArray[np.int32],
    depth: int,
) -> int:
    """From order by `depth` tokens to order by twice that, in `ordered` and `ranks`. Returns the number of buckets."""
    n = len(suffixes)
    for i in range(n):
        cursors[i] = i
    # Suffixes no longer than `depth` have nothing behind it, which sorts first.
    for suffix in range(n - 1, max(n - depth, 0) - 1, -1):
        bucket = ranks[suffix]
        ordered[cursors[bucket]] = suffix
        cursors[bucket] += 1
    for i in range(n):
        suffix = suffixes[i] - depth
        if suffix >= 0:
            bucket = ranks[suffix]
            ordered[cursors[bucket]] = suffix
            cursors[bucket] += 1
    fresh = cursors
    num_buckets = 0
    last_rank = -1
    last_next = -1
    bucket = 0
    for i in range(n):
        suffix = ordered[i]
        rank = ranks[suffix]
        following = ranks[suffix + depth] if suffix + depth < n else -1
        if rank != last_rank or following != last_next:
            bucket = i
            num_buckets += 1
            last_rank = rank
            last_next = following
        fresh[suffix] = bucket
    for i in range(n):
        ranks[i] = fresh[i]
    return num_buckets


@kernel
def compare_suffix(tokens: NDArray[np.int32], start: int, query: NDArray[np.int32], begin: int, end: int) -> int:
    """-1, 0 or 1: the suffix at `start` sorts before, starts with, or sorts after `query[begin:end]`."""
    for i in range(end - begin):
        if start + i >= len(tokens):
            return -1
        token = tokens[start + i]
        wanted = query[begin + i]
        if token < wanted:
            return -1
        if token > wanted:
            return 1
    return 0


@kernel
def find_interval(
    tokens: NDArray[np.int32],
    suffixes: NDArray[np.int32],
    query: NDArray[np.int32],
    begin: int,
    end: int,
) -> tuple[int, int]:
    """Where `query[begin:end]` occurs.

    Args:
        tokens, suffixes: int32[T] each, as `build_suffix_array` makes them.
        query: int32 array; its part must have at most SORT_DEPTH tokens.

    Returns:
        (low, high): `suffixes[low:high]` are the positions of all occurrences. O(length x log T).
    """
    low = 0
    high = len(suffixes)
    while low < high:
        middle = (low + high) >> 1
        if compare_suffix(tokens, suffixes[middle], query, begin, end) < 0:
            low = middle + 1
        else:
            high = middle
    first = low
    # Most intervals are small: gallop to the end before searching it.
    step = 1
    high = first
    while high < len(suffixes) and compare_suffix(tokens, suffixes[high], query, begin, end) == 0:
        low = high + 1
        high += step
        step *= 2
    high = min(high, len(suffixes))
    while low < high:
        middle = (low + high) >> 1
        if compare_suffix(tokens, suffixes[middle], query, begin, end) == 0:
            low = middle + 1
        else:
            high = middle
    return first, low
