"""`laser-recsys prompts`: what is asked about each user and item."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import chain
from pathlib import Path

HELP = "write the prompts of a framework, each with its group's pool"
EPILOG = """\
frameworks: kar, once, trawl, rlmrec, or the path of your own template file (TOML; copy one of
laser_recsys/frameworks/).
With -instruction-first appended the instruction stands before what is known, so that all prompts share a prefix.

A prompt that is too long loses its oldest history first (an item: the end of its description). How many is counted.
Only with --model is that known; otherwise a verifier refuses what is too long.

examples:
  laser-recsys prompts --data data --framework kar --model ./smollm2
  laser-recsys prompts --data data --framework rlmrec-instruction-first --kinds user --output data/rlmrec.parquet
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `laser-recsys prompts`."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="what 'prepare' wrote")
    parser.add_argument("--groups", type=Path, metavar="FILE", help="what 'group' wrote (default: DIR/groups.parquet)")
    parser.add_argument("--framework", default="kar", metavar="NAME_OR_FILE", help="default: %(default)s")
    parser.add_argument("--kinds", nargs="+", choices=("user", "item"), default=["user", "item"], help="default: both")
    parser.add_argument("--model", metavar="PATH_OR_HUB_ID", help="whose tokenizer measures the prompts")
    parser.add_argument("--max-model-len", type=int, default=1024, metavar="T",
                        help="tokens of prompt and output together, at most the verifier's, which `laser model` tells; "
                             "a longer prompt loses its oldest history (default: %(default)s)")  # fmt: skip
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="kept free (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: DIR/prompts-FRAMEWORK.parquet")


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Runs it.

    Raises:
        DatasetError, TemplateError, ValueError: see `KindTasks`.
    """
    from tqdm import tqdm

    from laser_recsys.datasets.prepared import read_prepared, split_mark
    from laser_recsys.frameworks.prompts import PromptWriter
    from laser_recsys.frameworks.template import load_framework
    from laser_recsys.groups.table import read_groups
    from laser_recsys.knowledge.prompt_files import write_prompts
    from laser_recsys.knowledge.tasks import KindTasks
    from laser_recsys.tokens import PromptTokenizer

    framework = load_framework(arguments.framework)
    dataset, parts = read_prepared(arguments.data)
    max_tokens = arguments.max_model_len - arguments.max_new_tokens
    if max_tokens < 1:
        raise ValueError(
            f"--max-new-tokens is {arguments.max_new_tokens}, must be below --max-model-len ({arguments.max_model_len})"
        )
    count = PromptTokenizer(arguments.model).count if arguments.model else None
    groups_path = arguments.groups or arguments.data / "groups.parquet"
    split = split_mark(arguments.data)
    writer = PromptWriter(framework, dataset, parts.past)
    made = {
        kind: KindTasks(writer, kind, read_groups(groups_path, kind, dataset, split), count, max_tokens, split)
        for kind in arguments.kinds
    }
    output = arguments.output or arguments.data / f"prompts-{framework.name}.parquet"
    num_asked = sum(of_kind.num_asked for of_kind in made.values())
    tasks = tqdm(chain.from_iterable(made.values()), total=num_asked, desc="prompts", unit="prompt", leave=False)
    if not write_prompts(output, tasks, split):
        raise ValueError(f"no prompts: nobody in {arguments.data} has a history")
    for kind, of_kind in made.items():
        say(f"{of_kind.num_tasks} {kind} prompts in {framework.name}: {of_kind.summary()}")
        for line in of_kind.warnings():
            say(f"warning: {line}")
    say(f"written: {output}")
