"""Where the tail of a sequence occurred before, in segments and in the sequence itself. Pure kernels.

A match is one earlier occurrence of the tail: how many tokens before it agree, how much it counts, and where the tokens
that followed lie. Matches of all lengths are collected, longest first, each occurrence once with its true length; large
sets of short matches are sampled evenly. The tree then grows from the matches alone.

An index holds the places of its tokens sorted by what precedes them. One binary search finds where the tail would
stand; around it lie its matches, longest nearest. The searches of all sources go forward together, one halving each in
turn, so that the processor waits for their cache misses at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from laser_retriever.kernel import array_at, kernel, load_int32, prefetch, uint8_pointer
from laser_retriever.suffix_array import BEGIN_MARK, SORT_DEPTH

# Matches are taken in runs of lengths from one of these up to the next; each has its true length, up to the last.
SEARCH_LENGTHS = (1, 2, 3, 4, 6, 8, 11, 16, 24, 32)
MAX_MATCH_LENGTH = SORT_DEPTH
assert SEARCH_LENGTHS[-1] == MAX_MATCH_LENGTH

# Columns of a source table: addresses of int32 tokens, int32 suffixes and uint8 dead bits (0: none), token count, how
# far the source is from the sequence's pool (0 the pool itself, n its n-th ancestor), and the tokens [from, to) that
# nearer sources hold already.
TOKENS, SUFFIXES, DEAD, NUM_TOKENS, DISTANCE, SKIP_FROM, SKIP_TO = range(7)
NUM_COLUMNS = 7

# Origin of a match in the sequence itself; 1 + n: in a source of distance n.
OWN_TEXT = 0

# Where the search in one source stands: suffixes[LOW:HIGH] match at least as many tokens as searched for so far,
# suffixes[INNER_LOW:INNER_HIGH] more than that; BEFORE and AFTER tokens do the suffixes next to LOW and HIGH.
LOW, HIGH, INNER_LOW, INNER_HIGH, BEFORE, AFTER = range(6)

# One border of an interval while it is searched: the outermost suffix known to match, the innermost known not to and
# how many tokens that one does match; the suffix looked at.
GOOD, BAD, BAD_LENGTH, SUFFIX = range(4)
NUM_BORDER_COLUMNS = 4

# What a search looked at on its way: which suffix, and how many tokens of the query it matches.
PROBED, PROBED_LENGTH = range(2)
# As many halvings as 32-bit places can take.
MAX_PROBES = 32


class Matches(NamedTuple):
    """Room for M matches.

    Attributes:
        following: int64[M], address of the int32 token after the occurrence.
        lengths: int32[M], how many tokens before it agree.
        weights: float64[M], how much it counts.
        origins: int64[M], OWN_TEXT or 1 + distance of its source.
        bases: int32[M], depth of the node for which it was looked up.
    """

    following: NDArray[np.int64]
    lengths: NDArray[np.int32]
    weights: NDArray[np.float64]
    origins: NDArray[np.int64]
    bases: NDArray[np.int32]

    @staticmethod
    def room(size: int) -> Matches:
        """Room for `size` matches."""
        return Matches(
            np.empty(size, np.int64),
            np.empty(size, np.int32),
            np.empty(size, np.float64),
            np.empty(size, np.int64),
            np.empty(size, np.int32),
        )


class Searches(NamedTuple):
    """Room for searching K sources at once.

    Attributes:
        states: int64[K, 6], where each search stands, see the columns.
        suffixes: int64[K], the suffix looked at.
        borders: int64[2K, NUM_BORDER_COLUMNS], of each source the lower border and the upper.
        probes: int64[2K, MAX_PROBES, 2], what each source's search found below the query's place, and above: nearer and
            nearer to it, so never shorter matches.
        num_probes: int64[2K].
    """

    states: NDArray[np.int64]
    suffixes: NDArray[np.int64]
    borders: NDArray[np.int64]
    probes: NDArray[np.int64]
    num_probes: NDArray[np.int64]

    @staticmethod
    def room(num_sources: int) -> Searches:
        """Room for so many sources."""
        return Searches(
            np.empty((num_sources, 6), np.int64),
            np.empty(num_sources, np.int64),
            np.empty((2 * num_sources, NUM_BORDER_COLUMNS), np.int64),
            np.empty((2 * num_sources, MAX_PROBES, 2), np.int64),
            np.empty(2 * num_sources, np.int64),
        )


@kernel
def collect_segment_matches(
    sources: NDArray[np.int64],
    searches: Searches,
    query: NDArray[np.int32],
    search_lengths: NDArray[np.int64],
    max_per_search: int,
    enough: float,
    ancestor_weight: float,
    begin_bonus: int,
    vocab_size: int,
    base: int,
    matches: Matches,
    num_matches: int,
) -> int:
    """Appends the occurrences of the query's tails in all sources.

    Args:
        sources: int64[K, NUM_COLUMNS], see the column names. The arrays behind the addresses must be kept alive, begin
            with BEGIN_MARK and end with END_MARK.
        searches: room for as many sources.
        query: int32[Q], 1 <= Q <= MAX_MATCH_LENGTH, the tail to match; BEGIN_MARK at most in its first place.
        search_lengths: int64[], SEARCH_LENGTHS.
        max_per_search: most occurrences taken between one search length and the next; of more an even sample.
        enough: once this much weight is collected, shorter lengths are left out.
        ancestor_weight: what an occurrence counts, to the power of its source's distance.
        begin_bonus: tokens by which a match counts as longer that reaches a document's begin.
        vocab_size: an occurrence that no token below it follows is left out.
        base: depth of the node for which they are looked up.
        matches: filled from `num_matches` on.

    Returns:
        How many matches there are now.
    """
    states = searches.states
    _find_places(sources, searches, query)
    total = 0.0
    for search in range(len(search_lengths) - 1, -1, -1):
        if search_lengths[search] > len(query) or not _any_longer(sources, states, search_lengths[search]):
            continue
        num_found = _widen(sources, searches, query, search_lengths[search])
        if num_found == 0:
            continue
        stride = max(num_found / max_per_search, 1.0)
        first = num_matches
        for source in range(len(sources)):
            weight = ancestor_weight ** sources[source, DISTANCE]
            num_matches = _take(
                sources[source], states[source], search_lengths[search], stride, weight, matches, num_matches
            )
        num_matches = _measure(query, search_lengths[search], vocab_size, base, matches, first, num_matches)
        for i in range(first, num_matches):
            total += matches.weights[i]
            if matches.lengths[i] == len(query) and query[0] == BEGIN_MARK:
                matches.lengths[i] += begin_bonus
        if total >= enough:
            break
    return num_matches


@kernel
def _find_places(sources: NDArray[np.int64], searches: Searches, query: NDArray[np.int32]) -> None:
    """Fills in the states where the query would stand in each source, as an empty interval, and the probes."""
    # Fields are taken out once: a tuple of arrays is dear to look into.
    states, ends, probes, num_probes = searches.states, searches.suffixes, searches.probes, searches.num_probes
    num_sources = len(sources)
    size = len(query)
    for source in range(num_sources):
        states[source, LOW] = states[source, BEFORE] = states[source, AFTER] = 0
        states[source, HIGH] = sources[source, NUM_TOKENS]
        num_probes[2 * source] = num_probes[2 * source + 1] = 0
    num_searching = num_sources
    while num_searching > 0:
        # One loop that only loads, so that the loads of all sources are under way together.
        for source in range(num_sources):
            middle = (states[source, LOW] + states[source, HIGH]) >> 1
            if states[source, LOW] < states[source, HIGH]:
                ends[source] = load_int32(sources[source, SUFFIXES] + 4 * middle)
                prefetch(sources[source, TOKENS] + 4 * ends[source])
        num_searching = 0
        for source in range(num_sources):
            low = states[source, LOW]
            high = states[source, HIGH]
            if low >= high:
                continue
            # Everything between two neighbours agrees with the query as far as both do.
            known = min(states[source, BEFORE], states[source, AFTER])
            tokens, end = sources[source, TOKENS], ends[source]
            length = _match_length(tokens, end, query, known, size)
            middle = (low + high) >> 1
            if length < size and (length > end or load_int32(tokens + 4 * (end - length)) < query[size - 1 - length]):
                side = 2 * source
                states[source, LOW] = middle + 1
                states[source, BEFORE] = length
            else:
                side = 2 * source + 1
                states[source, HIGH] = middle
                states[source, AFTER] = length
            probes[side, num_probes[side], PROBED] = middle
            probes[side, num_probes[side], PROBED_LENGTH] = length
            num_probes[side] += 1
            num_searching += states[source, LOW] < states[source, HIGH]


@kernel
def _match_length(tokens: int, end: int, query: NDArray[np.int32], known: int, most: int) -> int:
    """With how many of the query's last tokens, up to `most`, the context that ends there agrees; with `known` it does.
    Tokens by address."""
    size = len(query)
    length = known
    while length < most and length <= end and load_int32(tokens + 4 * (end - length)) == query[size - 1 - length]:
        length += 1
    return length


@kernel
def _any_longer(sources: NDArray[np.int64], states: NDArray[np.int64], length: int) -> bool:
    """Whether a suffix next to one of the intervals matches at least `length` tokens."""
    for source in range(len(sources)):
        if states[source, LOW] > 0 and states[source, BEFORE] >= length:
            return True
        if states[source, HIGH] < sources[source, NUM_TOKENS] and states[source, AFTER] >= length:
            return True
    return False


@kernel
def _widen(sources: NDArray[np.int64], searches: Searches, query: NDArray[np.int32], length: int) -> int:
    """Widens the intervals to all suffixes that match at least `length` tokens. Returns how many are new.

    Each border lies where `_bracket` says; all are searched together by halving.
    """
    states, borders = searches.states, searches.borders
    num_sources = len(sources)
    num_searching = 0
    for side in range(2 * num_sources):
        _bracket(sources[side >> 1, NUM_TOKENS], searches, side, length)
        num_searching += abs(borders[side, BAD] - borders[side, GOOD]) > 1
    while num_searching > 0:
        for side in range(2 * num_sources):
            good, bad = borders[side, GOOD], borders[side, BAD]
            if abs(bad - good) > 1:
                borders[side, SUFFIX] = load_int32(sources[side >> 1, SUFFIXES] + 4 * ((good + bad) >> 1))
                prefetch(sources[side >> 1, TOKENS] + 4 * (borders[side, SUFFIX] - borders[side, BAD_LENGTH]))
        num_searching = 0
        for side in range(2 * num_sources):
            good, bad = borders[side, GOOD], borders[side, BAD]
            if abs(bad - good) <= 1:
                continue
            middle = (good + bad) >> 1
            tokens, known = sources[side >> 1, TOKENS], borders[side, BAD_LENGTH]
            found = _match_length(tokens, borders[side, SUFFIX], query, known, length)
            if found == length:
                borders[side, GOOD] = good = middle
            else:
                borders[side, BAD] = bad = middle
                borders[side, BAD_LENGTH] = found
            num_searching += abs(bad - good) > 1
    num_found = 0
    for source in range(num_sources):
        state = states[source]
        state[INNER_LOW], state[INNER_HIGH] = state[LOW], state[HIGH]
        state[LOW], state[BEFORE] = borders[2 * source, BAD] + 1, borders[2 * source, BAD_LENGTH]
        state[HIGH], state[AFTER] = borders[2 * source + 1, BAD], borders[2 * source + 1, BAD_LENGTH]
        num_found += state[INNER_LOW] - state[LOW] + state[HIGH] - state[INNER_HIGH]
    return num_found


@kernel
def _bracket(num_tokens: int, searches: Searches, side: int, length: int) -> None:
    """Fills in one border: the interval as it is, widened to the last probe that matches `length` tokens, and the first
    that does not."""
    state, border, probes = searches.states[side >> 1], searches.borders[side], searches.probes[side]
    is_upper = (side & 1) == 1
    nearest = state[HIGH] if is_upper else state[LOW] - 1
    nearest_length = state[AFTER] if is_upper else state[BEFORE]
    if not 0 <= nearest < num_tokens or nearest_length < length:
        border[GOOD] = nearest - 1 if is_upper else nearest + 1
        border[BAD] = nearest
        border[BAD_LENGTH] = nearest_length
        return
    border[GOOD] = nearest
    border[BAD] = num_tokens if is_upper else -1
    border[BAD_LENGTH] = 0
    for i in range(searches.num_probes[side] - 1, -1, -1):
        probed = probes[i, PROBED]
        if probes[i, PROBED_LENGTH] < length:
            border[BAD] = probed
            border[BAD_LENGTH] = probes[i, PROBED_LENGTH]
            return
        border[GOOD] = max(border[GOOD], probed) if is_upper else min(border[GOOD], probed)


@kernel
def _take(
    source: NDArray[np.int64],
    state: NDArray[np.int64],
    length: int,
    stride: float,
    weight: float,
    matches: Matches,
    num_matches: int,
) -> int:
    """Appends every `stride`-th of the suffixes that the last widening brought, to be measured; each counts `weight` x
    `stride`."""
    num_below = state[INNER_LOW] - state[LOW]
    num_found = num_below + state[HIGH] - state[INNER_HIGH]
    if num_found == 0:
        return num_matches
    tokens, suffixes = source[TOKENS], source[SUFFIXES]
    following, weights, origins = matches.following, matches.weights, matches.origins
    num_taken = int(np.ceil(num_found / stride))
    dead = array_at(uint8_pointer(source[DEAD]), ((source[NUM_TOKENS] + 7) >> 3,))
    for k in range(min(num_taken, len(following) - num_matches)):
        i = k * num_found // num_taken
        suffix_idx = state[LOW] + i if i < num_below else state[INNER_HIGH] + i - num_below
        end = np.int64(load_int32(suffixes + 4 * suffix_idx))
        if source[SKIP_FROM] <= end < source[SKIP_TO]:
            continue
        if source[DEAD] != 0 and (dead[end >> 3] >> (end & 7)) & 1:
            continue
        following[num_matches] = tokens + 4 * (end + 1)
        prefetch(tokens + 4 * (end + 1))
        prefetch(tokens + 4 * (end - length))
        weights[num_matches] = weight * num_found / num_taken
        origins[num_matches] = 1 + source[DISTANCE]
        num_matches += 1
    return num_matches


@kernel
def _measure(
    query: NDArray[np.int32], length: int, vocab_size: int, base: int, matches: Matches, first: int, num_matches: int
) -> int:
    """Fills in how long the matches from `first` on are, at least `length`, and leaves out what no token follows."""
    following, lengths, weights = matches.following, matches.lengths, matches.weights
    origins, bases = matches.origins, matches.bases
    size = len(query)
    kept = first
    for i in range(first, num_matches):
        place = following[i]
        if not 0 <= load_int32(place) < vocab_size:
            continue
        known = length
        # It ends at the document's begin at the latest: only the first token of a query may be a begin mark.
        while known < size and load_int32(place - 4 * known - 4) == query[size - 1 - known]:
            known += 1
        following[kept] = place
        lengths[kept] = known
        weights[kept] = weights[i]
        origins[kept] = origins[i]
        bases[kept] = base
        kept += 1
    return kept


@kernel
def collect_own_matches(
    tokens: NDArray[np.int32],
    address: int,
    query: NDArray[np.int32],
    weight: float,
    max_matches: int,
    vocab_size: int,
    base: int,
    matches: Matches,
    num_matches: int,
) -> int:
    """Appends the occurrences of the query's tails in the sequence itself, latest first. O(T).

    Args:
        tokens: int32[T], prompt and output so far; an END_MARK must lie behind them.
        address: of `tokens`.
        query: int32[Q], 1 <= Q <= MAX_MATCH_LENGTH: the end of `tokens`, or of a draft that continues them.
        weight: what one occurrence counts.
        max_matches: most occurrences taken; the others as in `collect_segment_matches`.

    Returns:
        How many matches there are now.
    """
    limit = min(num_matches + max_matches, len(matches.lengths))
    size = len(query)
    last = query[size - 1]
    # Nothing follows the last token.
    for end in range(len(tokens) - 2, -1, -1):
        if tokens[end] != last or tokens[end + 1] >= vocab_size:
            continue
        if num_matches >= limit:
            break
        length = 1
        while length < size and length <= end and tokens[end - length] == query[size - 1 - length]:
            length += 1
        matches.following[num_matches] = address + 4 * (end + 1)
        matches.lengths[num_matches] = length
        matches.weights[num_matches] = weight
        matches.origins[num_matches] = OWN_TEXT
        matches.bases[num_matches] = base
        num_matches += 1
    return num_matches
