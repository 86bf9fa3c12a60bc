from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from laser_recsys.cli import main
from laser_recsys.ctr import encoder, knowledge_vectors
from laser_recsys.ctr.evaluation import NO_KNOWLEDGE, Evaluation
from laser_recsys.ctr.knowledge_vectors import KnowledgeVectors, load_knowledge, shuffled
from laser_recsys.ctr.networks import NETWORKS, KnowledgeNetwork
from laser_recsys.ctr.report import text_table, write_report
from laser_recsys.ctr.samples import HISTORY_LEN, SampleSplit, make_samples
from laser_recsys.ctr.statistics import compare, num_seeds_needed
from laser_recsys.ctr.training import train
from laser_recsys.datasets.dataset import Dataset, Item, Ratings, Split, User, split
from laser_recsys.datasets.prepared import write_prepared
from laser_recsys.frameworks.prompts import Prompt
from laser_recsys.knowledge.rows import SCHEMA, STRICT, Task, make_row, write_knowledge
from laser_recsys.lock import alone_in
from laser_recsys.parquet_files import marked
from tests.recsys.conftest import MakeGeneration
from tests.verifier.tiny import tiny_tokenizer

NUM_USERS, NUM_ITEMS, NUM_RATINGS = 60, 1500, 40


@pytest.fixture(scope="module")
def liking() -> tuple[Dataset, Split]:
    """All like the items of one colour. An item is rated once or twice, so that only knowledge tells its colour."""
    random = np.random.default_rng(0)
    rows = [
        (user, item, 5 if item % 2 else 1, 100 * place)
        for user in range(NUM_USERS)
        for place, item in enumerate(random.permutation(NUM_ITEMS)[:NUM_RATINGS].tolist())
    ]
    users, items, stars, times = np.array(rows, np.int64).T
    ratings = Ratings.sort(users, items, stars.astype(np.float32), times)
    titles = {item: Item(str(item), f"Item {item}", None, ("Drama",)) for item in range(NUM_ITEMS)}
    known = {user: User(str(user), {"age": "20"}) for user in range(NUM_USERS)}
    return Dataset("liking", "movie", titles, known, ratings), split(ratings)


@pytest.fixture(scope="module")
def samples(liking: tuple[Dataset, Split]) -> SampleSplit:
    return make_samples(*liking)


def mixed(vectors: KnowledgeVectors) -> KnowledgeVectors:
    return KnowledgeVectors(shuffled(vectors.tables, 0), vectors.coverage)


@pytest.fixture(scope="module")
def colours() -> KnowledgeVectors:
    """One-hot colours: the answer in two numbers."""
    tables = {}
    for kind, num in (("user", NUM_USERS), ("item", NUM_ITEMS)):
        table = np.zeros((num + 1, 4), np.float32)
        table[np.arange(1, num + 1), np.arange(num) % 2] = 1.0
        tables[kind] = table
    return KnowledgeVectors(tables, "all")


def test_targets_are_the_ratings_after_the_past_in_their_parts(
    liking: tuple[Dataset, Split], samples: SampleSplit
) -> None:
    parts = liking[1]
    for made, part in (
        (samples.train, parts.training),
        (samples.validation, parts.validation),
        (samples.test, parts.test),
    ):
        assert len(made) == len(part)
        first = part.of_user(0)
        of_user = made.fields[:, 0] == 1
        assert made.fields[of_user, 1].tolist() == (first.item_ids + 1).tolist()
        assert made.labels[of_user].tolist() == (first.stars >= 4).tolist()


def test_a_samples_history_is_what_its_user_liked_before_it_and_nothing_later(
    liking: tuple[Dataset, Split], samples: SampleSplit
) -> None:
    own = liking[0].ratings.of_user(7)
    part = samples.validation
    for row in np.flatnonzero(part.fields[:, 0] == 8):
        place = int(np.flatnonzero(own.item_ids == part.fields[row, 1] - 1)[0])
        liked = (own.item_ids[:place][own.stars[:place] >= 4] + 1)[-HISTORY_LEN:].tolist()
        history = part.histories(slice(row, row + 1))[0]
        assert history[: part.history_lens[row]].tolist() == liked
        assert not history[part.history_lens[row] :].any()


def test_a_part_without_both_labels_is_an_error(liking: tuple[Dataset, Split]) -> None:
    dataset, parts = liking
    with pytest.raises(ValueError, match="test has 0 samples, must have liked and disliked ones"):
        make_samples(dataset, dataclasses.replace(parts, test=parts.test.take(slice(0, 0))))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_probabilities_and_one_seed_gives_the_same(
    name: str, samples: SampleSplit, colours: KnowledgeVectors
) -> None:
    part = samples.test
    batch = [torch.from_numpy(array[:16]) for array in (part.fields, part.histories(slice(None)), part.history_lens)]
    for vectors in ({}, colours.tables):
        first, again, other = (
            KnowledgeNetwork(name, samples.vocabulary, vectors, seed).eval()(*batch) for seed in (1, 1, 2)
        )
        assert first.shape == (16,) and bool(((first > 0) & (first < 1)).all())
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_layers_of_every_network_start_alike(samples: SampleSplit) -> None:
    for name in NETWORKS:
        network = KnowledgeNetwork(name, samples.vocabulary, {}, seed=0)
        spreads = [
            float(weight.detach().std())
            for part, weight in network.named_parameters()
            if ".dnn.linears" in part and weight.ndim > 1
        ]
        assert len(spreads) >= 2 and spreads == pytest.approx([0.01] * len(spreads), rel=0.1), name


def test_the_shuffled_control_is_another_one_for_every_seed(
    samples: SampleSplit, colours: KnowledgeVectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def seeing(network: str, name: str, samples: SampleSplit, tables: Any, seed: int) -> Any:
        seen.append((name, tables))
        return train(network, name, samples, tables, seed, max_epochs=1)

    monkeypatch.setattr("laser_recsys.ctr.evaluation.train", seeing)
    evaluation = Evaluation(samples, {"plain": colours}, "plain", tmp_path, with_shuffled=True)
    evaluation.run(["deepfm"], ["plain", "plain, shuffled"], 2)
    plain, first, again, second = (tables["item"] for _, tables in seen)
    assert [name for name, _ in seen] == ["plain", "plain, shuffled"] * 2
    assert plain is again and all(sorted(map(tuple, t)) == sorted(map(tuple, plain)) for t in (first, second))
    assert not np.array_equal(first, plain) and not np.array_equal(first, second)


def test_knowledge_that_tells_the_answer_is_used_and_shuffled_it_is_not(
    samples: SampleSplit, colours: KnowledgeVectors
) -> None:
    none = train("deepfm", NO_KNOWLEDGE, samples, {}, seed=0, max_epochs=4)
    told = train("deepfm", "told", samples, colours.tables, seed=0, max_epochs=4)
    mixed = train("deepfm", "mixed", samples, shuffled(colours.tables, 0), seed=0, max_epochs=4)
    assert told.auc > 0.95
    assert told.auc > max(none.auc, mixed.auc) + 0.15
    assert told.validation_auc > 0.95


def test_runs_are_kept_and_only_missing_ones_are_trained(
    samples: SampleSplit, colours: KnowledgeVectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def counted(*arguments: object) -> object:
        trained.append(arguments[1:2] + arguments[4:])
        return train(*arguments, max_epochs=1)  # type: ignore[arg-type]

    monkeypatch.setattr("laser_recsys.ctr.evaluation.train", counted)
    evaluation = Evaluation(samples, {"plain": colours}, "plain", tmp_path, with_shuffled=True)
    evaluation.run(["deepfm"], evaluation.names, 2)
    assert trained == [(name, seed) for seed in (0, 1) for name in (NO_KNOWLEDGE, "plain", "plain, shuffled")]
    again = Evaluation(samples, {"plain": colours}, "plain", tmp_path, with_shuffled=True)
    again.run(["deepfm"], again.names, 3)
    assert len(trained) == 9
    changed = Evaluation(samples, {"plain": mixed(colours)}, "plain", tmp_path)
    changed.run(["deepfm"], changed.names, 1)
    assert trained[9:] == [("plain", 0)]
    table = text_table("plain", again.rows(["deepfm"]))
    assert "reference" in table and "different" in table
    of_one_seed = text_table("plain", changed.rows(["deepfm"]))
    assert of_one_seed.count("reference") == 1 and of_one_seed.count("one seed") == 1
    write_report(tmp_path / "report.html", "liking", "counts", "plain", again.rows(["deepfm"]), [("plain", "all")])
    page = (tmp_path / "report.html").read_text(encoding="utf8")
    assert page.count("<svg") == 2 and "plain, shuffled" in page and "<script" not in page and "http" not in page


def test_a_decision_runs_the_seeds_its_spread_asks_for_and_no_more_than_the_limit(
    samples: SampleSplit, colours: KnowledgeVectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laser_recsys.ctr.evaluation.train", lambda *arguments: train(*arguments, max_epochs=1))
    evaluation = Evaluation(samples, {"plain": colours, "other": mixed(colours)}, "plain", tmp_path)
    evaluation.run(["deepfm"], ["plain", "other"], 2)
    said: list[str] = []
    compared = evaluation.decide("deepfm", "other", said.append, num_pilot=2, max_seeds=4)
    assert (compared.num_seeds, compared.verdict) == (4, "different")
    assert "spread" in said[0] and "4 are run" in said[0]
    again = evaluation.decide("deepfm", "other", said.append, num_pilot=2, max_seeds=4)
    assert again == compared and said[1] == said[0], "the pilot stays what it was"
    evaluation.run(["deepfm"], ["plain", "other"], 5)
    later = evaluation.decide("deepfm", "other", said.append, num_pilot=2, max_seeds=4)
    assert later == compared, "and seeds that were run since do not join in"
    row = next(row for row in evaluation.rows(["deepfm"]) if row.knowledge == "other")
    assert row.auc == later and len(row.runs) == row.log_loss.num_seeds == 4, "in no cell of the row"
    assert row.is_decided and "(named beforehand)" in text_table("plain", [row])
    fewer = Evaluation(samples, {"plain": colours, "other": mixed(colours)}, "plain", tmp_path)
    fewer.run(["deepfm"], fewer.names, 3)
    row = next(row for row in fewer.rows(["deepfm"]) if row.knowledge == "other")
    assert len(row.runs) == row.auc.num_seeds == 3, "no more seeds than asked for, however many were run: who looks on"
    assert not row.is_decided and "named" not in text_table("plain", [row])
    with pytest.raises(ValueError, match="'plain' is the reference itself"):
        evaluation.decide("deepfm", "plain", said.append, num_pilot=2)
    runs = pq.read_table(tmp_path / "runs.parquet").to_pylist()
    assert sorted(run["seed"] for run in runs if run["knowledge"] == "other") == [0, 1, 2, 3, 4]


def test_the_seeds_a_margin_needs_grow_with_the_square_of_the_spread() -> None:
    assert num_seeds_needed(0.0) == 2
    assert num_seeds_needed(0.001) == 9
    assert num_seeds_needed(0.002) == 35


def test_verdicts_are_equivalent_different_or_inconclusive() -> None:
    reference = [0.75 + 0.01 * seed for seed in range(12)]
    noise = [0.0001 * (-1) ** seed for seed in range(12)]

    def verdict(shift: float, scale: float = 1.0, num: int = 12) -> str:
        return compare(
            [r + shift + scale * n for r, n in zip(reference, noise, strict=True)][:num], reference[:num]
        ).verdict

    assert verdict(0.0) == "equivalent"
    assert verdict(0.0008) == "equivalent"
    assert verdict(0.001) == "inconclusive"
    assert verdict(0.003) == verdict(-0.003) == "different"
    assert verdict(0.0, scale=20.0) == "inconclusive"  # 42 seeds are needed
    assert verdict(0.0, scale=20.0, num=2) == "inconclusive"
    assert verdict(0.1, scale=20.0) == "different", "a clear loss is told with however few seeds"
    assert compare([r + 0.0001 for r in reference], reference, num_needed=13).verdict == "inconclusive"


@given(st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=30))
def test_the_interval_holds_the_mean_and_equivalence_means_the_interval_is_near_zero(values: list[float]) -> None:
    compared = compare(values, [0.0] * len(values))
    assert compared.low <= compared.mean <= compared.high
    if compared.verdict == "equivalent":
        assert abs(compared.mean) < 0.001
    if compared.verdict == "different":
        assert compared.low > 0.001 or compared.high < -0.001


def test_one_pair_of_seeds_is_no_comparison() -> None:
    with pytest.raises(ValueError, match="1 pairs of seeds, must be at least 2"):
        compare([0.7], [0.7])


@pytest.fixture
def fake_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        knowledge_vectors,
        "encode_cached",
        lambda texts, cache: np.full((len(texts), encoder.DIMENSIONS), 1, np.float32),
    )


def write(
    path: Path, make: MakeGeneration, *ids: tuple[str, str], pool: str = "liking/kar/user/0", prompt: str = "?"
) -> None:
    rows = [
        make_row(Task(Prompt(text_id, kind, "kar", prompt), pool), make([1]), STRICT, "tiny") for kind, text_id in ids
    ]
    write_knowledge(path, rows)


@pytest.mark.usefixtures("fake_encoder")
def test_texts_stand_at_their_users_and_items_and_the_rest_is_zero(
    liking: tuple[Dataset, Split], samples: SampleSplit, make_generation: MakeGeneration, tmp_path: Path
) -> None:
    first, second = tmp_path / "users.parquet", tmp_path / "items.parquet"
    write(first, make_generation, ("user", "0"), ("user", "59"))
    write(second, make_generation, ("item", "3"))
    vectors = load_knowledge([first, second], liking[0], "user 1", samples.vocabulary, tmp_path)
    assert np.flatnonzero(vectors.tables["user"].any(1)).tolist() == [1, 60]
    assert np.flatnonzero(vectors.tables["item"].any(1)).tolist() == [4]
    assert vectors.coverage == "2 of 60 users, 1 of 1500 items"


@pytest.mark.usefixtures("fake_encoder")
def test_knowledge_of_another_dataset_or_of_someone_twice_is_an_error(
    liking: tuple[Dataset, Split], samples: SampleSplit, make_generation: MakeGeneration, tmp_path: Path
) -> None:
    path = tmp_path / "k.parquet"
    for ids, message in (
        ([("user", "nobody")], "no id is a user or item of liking"),
        ([("user", "0"), ("user", "0")], "user 0 stands twice"),
        ([("shop", "0")], "kind is 'shop', must be 'user' or 'item'"),
    ):
        write(path, make_generation, *ids)
        with pytest.raises(ValueError, match=message):
            load_knowledge([path], liking[0], "user 1", samples.vocabulary, tmp_path)
    write(path, make_generation, ("user", "0"), pool="liking-user-1/kar/user/0")
    load_knowledge([path], liking[0], "user 1", samples.vocabulary, tmp_path)
    write(path, make_generation, ("user", "0"), pool="ml-1m/kar/user/0")
    with pytest.raises(ValueError, match="user 0 is knowledge of 'ml-1m', must be of 'liking'"):
        load_knowledge([path], liking[0], "user 1", samples.vocabulary, tmp_path)


@pytest.mark.usefixtures("fake_encoder")
def test_knowledge_of_another_split_is_an_error_also_in_a_directory(
    liking: tuple[Dataset, Split], samples: SampleSplit, make_generation: MakeGeneration, tmp_path: Path
) -> None:
    (tmp_path / "k").mkdir()
    for number, split_known in enumerate(("user 1", "time 1")):
        path = tmp_path / "k" / f"{number}.parquet"
        write(path, make_generation, ("user", str(number)))
        pq.write_table(pq.read_table(path).cast(marked(SCHEMA, split_known)), path)
    load_knowledge([tmp_path / "k" / "0.parquet"], liking[0], "user 1", samples.vocabulary, tmp_path)
    with pytest.raises(ValueError, match=r"k was made for another split \(time 1\), must be for the data's \(user 1\)"):
        load_knowledge([tmp_path / "k"], liking[0], "user 1", samples.vocabulary, tmp_path)


def test_the_command_goes_from_knowledge_files_to_a_decision_and_a_page(
    liking: tuple[Dataset, Split],
    make_generation: MakeGeneration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def encode(texts: list[str], cache: Path) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(len(texts), encoder.DIMENSIONS)).astype(np.float32)

    monkeypatch.setattr(knowledge_vectors, "encode_cached", encode)
    monkeypatch.setattr("laser_recsys.ctr.evaluation.train", lambda *arguments: train(*arguments, max_epochs=1))
    write_prepared(tmp_path / "data", liking[0])
    plain, relaxed, items = (tmp_path / f"{name}.parquet" for name in ("plain", "relaxed", "items"))
    write(plain, make_generation, *(("user", str(user)) for user in range(NUM_USERS)))
    write(relaxed, make_generation, ("user", "0"))
    write(items, make_generation, ("item", "3"))
    command = [
        "evaluate", "--data", str(tmp_path / "data"), "--knowledge", f"plain={plain},{items}",
        f"relaxed={relaxed},{items}", "--networks", "deepfm", "--seeds", "2", "--max-seeds", "3", "--decide", "relaxed",
        "--shuffled", "--jobs", "1", "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "60 of 60 users have training samples" in said
    rows = {line.split("  ")[1].strip(): line for line in said.splitlines() if line.startswith("deepfm  ")}
    assert rows.keys() == {"no knowledge", "plain", "plain, shuffled", "relaxed"}
    assert "reference" in rows["plain"]
    assert any(verdict in rows["relaxed"] for verdict in ("equivalent", "inconclusive", "different"))
    assert "deepfm, relaxed against plain: spread" in said and "3 are run" in said
    write(relaxed, make_generation, ("user", "0"), prompt="another?")
    assert main(command) == 1
    assert (
        "the texts of 1 of 2 users and items are of other prompts or another model, user 0" in capsys.readouterr().err
    )
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf8")
    assert "60 of 60 users, 1 of 1500 items" in page and "1 of 60 users, 1 of 1500 items" in page
    runs = pq.read_table(tmp_path / "out" / "runs.parquet").to_pylist()
    assert {run["knowledge"] for run in runs} == {"no knowledge", "plain", "plain, shuffled", "relaxed"}


def test_more_users_than_a_float_can_number_are_refused(
    liking: tuple[Dataset, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laser_recsys.ctr.samples._MAX_SIZE", NUM_ITEMS)
    with pytest.raises(ValueError, match="60 users and 1500 items, must be below 1500 of each"):
        make_samples(*liking)


def test_two_evaluations_do_not_write_one_folder(
    liking: tuple[Dataset, Split], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_prepared(tmp_path / "data", liking[0])
    output = tmp_path / "out"
    with alone_in(output, output / "evaluation.lock"):
        assert main(["evaluate", "--data", str(tmp_path / "data"), "--output", str(output)]) == 1
    assert f"another process works in {output}: wait for it" in capsys.readouterr().err


@pytest.fixture
def tiny_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A BERT of random weights in the encoder's place; the cache directory."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=64, **shape)).save_pretrained(tmp_path / "bert")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    tokenizer.save_pretrained(tmp_path / "bert")
    monkeypatch.setattr(encoder, "prepare_encoder", lambda cache: tmp_path / "bert")
    return tmp_path / "cache"


def test_a_texts_vector_does_not_depend_on_the_texts_beside_it(tiny_encoder: Path) -> None:
    texts = [" ".join(f"w{(3 * n + place) % 40}" for place in range(1 + 5 * n)) for n in range(40)]
    loaded = encoder.Encoder(tiny_encoder.parent / "bert")
    together = loaded.encode(texts)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert len({vector.tobytes() for vector in together}) == len(texts)
    for places in ([7], [39, 0, 12, 7], range(40)[::-1]):
        assert np.array_equal(loaded.encode([texts[place] for place in places]), together[list(places)])


def test_what_is_encoded_is_kept_shard_by_shard_and_only_the_rest_is_encoded(
    tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_SHARD", 4)
    encoded: list[int] = []
    original = encoder.Encoder.encode

    def until_it_fails(self: encoder.Encoder, texts: list[str], on_done: Any) -> Any:
        if len(encoded) == 2:
            raise RuntimeError("killed")
        encoded.append(len(texts))
        return original(self, texts, on_done)

    monkeypatch.setattr(encoder.Encoder, "encode", until_it_fails)
    texts = [f"w{n} w{n + 1}" for n in range(12)]
    with pytest.raises(RuntimeError, match="killed"):
        encoder.encode_cached(texts, tiny_encoder)
    monkeypatch.setattr(encoder.Encoder, "encode", original)
    first = encoder.encode_cached([*texts, texts[0]], tiny_encoder)
    assert np.array_equal(first[0], first[-1])
    monkeypatch.setattr(encoder.Encoder, "encode", until_it_fails)
    assert np.array_equal(encoder.encode_cached(texts[::-1], tiny_encoder), first[-2::-1])
    with pytest.raises(RuntimeError, match="killed"):
        encoder.encode_cached([*texts, "w30"], tiny_encoder)


@pytest.mark.timeout(180)
def test_runs_beside_each_other_give_what_runs_after_each_other_give(samples: SampleSplit, tmp_path: Path) -> None:
    auc = {}
    for num_jobs in (1, 2):
        evaluation = Evaluation(samples, {}, NO_KNOWLEDGE, tmp_path / str(num_jobs), num_jobs)
        evaluation.run(["deepfm"], [NO_KNOWLEDGE], 2)
        auc[num_jobs] = [run.auc for run in evaluation.rows(["deepfm"])[0].runs]
    assert len(auc[1]) == 2 and auc[1] == auc[2]


def test_runs_of_other_rows_stay_and_rows_of_equal_vectors_are_trained_once(
    samples: SampleSplit, colours: KnowledgeVectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []

    def counted(network: str, name: str, *arguments: Any) -> Any:
        trained.append((name, arguments[-1]))
        return train(network, name, *arguments, max_epochs=1)

    monkeypatch.setattr("laser_recsys.ctr.evaluation.train", counted)
    first = Evaluation(samples, {"plain": colours, "strict": colours}, "plain", tmp_path)
    first.run(["deepfm"], ["plain", "strict"], 2)
    assert trained == [("plain", 0), ("plain", 1)]
    assert first.compare("deepfm", "strict").mean == 0.0
    second = Evaluation(samples, {"other": mixed(colours)}, "other", tmp_path)
    second.run(["deepfm"], ["other"], 1)
    third = Evaluation(samples, {"plain": colours, "strict": colours}, "plain", tmp_path)
    third.run(["deepfm"], ["plain", "strict"], 2)
    assert trained[2:] == [("other", 0)], "what another command trained in the folder is still there"
