"""How much of a framework's prompts is one shared prefix, as written and with the instruction first.

    python -m benchmarks.shared_prefix --model PATH

Tokens of the prompts of MovieLens-100k's users and items, chat template included. What is shared need be computed
once for all prompts of a kind where the server keeps prefixes. Nothing is generated.
"""

from __future__ import annotations

import argparse

import numpy as np

from laser_recsys.cache import default_cache_dir
from laser_recsys.datasets.catalogue import read_dataset
from laser_recsys.datasets.dataset import split
from laser_recsys.frameworks.prompts import PromptWriter
from laser_recsys.frameworks.template import BUILTIN, INSTRUCTION_FIRST, load_framework
from laser_recsys.measurement import common_prefix_len
from laser_recsys.tokens import PromptTokenizer


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="PATH_OR_HUB_ID", help="whose tokenizer and chat template")
    parser.add_argument("--prompts", type=int, default=200, metavar="N", help="of each kind (default: %(default)s)")
    arguments = parser.parse_args()
    dataset = read_dataset("ml-100k", None, default_cache_dir())
    past = split(dataset.ratings).seen
    tokenizer = PromptTokenizer(arguments.model)
    print(f"{'framework':28} {'kind':5} {'tokens':>7} {'shared':>7} {'share':>6}")
    for name in (variant for base in BUILTIN for variant in (base, base + INSTRUCTION_FIRST)):
        writer = PromptWriter(load_framework(name), dataset, past)
        for kind, keys in (("user", dataset.users), ("item", dataset.items)):
            prompts = [writer.write(kind, key) for key in sorted(keys)[: arguments.prompts]]
            tokens = tokenizer.token_ids([prompt.text for prompt in prompts], prompts[0].system)
            shared = min(common_prefix_len(tokens[0], other) for other in tokens[1:])
            length = float(np.mean([len(each) for each in tokens]))
            print(f"{name:28} {kind:5} {length:7.0f} {shared:7d} {shared / length:6.0%}")


if __name__ == "__main__":
    main()
