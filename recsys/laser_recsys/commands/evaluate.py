"""`laser-recsys evaluate`: what the knowledge does for CTR models, and whether relaxed knowledge does the same."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

HELP = "train CTR models with and without the knowledge, and compare them over seeds"
EPILOG = """\
Each NAME=FILE[,FILE...] is a row of the result; "no knowledge" is always one. The first is the reference that all
rows are compared with, pair by pair over the seeds; --shuffled adds its texts at the wrong users and items, as
control. A second file of plain texts, made at another --concurrency, is the noise floor.

--decide NAME is the comparison named beforehand: on the first network, after the pilot of --seeds, as many seeds as the
spread asks for to decide on a margin of 0.001 AUC, at most --max-seeds. Runs are kept: the same command goes on.

results in the output directory: runs.parquet, report.html

examples:
  laser-recsys evaluate --data data --knowledge plain=knowledge-plain/knowledge.parquet \\
      relaxed=knowledge-relaxed/knowledge.parquet --decide relaxed --output evaluation
  laser-recsys evaluate --data data --knowledge plain=P.parquet strict=S.parquet --networks din dcnv2 deepfm autoint
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `laser-recsys evaluate`."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="what 'prepare' wrote")
    parser.add_argument(
        "--knowledge", nargs="*", default=[], metavar="NAME=FILE[,FILE...]", help="rows, reference first"
    )
    parser.add_argument(
        "--networks", nargs="+", choices=("din", "dcnv2", "deepfm", "autoint"), default=["din"], help="default: din"
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds of every row (default: %(default)s)")
    parser.add_argument("--decide", metavar="NAME", help="the comparison to decide, see below")
    parser.add_argument("--max-seeds", type=int, default=60, metavar="N", help="default, and most: %(default)s")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (default: as many as processors may be used)"
    )
    parser.add_argument("--shuffled", action="store_true", help="add the control of shuffled texts")
    parser.add_argument(
        "--output", type=Path, default=Path("laser-evaluation"), metavar="DIR", help="default: ./%(default)s"
    )


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Runs it.

    Raises:
        DatasetError, CacheError, FolderLocked, ValueError: see the modules of `laser_recsys.ctr`.
    """
    import joblib

    from laser_recsys.ctr.encoder import ENCODER_NAME
    from laser_recsys.ctr.evaluation import NO_KNOWLEDGE, Evaluation
    from laser_recsys.ctr.knowledge_vectors import load_knowledge
    from laser_recsys.ctr.networks import deepctr_torch
    from laser_recsys.ctr.report import text_table, write_report
    from laser_recsys.ctr.samples import LIKED_STARS, make_samples
    from laser_recsys.datasets.prepared import read_prepared, split_mark
    from laser_recsys.lock import alone_in
    from laser_recsys.machine import processor_name

    _check(arguments)
    deepctr_torch()  # is missed here, not after minutes of encoding
    named = _named_files(arguments.knowledge)
    dataset, parts = read_prepared(arguments.data)
    samples = make_samples(dataset, parts)
    split = split_mark(arguments.data)
    knowledge = {
        name: load_knowledge(paths, dataset, split, samples.vocabulary, arguments.cache)
        for name, paths in named.items()
    }
    reference = next(iter(knowledge), NO_KNOWLEDGE)
    if arguments.decide is not None and arguments.decide not in knowledge:
        raise ValueError(f"--decide is {arguments.decide!r}, must be one of {', '.join(knowledge) or 'the rows: none'}")
    if arguments.decide == reference:
        raise ValueError(f"--decide is {reference!r}, the first row, that all are compared with: name another one")
    if arguments.decide is not None:
        knowledge[arguments.decide].check_same_questions(knowledge[reference])
    num_jobs = arguments.jobs or joblib.cpu_count()
    # Two in one folder would each write runs.parquet without the other's runs.
    with alone_in(arguments.output, arguments.output / "evaluation.lock"):
        with_shuffled = arguments.shuffled and bool(knowledge)
        evaluation = Evaluation(samples, knowledge, reference, arguments.output, num_jobs, with_shuffled=with_shuffled)
        evaluation.run(arguments.networks, evaluation.names, arguments.seeds)
        if arguments.decide is not None:
            evaluation.decide(arguments.networks[0], arguments.decide, say, arguments.seeds, arguments.max_seeds)
        rows = evaluation.rows(arguments.networks)
    counts = (
        f"{len(samples.train)} training, {len(samples.validation)} validation and {len(samples.test)} test samples, "
        f"liked is {LIKED_STARS:g} stars or more; {samples.train.num_users} of {len(samples.vocabulary.user_keys)} "
        "users have training samples"
    )
    facts = [(name, f"texts of {vectors.coverage}") for name, vectors in knowledge.items()]
    facts.append(("encoder", f"{ENCODER_NAME}, mean over tokens; two-layer adaptors of users and items"))
    facts.append(("processor", f"{processor_name()}, {os.cpu_count()} cores"))
    write_report(arguments.output / "report.html", dataset.name, counts, reference, rows, facts)
    say(f"{dataset.name}: {counts}")
    say(text_table(reference, rows))
    say(f"written: {arguments.output / 'report.html'}")


def _check(arguments: argparse.Namespace) -> None:
    from laser_recsys.ctr.statistics import MAX_SEEDS

    for name, least in (("seeds", 1), ("max_seeds", 2), ("jobs", 1)):
        if (value := getattr(arguments, name)) is not None and value < least:
            option = name.replace("_", "-")
            raise argparse.ArgumentTypeError(f"--{option} is {getattr(arguments, name)}, must be at least {least}")
    if arguments.max_seeds > MAX_SEEDS:
        raise argparse.ArgumentTypeError(f"--max-seeds is {arguments.max_seeds}, must be at most {MAX_SEEDS}")
    if arguments.decide is not None and not 2 <= arguments.seeds <= MAX_SEEDS:
        raise argparse.ArgumentTypeError(f"--decide needs a pilot of 2 to {MAX_SEEDS} --seeds, not {arguments.seeds}")


def _named_files(values: list[str]) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    for value in values:
        name, _, files = value.partition("=")
        if not name or not files:
            raise argparse.ArgumentTypeError(f"--knowledge is {value!r}, must be NAME=FILE[,FILE...]")
        if name in named:
            raise argparse.ArgumentTypeError(f"--knowledge names {name!r} twice; list its files as {name}=FILE,FILE")
        named[name] = [Path(file) for file in files.split(",")]
    return named
