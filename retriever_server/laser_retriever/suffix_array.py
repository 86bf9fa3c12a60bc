"""Building suffix arrays over int32 tokens. Pure kernels; no pools, no files.

The order is bounded: suffixes are sorted by their first SORT_DEPTH tokens, equal ones by position. Queries up to that
length see no difference from a full sort. Building is prefix doubling with linear passes (Manber and Myers, "Suffix
arrays: a new method for on-line string searches", 1993), stopped at the depth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from laser_retriever.kernel import allocating_kernel, give_way, kernel

SORT_DEPTH = 32
# Places are 32-bit.
MAX_TOKENS = 2**31 - 1

# Tokens of a pass after which a build gives way to what drafts, less one: about half a millisecond.
_TURN = (1 << 16) - 1

# Marks inside a token array. Neither is a token, so no query made of tokens matches across them.
END_MARK = -1
BEGIN_MARK = -2


def build_suffix_array(tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Sorts all suffixes by their first SORT_DEPTH tokens.

    Args:
        tokens: int32[T], T at most MAX_TOKENS, each at least BEGIN_MARK.

    Returns:
        int32[T], start positions in sorted order. O(T) passes, 16 bytes per token beside the result.
    """
    return _sorted(tokens, is_reversed=False)


def build_context_array(tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Sorts all places by what precedes them: the suffix array of the reversed tokens.

    In this order the places whose last tokens agree with a query's stand around the place where the query itself would,
    the longest agreement nearest. So one binary search finds the matches of all lengths.

    Args:
        tokens: int32[T], as for `build_suffix_array`.

    Returns:
        int32[T]: i stands for the context tokens[i], tokens[i - 1], ..., which the token i + 1 continues. Of equal
        contexts the later comes first.
    """
    suffixes = _sorted(tokens, is_reversed=True)
    return np.subtract(len(tokens) - 1, suffixes, out=suffixes)


def _sorted(tokens: NDArray[np.int32], *, is_reversed: bool) -> NDArray[np.int32]:
    if len(tokens) == 0:
        return np.empty(0, np.int32)
    lowest, num_ranks = BEGIN_MARK, int(tokens.max()) - BEGIN_MARK + 1
    if num_ranks > max(1 << 20, 4 * len(tokens)):
        # Few distinct ids far apart: a counting sort over their range would need more memory than the tokens.
        tokens = np.unique(tokens, return_inverse=True)[1].astype(np.int32)
        lowest, num_ranks = 0, int(tokens.max()) + 1
    # Every caller's array alike, so that the kernel is compiled once.
    view = np.ascontiguousarray(tokens).view()
    view.flags.writeable = False
    return _sort_suffixes(view, is_reversed, lowest, num_ranks)


@allocating_kernel
def _sort_suffixes(tokens: NDArray[np.int32], is_reversed: bool, lowest: int, num_ranks: int) -> NDArray[np.int32]:
    """Sorts suffixes of `tokens`, or of them in reverse (int32[T], lowest <= token < lowest + num_ranks).

    All room is taken and given back in here: to give large arrays back holds whatever lock the caller holds.
    """
    n = len(tokens)
    ranks = np.empty(n, np.int32)
    for i in range(n):
        if i & _TURN == 0:
            give_way()
        ranks[i] = tokens[n - 1 - i if is_reversed else i] - lowest
    suffixes = np.empty(n, np.int32)
    starts = np.zeros(num_ranks + 1, np.int64)
    for i in range(n):
        if i & _TURN == 0:
            give_way()
        starts[ranks[i] + 1] += 1
    for rank in range(num_ranks):
        starts[rank + 1] += starts[rank]
    cursors = np.empty(n, np.int32)
    place = starts.copy()
    for i in range(n):
        if i & _TURN == 0:
            give_way()
        suffixes[place[ranks[i]]] = i
        place[ranks[i]] += 1
    # From here on a suffix's rank is the index where its bucket starts.
    for i in range(n):
        if i & _TURN == 0:
            give_way()
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
        if i & _TURN == 0:
            give_way()
        cursors[i] = i
    # Suffixes no longer than `depth` have nothing behind it, which sorts first.
    for suffix in range(n - 1, max(n - depth, 0) - 1, -1):
        bucket = ranks[suffix]
        ordered[cursors[bucket]] = suffix
        cursors[bucket] += 1
    for i in range(n):
        if i & _TURN == 0:
            give_way()
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
        if i & _TURN == 0:
            give_way()
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
        if i & _TURN == 0:
            give_way()
        ranks[i] = fresh[i]
    return num_buckets
