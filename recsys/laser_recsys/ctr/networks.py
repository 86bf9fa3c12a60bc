"""DIN, DCNv2, DeepFM and AutoInt of the library DeepCTR-Torch, with an adaptor that brings knowledge in.

Chosen by fit and weight: 84 kB that need torch and scikit-learn, against FuxiCTR's polars, pandas, h5py and Ray, whose
models take a data format of its own. Its `fit` copies every dense feature once per sample (384 floats twice), so the
training is ours. Source of the adaptor: KAR (arXiv 2306.10933), without its mixture of experts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from laser_recsys.ctr.samples import HISTORY_LEN, Vocabulary

NETWORKS = ("din", "dcnv2", "deepfm", "autoint")
_EMBEDDING_DIM = 16
_KNOWLEDGE_DIM = 32
_HIDDEN = (128, 64)
_INIT_STD = 0.01


class KnowledgeNetwork(nn.Module):
    """A CTR network whose input also holds what adaptors make of the user's and the item's knowledge.

    Args:
        name: one of `NETWORKS`.
        vocabulary: index spaces of the fields.
        vectors: float32[U + 1, D] of users and float32[I + 1, D] of items, by "user" and "item", row 0 zeros; empty: no
            knowledge.
        seed: of the initial weights. The networks of one seed and shape start equal.
    """

    def __init__(
        self, name: str, vocabulary: Vocabulary, vectors: Mapping[str, NDArray[np.float32]], seed: int
    ) -> None:
        super().__init__()
        self._network = _network(name, vocabulary, tuple(vectors), seed)
        torch.manual_seed(seed + 1)
        self._adaptors = nn.ModuleDict(
            {
                kind: nn.Sequential(
                    nn.Linear(table.shape[1], 2 * _KNOWLEDGE_DIM),
                    nn.ReLU(),
                    nn.Linear(2 * _KNOWLEDGE_DIM, _KNOWLEDGE_DIM),
                )
                for kind, table in vectors.items()
            }
        )
        for kind, table in vectors.items():
            self.register_buffer(f"_{kind}_vectors", torch.from_numpy(table), persistent=False)
        self._column = {"user": 0, "item": 1}

    def forward(self, fields: Tensor, history: Tensor, history_lens: Tensor) -> Tensor:
        """Probabilities of a click, float32[N], of int32[N, F], int32[N, HISTORY_LEN] and int64[N]."""
        # The library takes one float table, which holds an index exactly up to the most that samples have.
        parts = [fields.float(), history.float(), history_lens.float().unsqueeze(1)]
        for kind, adaptor in self._adaptors.items():
            table: Tensor = getattr(self, f"_{kind}_vectors")
            parts.append(adaptor(table[fields[:, self._column[kind]]]))
        clicked: Tensor = self._network(torch.cat(parts, 1))
        return clicked.squeeze(-1)


def _network(name: str, vocabulary: Vocabulary, kinds: tuple[str, ...], seed: int) -> Any:
    models, inputs = deepctr_torch()
    columns = [
        inputs.SparseFeat(field, size, _EMBEDDING_DIM)
        for field, size in zip(vocabulary.names, vocabulary.sizes, strict=True)
    ]
    item_size = vocabulary.sizes[vocabulary.names.index("item")]
    # DIN compares the item with the history, in one space; AutoInt counts its fields by their tables.
    table = "hist_item" if name == "autoint" else "item"
    liked = inputs.SparseFeat("hist_item", item_size, _EMBEDDING_DIM, embedding_name=table)
    columns.append(inputs.VarLenSparseFeat(liked, HISTORY_LEN, "mean", length_name="history_len"))
    columns += [inputs.DenseFeat(f"{kind}_knowledge", _KNOWLEDGE_DIM) for kind in kinds]
    shape: dict[str, Any] = {"dnn_hidden_units": _HIDDEN, "seed": seed, "init_std": _INIT_STD}
    if name == "din":
        din = models.DIN(
            columns, ["item"], att_hidden_size=(32, 16), att_activation="relu", att_weight_normalization=True, **shape
        )
        _widen(din, seed)
        return din
    if name == "dcnv2":
        return models.DCN(columns, columns, cross_num=3, cross_parameterization="matrix", **shape)
    if name == "deepfm":
        return models.DeepFM(columns, columns, **shape)
    if name == "autoint":
        return models.AutoInt(columns, columns, **shape)
    raise ValueError(f"network is {name!r}, must be one of {', '.join(NETWORKS)}")


def _widen(din: Any, seed: int) -> None:
    """Starts DIN's layers where the other networks' start: the library gives the spread to its embeddings only, and
    leaves the layers at a hundredth of it."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in [*din.dnn.named_parameters(), *din.attention.named_parameters()]:
        if name.endswith("weight"):
            nn.init.normal_(weight, 0.0, _INIT_STD, generator)


def deepctr_torch() -> tuple[Any, Any]:
    """The library's models and inputs.

    On import the package asks pypi.org for its newest version, on a thread without a timeout. A job does no such
    thing: the module that asks is put there beforehand, with the asking left out.
    """
    name = "deepctr_torch.utils"
    if name not in sys.modules:
        quiet = ModuleType(name)
        quiet.check_version = lambda version: None  # type: ignore[attr-defined]
        sys.modules[name] = quiet
    from deepctr_torch import inputs, models

    return models, inputs
