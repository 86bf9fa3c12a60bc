"""The knowledge job: prompts through verifiers, each drafted from its group's pool, into Parquet, resumable."""
