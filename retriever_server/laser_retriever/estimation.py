"""How probable the tokens are that follow a node's matches. Pure kernels.

The matches that agree with a node's path vote on the next token. A conditional logit (McFadden, "Conditional logit
analysis of qualitative choice behavior", 1974; as a language model: Rosenfeld, "A maximum entropy approach to adaptive
statistical language modelling", 1996) turns the votes into probabilities, exclusive among siblings and with one outcome
for a token never seen here. Its features say, for the sequence's own matches and for the pools' apart: how long the
longest match is that continues with the token, what share of the longest matches and of all matches does, and how many.
So it backs off from long matches to short ones as far as recorded outputs have shown to be right (`fitting.py`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from laser_retriever.kernel import kernel, load_int32, prefetch
from laser_retriever.matching import OWN_TEXT, Matches

# Features of one child that are not 0: per side a match length, a share by match length, and three scalars.
NUM_ENTRIES = 10

# Tokens told apart at one node; matches come longest first, so further ones have the least evidence: they only count
# in the sum.
MAX_CHILDREN = 48

# Added to shares before their logarithm is taken; the logarithms of no share and of the whole.
_IN_LONGEST = 0.01
_IN_ALL = 0.001
_LOG_NONE_LONGEST = math.log(_IN_LONGEST)
_LOG_WHOLE_LONGEST = math.log(1.0 + _IN_LONGEST)
_LOG_NONE = math.log(_IN_ALL)
_LOG_WHOLE = math.log(1.0 + _IN_ALL)


class Children(NamedTuple):
    """Room for the children of one node, and in the row after MAX_CHILDREN for all others together.

    Attributes:
        tokens: int64[C].
        starts: int64[C + 2], where the matches of each begin in `order`; each child's end where the next one's begin.
        origins: int64[C], OWN_TEXT if only the sequence itself speaks for it, else that of the nearest source that
            does.
        levels: int64[C], level of the longest match there.
        conditionals: float64[C], probability given the node, as fitted.
        probs: float64[C], the same after online calibration.
        longest: int64[C + 1, 2], level of the longest match in the sequence itself and in the pools, -1 for none.
        votes: float64[C + 1, 2, 2], weight of the matches of that level and of all, in each of the two.
        feature_ids, values: [C + 1, NUM_ENTRIES], which features are not 0, and what they are.
    """

    tokens: NDArray[np.int64]
    starts: NDArray[np.int64]
    origins: NDArray[np.int64]
    levels: NDArray[np.int64]
    conditionals: NDArray[np.float64]
    probs: NDArray[np.float64]
    longest: NDArray[np.int64]
    votes: NDArray[np.float64]
    feature_ids: NDArray[np.int64]
    values: NDArray[np.float64]

    @staticmethod
    def room() -> Children:
        """Room for MAX_CHILDREN."""
        return Children(
            np.empty(MAX_CHILDREN, np.int64),
            np.empty(MAX_CHILDREN + 2, np.int64),
            np.empty(MAX_CHILDREN, np.int64),
            np.empty(MAX_CHILDREN, np.int64),
            np.empty(MAX_CHILDREN),
            np.empty(MAX_CHILDREN),
            np.empty((MAX_CHILDREN + 1, 2), np.int64),
            np.empty((MAX_CHILDREN + 1, 2, 2)),
            np.empty((MAX_CHILDREN + 1, NUM_ENTRIES), np.int64),
            np.empty((MAX_CHILDREN + 1, NUM_ENTRIES)),
        )


def num_features(num_levels: int) -> int:
    """How many features a child has with that many levels."""
    return 6 * (num_levels + 1) + 8


@kernel
def split_matches(
    matches: Matches,
    levels: NDArray[np.int64],
    order: NDArray[np.int64],
    scratch: NDArray[np.int64],
    child_of: NDArray[np.int64],
    begin: int,
    end: int,
    depth: int,
    max_depth: int,
    vocab_size: int,
    children: Children,
) -> int:
    """Groups a node's matches by the token at `depth` and sums up what speaks for each. Returns the number of children.

    Args:
        matches, order: those of the node are `order[begin:end]`, longest first; regrouped.
        levels: int64[], back-off level of each match length; longer ones have the last.
        scratch, child_of: int64[M], room.
        depth: of the node.
        max_depth: how many tokens behind a match count.
        vocab_size: ids from there on count as no token.
        children: filled but for `levels`, the probabilities and the features.
    """
    # Fields are taken out once: a tuple of arrays is dear to pass on and to look into, match by match.
    following, lengths, weights = matches.following, matches.lengths, matches.weights
    origins, bases = matches.origins, matches.bases
    tokens, starts, child_origins = children.tokens, children.starts, children.origins
    votes, longest = children.votes, children.longest
    num_children = 0
    num_lost = 0
    _clear(longest, votes, MAX_CHILDREN)
    for i in range(begin, end):
        match = order[i]
        past = depth - bases[match]
        place = following[match] + 4 * past
        prefetch(place + 64)  # the next nodes' tokens
        token = load_int32(place) if past < max_depth else np.int32(-1)
        if not 0 <= token < vocab_size:
            child_of[i] = MAX_CHILDREN
            num_lost += 1
            continue
        child = 0
        while child < num_children and tokens[child] != token:
            child += 1
        if child == num_children and child < MAX_CHILDREN:
            tokens[child] = token
            starts[child] = 0
            child_origins[child] = OWN_TEXT
            _clear(longest, votes, child)
            num_children += 1
        child_of[i] = child
        origin = origins[match]
        if child < MAX_CHILDREN:
            starts[child] += 1
            if child_origins[child] == OWN_TEXT or OWN_TEXT < origin < child_origins[child]:
                child_origins[child] = origin
        else:
            num_lost += 1
        level = levels[min(lengths[match] + past, len(levels) - 1)]
        side = 0 if origin == OWN_TEXT else 1
        votes[child, side, 1] += weights[match]
        if level > longest[child, side]:
            longest[child, side] = level
            votes[child, side, 0] = weights[match]
        elif level == longest[child, side]:
            votes[child, side, 0] += weights[match]
    if num_children == 1 and num_lost == 0:
        starts[0] = begin
        starts[1] = end
    else:
        _regroup(order, scratch, child_of, begin, end, num_children, starts)
    return num_children


@kernel
def _clear(longest: NDArray[np.int64], votes: NDArray[np.float64], child: int) -> None:
    for side in range(2):
        longest[child, side] = -1
        votes[child, side, 0] = 0.0
        votes[child, side, 1] = 0.0


@kernel
def _regroup(
    order: NDArray[np.int64],
    scratch: NDArray[np.int64],
    child_of: NDArray[np.int64],
    begin: int,
    end: int,
    num_children: int,
    starts: NDArray[np.int64],
) -> None:
    """Sorts `order[begin:end]` by child, those of no child behind; `starts` turns from sizes to where each begins."""
    place = begin
    for child in range(num_children):
        size = starts[child]
        starts[child] = place
        place += size
    rest = place
    for i in range(begin, end):
        scratch[i] = order[i]
    for i in range(begin, end):
        child = child_of[i]
        if child < num_children:
            order[starts[child]] = scratch[i]
            starts[child] += 1
        else:
            order[rest] = scratch[i]
            rest += 1
    # Each now stands where the next one's matches begin.
    for child in range(num_children, 0, -1):
        starts[child] = starts[child - 1]
    starts[0] = begin


@kernel
def describe_children(children: Children, num_children: int, num_levels: int) -> None:
    """Fills the features of a node's children and, in the row after them, of a token not seen here."""
    feature_ids, values = children.feature_ids, children.values
    longest, votes = children.longest, children.votes
    feature_ids[num_children, :] = 0
    values[num_children, :] = 0.0
    for side in range(2):
        most = longest[MAX_CHILDREN, side]
        total_all = votes[MAX_CHILDREN, side, 1]
        for child in range(num_children):
            most = max(most, longest[child, side])
            total_all += votes[child, side, 1]
        total = votes[MAX_CHILDREN, side, 0] if longest[MAX_CHILDREN, side] == most else 0.0
        for child in range(num_children):
            if longest[child, side] == most:
                total += votes[child, side, 0]
        table = 3 * side * (num_levels + 1)
        scalars = 6 * (num_levels + 1) + 4 * side
        for child in range(num_children):
            share = votes[child, side, 0] / total if total > 0.0 and longest[child, side] == most else 0.0
            share_all = votes[child, side, 1] / total_all if total_all > 0.0 else 0.0
            entry = 5 * side
            feature_ids[child, entry] = table + longest[child, side] + 1
            feature_ids[child, entry + 1] = table + num_levels + 1 + most + 1
            feature_ids[child, entry + 2] = scalars
            feature_ids[child, entry + 3] = scalars + 1
            feature_ids[child, entry + 4] = scalars + 2
            values[child, entry] = 1.0
            values[child, entry + 1] = share
            values[child, entry + 2] = _log_share(share, _IN_LONGEST, _LOG_NONE_LONGEST, _LOG_WHOLE_LONGEST)
            values[child, entry + 3] = _log_share(share_all, _IN_ALL, _LOG_NONE, _LOG_WHOLE)
            values[child, entry + 4] = math.log1p(votes[child, side, 0]) if share_all > 0.0 else 0.0
        feature_ids[num_children, 2 * side] = table + 2 * (num_levels + 1) + most + 1
        values[num_children, 2 * side] = 1.0
        feature_ids[num_children, 2 * side + 1] = scalars + 3
        values[num_children, 2 * side + 1] = math.log1p(total) if total > 0.0 else 0.0


@kernel
def _log_share(share: float, floor: float, log_none: float, log_whole: float) -> float:
    if share == 0.0:
        return log_none
    if share == 1.0:
        return log_whole
    return math.log(share + floor)


@kernel
def estimate_children(
    children: Children, num_children: int, coefficients: NDArray[np.float64], scalings: NDArray[np.float64]
) -> float:
    """Fills `conditionals`, `probs`, `levels` and the features. Returns what the children leave: the probability of a
    token not seen here.

    Args:
        children: as `split_matches` left them.
        coefficients: float64[], of the features.
        scalings: float64[C, L, 2], slope and shift of a child's log-odds by (origin, level), see `calibration`; the
            origins from C on have the last row.
    """
    describe_children(children, num_children, scalings.shape[1])
    _choose(children, num_children, coefficients)
    total = 0.0
    best = 0
    for child in range(num_children):
        origin = children.origins[child]
        level = children.longest[child, 0 if origin == OWN_TEXT else 1]
        children.levels[child] = level
        scaling = scalings[min(origin, len(scalings) - 1), level]
        children.probs[child] = scale_probability(children.conditionals[child], scaling[0], scaling[1])
        total += children.probs[child]
        if children.probs[child] > children.probs[best]:
            best = child
    if total > 1.0:
        # Each was scaled alone, but they exclude each other. The best child is the one whose outcomes are known, since
        # it was verified most: it keeps its probability, the others share what it leaves.
        others = total - children.probs[best]
        for child in range(num_children):
            if child != best and others > 0.0:
                children.probs[child] *= (1.0 - children.probs[best]) / others
    return max(1.0 - total, 0.0)


@kernel
def scale_probability(prob: float, slope: float, shift: float) -> float:
    """The probability whose log-odds are `slope` times those of `prob` plus `shift`."""
    if slope == 1.0 and shift == 0.0:
        return prob
    return 1.0 / (1.0 + math.exp(-slope * log_odds(prob) - shift))


@kernel
def log_odds(prob: float) -> float:
    """log(p / (1 - p)), of probabilities nearer to 0 or 1 than 1e-6 as of 1e-6 and 1 - 1e-6."""
    prob = min(max(prob, 1e-6), 1.0 - 1e-6)
    return math.log(prob / (1.0 - prob))


@kernel
def _choose(children: Children, num_children: int, coefficients: NDArray[np.float64]) -> None:
    """Fills `conditionals`: conditional logit over the children and a token not seen here."""
    feature_ids, values, probs = children.feature_ids, children.values, children.conditionals
    unseen = _score(feature_ids[num_children], values[num_children], coefficients)
    highest = unseen
    for child in range(num_children):
        probs[child] = _score(feature_ids[child], values[child], coefficients)
        highest = max(highest, probs[child])
    total = math.exp(unseen - highest)
    for child in range(num_children):
        probs[child] = math.exp(probs[child] - highest)
        total += probs[child]
    for child in range(num_children):
        probs[child] /= total


@kernel
def _score(feature_ids: NDArray[np.int64], values: NDArray[np.float64], coefficients: NDArray[np.float64]) -> float:
    score = 0.0
    for i in range(NUM_ENTRIES):
        score += values[i] * coefficients[feature_ids[i]]
    return score
