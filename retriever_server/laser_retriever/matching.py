"""Where the tail of a sequence occurred before, in segments and in the sequence itself. Pure kernels.

A match is one earlier occurrence of the tail: how many tokens before it agree, how much it counts, and the tokens that
followed. Matches of all lengths are collected, longest first, each occurrence once with its true length; large sets of
short matches are sampled evenly. After this no index is looked at any more: the tree grows from the matches alone.
"""

from __future__ import annotations

import numpy as np
from numba import carray
from numpy.typing import NDArray

from laser_retriever.kernel import int32_pointer, kernel, uint8_pointer
from laser_retriever.suffix_array import BEGIN_MARK, SORT_DEPTH, find_interval

# Lengths at which segments are searched; an occurrence found at one of them gets its true length, up to the last.
SEARCH_LENGTHS = (1, 2, 3, 4, 6, 8, 11, 16, 24, 32)
MAX_MATCH_LENGTH = SORT_DEPTH
assert SEARCH_LENGTHS[-1] == MAX_MATCH_LENGTH

# Columns of a source table: addresses of int32 tokens, int32 suffixes and uint8 dead bits (0: none), token count.
TOKENS, SUFFIXES, DEAD, NUM_TOKENS = range(4)
NUM_COLUMNS = 4


@kernel
def collect_segment_matches(
    sources: NDArray[np.int64],
    source_weights: NDArray[np.float64],
    query: NDArray[np.int32],
    search_lengths: NDArray[np.int64],
    vocab_size: int,
    max_per_search: int,
    enough: float,
    begin_bonus: int,
    continuations: NDArray[np.int32],
    lengths: NDArray[np.int32],
    weights: NDArray[np.float64],
    origins: NDArray[np.int32],
    num_matches: int,
) -> int:
    """Appends the occurrences of the query's tails in all sources.

    Args:
        sources: int64[K, NUM_COLUMNS], see the column names. The arrays behind the addresses must be kept alive.
        source_weights: float64[K], what one occurrence counts.
        query: int32[Q], Q <= MAX_MATCH_LENGTH, the tail to match.
        search_lengths: int64[], SEARCH_LENGTHS.
        vocab_size: a continuation ends before a token that is not below it.
        max_per_search: most occurrences taken of one source at one length; more are sampled evenly.
        enough: once this much weight is collected, shorter lengths are left out.
        begin_bonus: tokens by which a match counts as longer that reaches a document's begin.
        continuations: int32[M, D], filled: tokens that followed, -1 from where they end.
        lengths, weights, origins: [M], filled: match length, weight, index of the source.
        num_matches: how many there are already.

    Returns:
        How many there are now, at most M.
    """
    num_sources = len(sources)
    num_searches = len(search_lengths)
    lows = np.zeros((num_sources, num_searches), np.int64)
    highs = np.zeros((num_sources, num_searches), np.int64)
    size = len(query)
    for source in range(num_sources):
        n = sources[source, NUM_TOKENS]
        tokens = carray(int32_pointer(sources[source, TOKENS]), (n,))
        suffixes = carray(int32_pointer(sources[source, SUFFIXES]), (n,))
        for search in range(num_searches):
            if search_lengths[search] > size:
                break
            low, high = find_interval(tokens, suffixes, query, size - search_lengths[search], size)
            if low == high:
                break
            lows[source, search] = low
            highs[source, search] = high
    total = 0.0
    for search in range(num_searches - 1, -1, -1):
        if total >= enough:
            break
        # Occurrences that match at the next search length were taken there.
        below = search_lengths[search + 1] if search + 1 < num_searches else MAX_MATCH_LENGTH + 1
        for source in range(num_sources):
            if highs[source, search] > lows[source, search]:
                num_before = num_matches
                num_matches = _take_interval(
                    sources[source],
                    source,
                    source_weights[source],
                    query,
                    search_lengths[search],
                    below,
                    lows[source, search],
                    highs[source, search],
                    vocab_size,
                    max_per_search,
                    begin_bonus,
                    continuations,
                    lengths,
                    weights,
                    origins,
                    num_matches,
                )
                for i in range(num_before, num_matches):
                    total += weights[i]
    return num_matches


@kernel
def _take_interval(
    row: NDArray[np.int64],
    source: int,
    source_weight: float,
    query: NDArray[np.int32],
    length: int,
    below: int,
    low: int,
    high: int,
    vocab_size: int,
    max_per_search: int,
    begin_bonus: int,
    continuations: NDArray[np.int32],
    lengths: NDArray[np.int32],
    weights: NDArray[np.float64],
    origins: NDArray[np.int32],
    num_matches: int,
) -> int:
    """Appends the occurrences `suffixes[low:high]` of the last `length` tokens that match fewer than `below`."""
    tokens = carray(int32_pointer(row[TOKENS]), (row[NUM_TOKENS],))
    suffixes = carray(int32_pointer(row[SUFFIXES]), (row[NUM_TOKENS],))
    dead = carray(uint8_pointer(row[DEAD]), ((row[NUM_TOKENS] + 7) >> 3,))
    size = len(query)
    max_depth = continuations.shape[1]
    taken = min(high - low, max_per_search)
    weight = source_weight * (high - low) / taken
    for k in range(taken):
        if num_matches >= len(lengths):
            break
        start = suffixes[low + k * (high - low) // taken]
        if row[DEAD] != 0 and (dead[start >> 3] >> (start & 7)) & 1:
            continue
        match_length = length
        while (
            match_length < size
            and start > match_length - length
            and tokens[start - 1 - (match_length - length)] == query[size - 1 - match_length]
        ):
            match_length += 1
        if match_length >= below:
            continue
        position = start + length
        depth = 0
        while depth < max_depth and position < len(tokens) and 0 <= tokens[position] < vocab_size:
            continuations[num_matches, depth] = tokens[position]
            depth += 1
            position += 1
        if depth == 0:
            continue
        if depth < max_depth:
            continuations[num_matches, depth] = -1
        if match_length == size and query[0] == BEGIN_MARK:
            match_length += begin_bonus
        lengths[num_matches] = match_length
        weights[num_matches] = weight
        origins[num_matches] = source
        num_matches += 1
    return num_matches


@kernel
def collect_own_matches(
    tokens: NDArray[np.int32],
    query: NDArray[np.int32],
    weight: float,
    origin: int,
    vocab_size: int,
    max_matches: int,
    continuations: NDArray[np.int32],
    lengths: NDArray[np.int32],
    weights: NDArray[np.float64],
    origins: NDArray[np.int32],
    num_matches: int,
) -> int:
    """Appends the occurrences of the query's tails in the sequence itself, latest first. O(T).

    Args:
        tokens: int32[T], prompt and output so far.
        query: int32[Q], 1 <= Q <= MAX_MATCH_LENGTH: the end of `tokens`, or of a draft that continues them.
        max_matches: most occurrences taken; the others as in `collect_segment_matches`.

    Returns:
        How many matches there are now.
    """
    max_depth = continuations.shape[1]
    limit = min(num_matches + max_matches, len(lengths))
    num_tokens = len(tokens)
    size = len(query)
    last = query[size - 1]
    for end in range(num_tokens - 1, -1, -1):
        if num_matches >= limit:
            break
        if tokens[end] != last:
            continue
        match_length = 1
        while (
            match_length < size and match_length <= end and tokens[end - match_length] == query[size - 1 - match_length]
        ):
            match_length += 1
        depth = 0
        while depth < max_depth and end + 1 + depth < num_tokens and 0 <= tokens[end + 1 + depth] < vocab_size:
            continuations[num_matches, depth] = tokens[end + 1 + depth]
            depth += 1
        if depth == 0:
            continue
        if depth < max_depth:
            continuations[num_matches, depth] = -1
        lengths[num_matches] = match_length
        weights[num_matches] = weight
        origins[num_matches] = origin
        num_matches += 1
    return num_matches
