"""The GPU side: one target model, batched relaxed verification of draft trees, continuous batching.

Knows retrievers only through `laser_verifier.drafts.DraftSource`.
"""
