"""Knowledge files to the tables of vectors that the networks look up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laser_recsys.ctr.encoder import DIMENSIONS, count_cut, encode_cached
from laser_recsys.ctr.samples import Vocabulary
from laser_recsys.datasets.dataset import Dataset
from laser_recsys.frameworks.answers import knowledge_text
from laser_recsys.knowledge.rows import SCHEMA, pool_root
from laser_recsys.parquet_files import read_rows, splits_of

KINDS = ("user", "item")


@dataclass(frozen=True, slots=True)
class KnowledgeVectors:
    """Vectors by kind, and how many users and items have one.

    Attributes:
        tables: float32[U + 1, D] and float32[I + 1, D]; zeros where nothing is known, and in row 0. Arrays, as joblib
            maps them into the runs' processes and would copy tensors.
        coverage: "800 of 943 users, 841 of 1682 items".
        questions: what each text, by kind and id, is the answer to: model and prompt.
    """

    tables: Mapping[str, NDArray[np.float32]]
    coverage: str
    questions: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def check_same_questions(self, other: KnowledgeVectors) -> None:
        """Returns if both answer the same prompts with the same model, as far as both have answers: then they differ by
        decoding alone.

        Raises:
            ValueError: names the first that differs.
        """
        both = self.questions.keys() & other.questions.keys()
        unlike = sorted(key for key in both if self.questions[key] != other.questions[key])
        if unlike:
            raise ValueError(
                f"the texts of {len(unlike)} of {len(both)} users and items are of other prompts or another model, "
                f"{' '.join(unlike[0])} among them: a decision is about decoding, so all else must be the same"
            )


def load_knowledge(
    paths: Sequence[Path], dataset: Dataset, split: str, vocabulary: Vocabulary, cache_dir: Path
) -> KnowledgeVectors:
    """Encodes the texts of knowledge files; encoded texts are kept in the cache.

    Args:
        paths: of the files.
        dataset: whose users and items they speak of.
        split: of the dataset (`split_mark`); files that do not say theirs are taken.
        vocabulary: of the samples.
        cache_dir: of encoded texts.

    Raises:
        ValueError: a file is no knowledge file, is of another dataset or split, speaks of nobody in this one, or of
            somebody twice.
    """
    texts, questions = _texts(paths, dataset.name, split)
    tables, coverage = {}, []
    for kind, keys, known in (
        ("user", vocabulary.user_keys, dataset.users),
        ("item", vocabulary.item_keys, dataset.items),
    ):
        place = {known[key].id: number for number, key in enumerate(keys.tolist(), start=1)}
        rows = {
            place[text_id]: text for (of_kind, text_id), text in texts.items() if of_kind == kind and text_id in place
        }
        table = np.zeros((len(keys) + 1, DIMENSIONS), np.float32)
        if rows:
            table[list(rows)] = encode_cached(list(rows.values()), cache_dir)
        tables[kind] = table
        num_cut = count_cut(list(rows.values()), cache_dir)
        coverage.append(f"{len(rows)} of {len(keys)} {kind}s" + (f" ({num_cut} cut by the encoder)" if num_cut else ""))
    if not any(table.any() for table in tables.values()):
        names = ", ".join(map(str, paths))
        raise ValueError(f"{names}: no id is a user or item of {dataset.name}; is it knowledge of another dataset?")
    return KnowledgeVectors(tables, ", ".join(coverage), questions)


def shuffled(tables: Mapping[str, NDArray[np.float32]], seed: int) -> dict[str, NDArray[np.float32]]:
    """The same vectors at the wrong users and items: what more parameters and any text at all do, without its
    meaning."""
    random = np.random.default_rng(seed)
    result = {}
    for kind, table in tables.items():
        known: NDArray[np.int64] = np.flatnonzero(table.any(1))
        mixed = table.copy()
        mixed[known] = table[random.permutation(known)]
        result[kind] = mixed
    return result


def _texts(
    paths: Sequence[Path], dataset: str, split: str
) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """Texts, and what they are answers to, by kind and id."""
    texts: dict[tuple[str, str], str] = {}
    questions: dict[tuple[str, str], str] = {}
    for path in paths:
        rows = read_rows(path, SCHEMA, ("id", "kind", "text", "pool", "model", "prompt"))
        if others := splits_of(path) - {split}:
            raise ValueError(
                f"{path} was made for another split ({', '.join(sorted(others))}), must be for the data's ({split}): "
                "its texts may know ratings that this one holds back"
            )
        for row in rows:
            key = (row["kind"], row["id"])
            if key[0] not in KINDS:
                raise ValueError(f"{path}: kind is {key[0]!r}, must be 'user' or 'item'")
            # Ids are numbers in many datasets, so those of another one may all be found here.
            if (written_for := row["pool"].partition("/")[0]) not in (dataset, pool_root(dataset, split)):
                raise ValueError(f"{path}: {' '.join(key)} is knowledge of {written_for!r}, must be of {dataset!r}")
            if key in texts:
                raise ValueError(f"{path}: {' '.join(key)} stands twice; a row of the evaluation takes one framework")
            texts[key] = knowledge_text(row["text"])
            questions[key] = f"{row['model']}\n{row['prompt']}"
    return texts, questions
