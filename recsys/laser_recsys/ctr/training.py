"""One training run: a network, a kind of knowledge, a seed; the epoch with the best validation AUC is tested, once."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from laser_recsys.ctr.networks import KnowledgeNetwork
from laser_recsys.ctr.samples import Samples, SampleSplit

TRAINING_VERSION = 3  # of networks and training: to be raised with every change of what a run gives
_BATCH = 1024
_SCORING_BATCH = 8192
_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 1e-5
_PROBABILITY_FLOOR = 1e-7


@dataclass(frozen=True, slots=True)
class Run:
    """What one run gave.

    Attributes:
        network: "din", ...
        knowledge: name of the row.
        seed: of weights and order of samples.
        auc, log_loss: of the test part at the chosen epoch.
        validation_auc: of the validation part at that epoch.
        epoch: the chosen one, from 1.
        seconds: of training.
    """

    network: str
    knowledge: str
    seed: int
    auc: float
    log_loss: float
    validation_auc: float
    epoch: int
    seconds: float


def train(
    network_name: str,
    knowledge_name: str,
    samples: SampleSplit,
    vectors: Mapping[str, NDArray[np.float32]],
    seed: int,
    max_epochs: int = 12,
    patience: int = 2,
) -> Run:
    """Trains until the validation AUC has not risen for `patience` epochs, and tests the best epoch.

    With one seed all runs see the samples in the same order, and networks of one shape start with the same weights. On
    one thread, in whatever process it runs: sums over several would round otherwise.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(network_name, knowledge_name, samples, vectors, seed, max_epochs, patience)
    finally:
        torch.set_num_threads(num_threads)


def _train(
    network_name: str,
    knowledge_name: str,
    samples: SampleSplit,
    vectors: Mapping[str, NDArray[np.float32]],
    seed: int,
    max_epochs: int,
    patience: int,
) -> Run:
    started = time.perf_counter()
    network = KnowledgeNetwork(network_name, samples.vocabulary, vectors, seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    order = torch.Generator().manual_seed(seed)
    best_auc, best_epoch, best_state = -1.0, 0, copy.deepcopy(network.state_dict())
    for epoch in range(1, max_epochs + 1):
        _train_epoch(network, optimizer, samples.train, order)
        auc = float(roc_auc_score(samples.validation.labels, _score(network, samples.validation)))
        if auc > best_auc:
            best_auc, best_epoch, best_state = auc, epoch, copy.deepcopy(network.state_dict())
        elif epoch - best_epoch >= patience:
            break
    network.load_state_dict(best_state)
    scores = _score(network, samples.test)
    return Run(
        network=network_name,
        knowledge=knowledge_name,
        seed=seed,
        auc=float(roc_auc_score(samples.test.labels, scores)),
        log_loss=float(log_loss(samples.test.labels, scores)),
        validation_auc=best_auc,
        epoch=best_epoch,
        seconds=time.perf_counter() - started,
    )


def _train_epoch(
    network: KnowledgeNetwork, optimizer: torch.optim.Optimizer, samples: Samples, order: torch.Generator
) -> None:
    network.train()
    for places in torch.split(torch.randperm(len(samples), generator=order), _BATCH):
        *inputs, labels = _batch(samples, places.numpy())
        loss = torch.nn.functional.binary_cross_entropy(network(*inputs), labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()


def _batch(samples: Samples, places: NDArray[np.int64] | slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fields, history, its lengths and labels of some samples."""
    fields, history = torch.from_numpy(samples.fields[places]), torch.from_numpy(samples.histories(places))
    lens, labels = torch.from_numpy(samples.history_lens[places]), torch.from_numpy(samples.labels[places])
    return fields, history, lens, labels


def _score(network: KnowledgeNetwork, samples: Samples) -> NDArray[np.float64]:
    network.eval()
    scores = []
    with torch.inference_mode():
        for start in range(0, len(samples), _SCORING_BATCH):
            *inputs, _ = _batch(samples, slice(start, start + _SCORING_BATCH))
            scores.append(network(*inputs))
    clipped = torch.cat(scores).double().clamp(_PROBABILITY_FLOOR, 1 - _PROBABILITY_FLOOR)
    result: NDArray[np.float64] = clipped.numpy()
    return result
