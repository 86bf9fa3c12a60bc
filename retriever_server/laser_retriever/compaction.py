"""What the next segment of a pool is to hold: the log's effect, or a run of older segments merged. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from laser_retriever.contents import PoolContents
from laser_retriever.segment import Segment, SegmentContent, StoredDocument
from laser_retriever.suffix_array import MAX_TOKENS


def sealed(contents: PoolContents, end_sequence: int) -> SegmentContent:
    """The log as a segment.

    Args:
        contents: of the pool, with all of the log's records below `end_sequence`.
        end_sequence: number of the first record that the segment does not hold.
    """
    return SegmentContent(
        documents=[
            StoredDocument(key, record.token_ids, record.time_ms)
            for key, record in contents.logged_documents
            if record.token_ids is not None
        ],
        tombstones=[
            key for key, record in contents.log.items() if record.token_ids is None and _is_held(key, contents.segments)
        ],
        first_sequence=contents.end_sequence,
        end_sequence=end_sequence,
    )


def merged(contents: PoolContents, run: Sequence[Segment], on_disk: Collection[str]) -> SegmentContent:
    """A run of neighbouring segments as one, without the documents that later segments hide.

    Args:
        contents: of the pool.
        run: some of its segments, oldest first.
        on_disk: names of the segments in its directory, replaced ones included.
    """
    older = contents.segments[: contents.segments.index(run[0])]
    hidden = {segment.name: contents.hidden[segment.name] for segment in run}
    documents = [
        StoredDocument(segment.meta.ids[i], segment.index.document(i), int(segment.times_ms[i]))
        for segment in run
        for i in np.flatnonzero(~hidden[segment.name]).tolist()
    ]
    # An id that the run holds, even if hidden by now, must go on hiding what older segments hold of it.
    gone = {segment.meta.ids[i] for segment in run for i in np.flatnonzero(hidden[segment.name]).tolist()}
    gone.update(key for segment in run for key in segment.meta.tombstones)

    def is_live(key: str) -> bool:
        return any(
            key in segment.document_idxs and not hidden[segment.name][segment.document_idxs[key]] for segment in run
        )

    replaced = {name for segment in run for name in (segment.name, *segment.meta.replaces)}
    return SegmentContent(
        documents=documents,
        tombstones=sorted(key for key in gone if _is_held(key, older) and not is_live(key)),
        first_sequence=run[0].meta.first_sequence,
        end_sequence=run[-1].meta.end_sequence,
        # Names whose removal is durable cannot come back, so the list stays as short as what lies on disk.
        replaces=sorted(replaced.intersection(on_disk)),
    )


def newest_fitting(segments: Sequence[Segment]) -> Sequence[Segment]:
    """The newest segments that one can hold together; at least one."""
    sizes = np.cumsum([len(segment.index.tokens) for segment in reversed(segments)])
    num_fitting = max(int(np.count_nonzero(sizes <= MAX_TOKENS)), 1)
    return segments[-num_fitting:]


def choose_run(segments: Sequence[Segment]) -> Sequence[Segment]:
    """The newest segments whose merging leaves sizes that at least halve from old to new; two or more, if they fit."""
    segments = newest_fitting(segments)
    start = max(len(segments) - 2, 0)
    total = sum(len(segment.index.tokens) for segment in segments[start:])
    while start > 0 and len(segments[start - 1].index.tokens) < 2 * total:
        start -= 1
        total += len(segments[start].index.tokens)
    return segments[start:]


def _is_held(key: str, segments: Sequence[Segment]) -> bool:
    return any(key in segment.document_idxs for segment in segments)
