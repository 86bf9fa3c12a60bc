"""Whether a verifier's memory is what its configuration says, and stays: resident bytes of real processes.

    python -m benchmarks.memory --corpus corpus_user.jsonl

Two verifiers, one with more slots than the other, are filled: as many requests at once as there are slots, prompt and
output together as long as a sequence may be. What the larger has more is compared with the keys and values of its
further slots, 2 * layers * heads * head size * element size * (max_model_len + max_draft_nodes, up to 16) each. The
larger one then gets --requests short requests with drafts, which are learned, and is looked at after every tenth of
them. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from tqdm import tqdm
from transformers import AutoConfig

from benchmarks._corpus import read_corpus
from benchmarks._servers import verifier_options
from laser_client import LaserClient
from laser_recsys.cache import default_cache_dir
from laser_recsys.example_model import EXAMPLE_MODEL_NAME, prepare_example_model
from laser_recsys.processes import retriever_process, verifier_process

MAX_MODEL_LEN, MAX_DRAFT_NODES = 512, 32
NUM_NEW_TOKENS, SHORT_PROMPT, SHORT_OUTPUT = 16, 32, 8
_MIB = 2**20


@contextmanager
def verifier(model: Path, num_slots: int, directory: Path) -> Iterator[tuple[LaserClient, psutil.Process]]:
    """A verifier with a retriever beside it: a client of it, and its process."""
    with retriever_process(directory / "pools", directory / "retriever.log") as first:
        first.wait_until_healthy(60)
        options = (*verifier_options(num_slots, nodes=MAX_DRAFT_NODES), "--max-model-len", str(MAX_MODEL_LEN))
        log_path = directory / "verifier.log"
        with verifier_process(model, log_path, *options, retriever=first.address) as second:
            second.wait_until_healthy(300)
            with LaserClient(second.address, max_in_flight=num_slots) as client:
                yield client, psutil.Process(second.pid)


def fill(client: LaserClient, tokens: list[int], num_slots: int) -> None:
    """Every slot to its last place, twice; the prompts share no beginning, so none is copied."""
    length = MAX_MODEL_LEN - NUM_NEW_TOKENS
    for start in (0, num_slots):
        prompts = [tokens[7 * (start + slot) :][:length] for slot in range(num_slots)]
        client.generate(prompts, max_new_tokens=NUM_NEW_TOKENS, timeout=600)


def slot_bytes(model: Path, dtype: str) -> int:
    """Bytes of keys and values of one slot."""
    config = AutoConfig.from_pretrained(model)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    places = -(-(MAX_MODEL_LEN + MAX_DRAFT_NODES) // 16) * 16
    element = 4 if dtype == "float32" else 2
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * head_size * element * places)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="JSON lines of recorded outputs")
    parser.add_argument("--slots", type=int, nargs=2, default=[4, 36], metavar="N", help="default: 4 36")
    parser.add_argument("--requests", type=int, default=2000, metavar="N", help="default: %(default)s")
    arguments = parser.parse_args()
    cache = default_cache_dir()
    model = prepare_example_model(cache / EXAMPLE_MODEL_NAME, cache)
    lines = read_corpus(arguments.corpus)
    tokens = [token for line in lines for token in line["output_token_ids"]]
    resident = []
    for num_slots in arguments.slots:
        with (
            tempfile.TemporaryDirectory() as directory,
            verifier(model, num_slots, Path(directory)) as (client, process),
        ):
            fill(client, tokens, num_slots)
            resident.append(process.memory_info().rss)
            print(json.dumps({"slots": num_slots, "resident_mib": round(resident[-1] / _MIB, 1)}), flush=True)
            if num_slots != arguments.slots[-1]:
                continue
            computed = (arguments.slots[1] - arguments.slots[0]) * slot_bytes(model, client.model().dtype)
            measured = resident[1] - resident[0]
            print(
                json.dumps(
                    {
                        "computed_mib": round(computed / _MIB, 1),
                        "measured_mib": round(measured / _MIB, 1),
                        "ratio": round(measured / computed, 3),
                    }
                ),
                flush=True,
            )
            step = max(arguments.requests // 10, 1)
            for done in tqdm(range(0, arguments.requests, step), desc="requests", unit="tenth", leave=False):
                prompts = [lines[i % len(lines)]["prompt_token_ids"][-SHORT_PROMPT:] for i in range(done, done + step)]
                ids = [f"memory-{i}" for i in range(done, done + step)]
                client.generate(prompts, pool="bench/memory", document_id=ids, learn=True, max_new_tokens=SHORT_OUTPUT)
                now = process.memory_info().rss
                print(json.dumps({"requests": done + step, "resident_mib": round(now / _MIB, 1)}), flush=True)


if __name__ == "__main__":
    main()
