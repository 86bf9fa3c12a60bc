"""Prompts that ask the LLM for knowledge about a user. One framework so far: KAR.

Source of the shape: KAR (Xi et al., "Towards Open-World Recommendation with Knowledge Augmentation from Large Language
Models", RecSys 2024): history with star ratings, then preferences by named factors. The words are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from laser_recsys.movielens import Movie, Ratings

MAX_HISTORY = 15

# The words were chosen with the example model: others left its first token a near tie, which bfloat16 rounding decides.
_KAR_USER = (
    "Given user's movie rating history: {history}; Analyze user's preferences on movies (consider factors like genre, "
    "director/actors, time period/country, character, plot/theme, mood/tone, critical acclaim/award, production "
    "quality, and soundtrack). Please give a clear and brief explanation based on what user's movie viewing history "
    "shows and other pertinent factors."
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question to the LLM.

    Attributes:
        id: user or item id; the document's id in the pool.
        kind: "user" or "item".
        framework: "kar".
        text: what is asked, before the chat template.
    """

    id: str
    kind: str
    framework: str
    text: str


def kar_user_prompt(user_id: int, past: Ratings, movies: Mapping[int, Movie]) -> Prompt:
    """KAR's question about one user.

    Args:
        user_id: whom to ask about.
        past: ratings of any users, held-back ones excluded; the user's last `MAX_HISTORY` of them are shown.
        movies: titles by item id.

    Raises:
        ValueError: the user has no ratings in `past`.
    """
    own = past.of_user(user_id)
    if not len(own):
        raise ValueError(f"user {user_id} has no ratings to write a prompt from")
    recent = own.take(slice(-MAX_HISTORY, None))
    history = ", ".join(
        f'"{movies[int(item_id)].title}", {_stars(float(stars))}'
        for item_id, stars in zip(recent.item_ids, recent.stars, strict=True)
    )
    return Prompt(str(user_id), "user", "kar", _KAR_USER.format(history=history))


def _stars(stars: float) -> str:
    return "1 star" if stars == 1 else f"{stars:g} stars"
