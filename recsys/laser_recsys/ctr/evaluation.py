"""The evaluation: all runs of networks, kinds of knowledge and seeds, kept as they end, compared, and reported."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray
from tqdm import tqdm

from laser_recsys.ctr.knowledge_vectors import KnowledgeVectors, shuffled
from laser_recsys.ctr.samples import SampleSplit
from laser_recsys.ctr.statistics import MAX_SEEDS, Comparison, compare
from laser_recsys.ctr.training import TRAINING_VERSION, Run, train
from laser_recsys.parquet_files import read_rows, write_parquet

NO_KNOWLEDGE = "no knowledge"
RUN_SCHEMA = pyarrow.schema(
    [
        ("network", pyarrow.string()),
        ("knowledge", pyarrow.string()),
        ("seed", pyarrow.int32()),
        ("auc", pyarrow.float64()),
        ("log_loss", pyarrow.float64()),
        ("validation_auc", pyarrow.float64()),
        ("epoch", pyarrow.int32()),
        ("seconds", pyarrow.float64()),
        ("digest", pyarrow.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the result.

    Attributes:
        network, knowledge: what was trained.
        runs: one per seed, in the order of seeds.
        auc, log_loss: against the reference of the same network; None for the reference itself.
        is_decided: its comparison was named beforehand, and ran the seeds that its pilot asked for, up to a limit.
    """

    network: str
    knowledge: str
    runs: tuple[Run, ...]
    auc: Comparison | None
    log_loss: Comparison | None
    is_decided: bool = False


class Evaluation:
    """Runs what is missing, keeps each run in runs.parquet, and compares.

    Args:
        samples: of the dataset.
        knowledge: tables by the name of the row. `NO_KNOWLEDGE` is always a row.
        reference: the row that all are compared with; one of `knowledge`, or `NO_KNOWLEDGE`.
        folder: of the results; made if missing. Runs found there on the same data are not repeated, others stay.
        num_jobs: runs at a time, in processes of their own; 1: in this one.
        with_shuffled: one more row, the reference's vectors at the wrong users and items, others for every seed.
    """

    def __init__(
        self,
        samples: SampleSplit,
        knowledge: Mapping[str, KnowledgeVectors],
        reference: str,
        folder: Path,
        num_jobs: int = 1,
        *,
        with_shuffled: bool = False,
    ) -> None:
        self._samples = samples
        self._tables: dict[str, Mapping[str, NDArray[np.float32]]] = {NO_KNOWLEDGE: {}}
        self._tables |= {name: vectors.tables for name, vectors in knowledge.items()}
        if reference not in self._tables:
            raise ValueError(f"reference is {reference!r}, must be one of {', '.join(self._tables)}")
        self._reference = reference
        self._shuffled = f"{reference}, shuffled" if with_shuffled else None
        if self._shuffled is not None:
            self._tables[self._shuffled] = self._tables[reference]
        self._num_seeds = 0
        self._num_jobs = num_jobs
        self._path = folder / "runs.parquet"
        self._digests = {
            name: _digest(samples, tables, is_shuffled=name == self._shuffled) for name, tables in self._tables.items()
        }
        self._runs: dict[tuple[str, str, int], Run] = {}
        self._others: list[dict[str, Any]] = []
        self._decided: dict[tuple[str, str], tuple[int, int]] = {}  # seeds needed, and run
        self._read_kept()

    @property
    def names(self) -> list[str]:
        """The rows' names."""
        return list(self._tables)

    def run(self, networks: Sequence[str], names: Sequence[str], num_seeds: int) -> None:
        """Trains what is not there yet: every network, row and seed 0 to `num_seeds` - 1, seed by seed. These are the
        seeds that rows are compared over, whatever else was run in the folder.

        Rows of equal vectors (strict texts are plain's) are trained once.
        """
        self._num_seeds = num_seeds
        self._train(networks, names, num_seeds)

    def _train(self, networks: Sequence[str], names: Sequence[str], num_seeds: int) -> None:
        wanted = [(network, name, seed) for seed in range(num_seeds) for network in networks for name in names]
        missing = [key for key in wanted if key not in self._runs]
        first = {(network, self._digests[name], seed): (network, name, seed) for network, name, seed in missing[::-1]}
        unlike = [key for key in missing if key in first.values() and self._of_equal_vectors(*key) is None]
        # Several at a time, a thread each: layers this small gain little by a second one, runs beside each other all.
        with (
            tqdm(total=len(unlike), desc="training", unit="run") as bar,
            joblib.parallel_config("loky", n_jobs=self._num_jobs, inner_max_num_threads=1),
        ):
            made = joblib.Parallel(return_as="generator_unordered", mmap_mode="c")(
                joblib.delayed(train)(network, name, self._samples, self._tables_of(name, seed), seed)
                for network, name, seed in unlike
            )
            for run in made:
                self._runs[run.network, run.knowledge, run.seed] = run
                self._keep()
                bar.set_postfix_str(f"{run.network}, {run.knowledge}, seed {run.seed}")
                bar.update()
        for key in missing:
            if key not in self._runs:
                equal = self._of_equal_vectors(*key)
                assert equal is not None
                self._runs[key] = equal
        self._keep()

    def decide(
        self, network: str, name: str, say: Callable[[str], None], num_pilot: int, max_seeds: int = MAX_SEEDS
    ) -> Comparison:
        """Runs as many seeds of one comparison, named beforehand, as its pilot's spread asks for.

        The pilot is seeds 0 to `num_pilot` - 1 whatever was run since, so the same command decides the same.

        Raises:
            ValueError: `name` is the reference.
        """
        if name == self._reference:
            raise ValueError(f"{name!r} is the reference itself, must be a row that is compared with it")
        ours, reference = self._paired(network, name, num_pilot)
        pilot = compare([run.auc for run in ours], [run.auc for run in reference])
        needed = max(pilot.num_needed, num_pilot)
        num_seeds = min(needed, max(max_seeds, num_pilot))
        self._decided[network, name] = needed, num_seeds
        say(
            f"{network}, {name} against {self._reference}: spread {pilot.spread:.5f} over {pilot.num_seeds} seeds, "
            f"so {needed} seeds are needed; {num_seeds} are run"
        )
        self._train([network], [self._reference, name], num_seeds)
        return self.compare(network, name)

    def compare(self, network: str, name: str) -> Comparison:
        """AUC of a row against the reference, over the seeds of `run`; of a decided one, over its own."""
        needed, _ = self._decided.get((network, name), (None, 0))
        ours, reference = self._paired(network, name)
        return compare([run.auc for run in ours], [run.auc for run in reference], num_needed=needed)

    def rows(self, networks: Sequence[str]) -> list[Row]:
        """All rows, in the order of networks and names."""
        return [self._row(network, name) for network in networks for name in self._tables]

    def _row(self, network: str, name: str) -> Row:
        ours, reference = self._paired(network, name)
        if name == self._reference or len(ours) < 2:
            return Row(network, name, ours, None, None)
        return Row(
            network,
            name,
            ours,
            self.compare(network, name),
            compare([run.log_loss for run in ours], [run.log_loss for run in reference]),
            (network, name) in self._decided,
        )

    def _tables_of(self, name: str, seed: int) -> Mapping[str, NDArray[np.float32]]:
        return shuffled(self._tables[name], seed) if name == self._shuffled else self._tables[name]

    def _paired(self, network: str, name: str, num_seeds: int | None = None) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
        """A row's runs and the reference's, over the first `num_seeds` seeds as far as both have them; None: over
        those of `run`, of a decided row over those that its decision ran."""
        if num_seeds is None:
            _, num_seeds = self._decided.get((network, name), (0, self._num_seeds))
        seeds = sorted(
            seed for net, row, seed in self._runs if (net, row) == (network, name) and seed < num_seeds
        )  # fmt: skip
        both = [seed for seed in seeds if (network, self._reference, seed) in self._runs]
        ours = tuple(self._runs[network, name, seed] for seed in both)
        return ours, tuple(self._runs[network, self._reference, seed] for seed in both)

    def _of_equal_vectors(self, network: str, name: str, seed: int) -> Run | None:
        for other in self.names:
            run = self._runs.get((network, other, seed))
            if run is not None and self._digests[other] == self._digests[name]:
                return replace(run, knowledge=name)
        return None

    def _read_kept(self) -> None:
        for row in read_rows(self._path, RUN_SCHEMA) if self._path.exists() else ():
            if row["digest"] == self._digests.get(row["knowledge"]):
                run = Run(**{name: value for name, value in row.items() if name != "digest"})
                self._runs[run.network, run.knowledge, run.seed] = run
            else:
                self._others.append(row)

    def _keep(self) -> None:
        rows = [{**asdict(run), "digest": self._digests[run.knowledge]} for run in self._runs.values()] + self._others
        write_parquet(self._path, pyarrow.Table.from_pylist(rows, schema=RUN_SCHEMA))


def _digest(samples: SampleSplit, tables: Mapping[str, NDArray[np.float32]], *, is_shuffled: bool) -> str:
    """Of all that a run depends on but its seed and network: a run of other code or libraries is another one."""
    versions = TRAINING_VERSION, version("torch"), version("deepctr-torch"), is_shuffled
    digest = hashlib.sha256(repr(versions).encode())
    for part in (samples.train, samples.validation, samples.test):
        for array in (part.fields, part.liked, part.history_ends, part.history_lens, part.labels):
            digest.update(np.ascontiguousarray(array).data)
    for kind, table in tables.items():
        digest.update(kind.encode())
        digest.update(np.ascontiguousarray(table).data)
    return digest.hexdigest()
