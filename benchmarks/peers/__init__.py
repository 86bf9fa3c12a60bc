"""LASER beside vLLM: the same model, prompts and machine, one process per run. `python -m benchmarks.peers`."""
