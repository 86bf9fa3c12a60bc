"""One run of vLLM, in a process and a Python environment of its own: a job comes in on stdin, its outcome on stdout.

Knows nothing of LASER; imports the standard library, numpy and vllm. The suffix cache is warmed as vLLM fills it itself
(vllm/v1/spec_decode/suffix_decoding.py): every document is a request that started with its prompt, was given its output
and stopped; so it lies in the global tree of arctic_inference's SuffixDecodingCache beside what the run itself adds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

SPECULATION: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "ngram": {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 5, "prompt_lookup_min": 2},
    "suffix": {"method": "suffix"},
}


def main() -> None:
    """Reads one job, loads, warms up, measures, writes one JSON object."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints joins the log
    job = json.loads(sys.stdin.read())
    print(json.dumps(run(job)), file=answers, flush=True)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Runs a job.

    Args:
        job: `model` directory, `dtype`, `mode`, `concurrency`, `max_model_len`, `max_new_tokens`, `prompts` and
            `warm_up` (lists of token ids), `documents` (`prompt_token_ids` and `output_token_ids` each, for the suffix
            cache).

    Returns:
        `seconds` of the whole run, prefill included, `outputs` (token ids), `version`, `num_documents` warmed with.
    """
    import vllm

    llm = vllm.LLM(
        model=job["model"],
        dtype=job["dtype"],
        seed=0,
        max_model_len=job["max_model_len"],
        max_num_seqs=job["concurrency"],
        speculative_config=SPECULATION[job["mode"]],
    )
    _generate(vllm, llm, job["warm_up"], max_tokens=16)
    num_documents = warm_suffix_cache(llm, job["documents"]) if job["mode"] == "suffix" else 0
    started = time.perf_counter()
    outputs = _generate(vllm, llm, job["prompts"], max_tokens=job["max_new_tokens"])
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "outputs": outputs, "version": vllm.__version__, "num_documents": num_documents}


def warm_suffix_cache(llm: Any, documents: list[dict[str, Any]]) -> int:
    """Puts the documents into the suffix cache as finished requests. Returns how many."""
    import numpy as np

    # In-process engine (VLLM_ENABLE_V1_MULTIPROCESSING=0): LLMEngine -> InprocClient -> EngineCore -> executor.
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    cache = runner.drafter.suffix_cache
    for number, document in enumerate(documents):
        request_id = f"document-{number}"
        cache.start_request(request_id, np.asarray(document["prompt_token_ids"], np.int32))
        cache.add_active_response(request_id, np.asarray(document["output_token_ids"], np.int32))
        cache.stop_request(request_id)
    return len(documents)


def _generate(vllm: Any, llm: Any, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=max_tokens)
    made = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in made]


if __name__ == "__main__":
    main()
