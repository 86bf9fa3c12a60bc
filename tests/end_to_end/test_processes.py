"""Two real server processes with a tiny model: the whole path, and what happens when parts of it die."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from laser_client import InvalidRequest, LaserClient, PoolMismatch, Relaxed, Unauthenticated, UnknownPool
from laser_client.pools import Document, PoolClient
from laser_protocol.channel import Endpoint
from laser_recsys.processes import command_path, free_address
from tests.end_to_end.servers import kill, retriever, verifier
from tests.verifier.tiny import tiny_network, tiny_tokenizer

PROMPTS = [[i, i + 1, (7 * i) % 40] for i in range(10)]
NUM_TOKENS = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    # Deep enough that a step takes milliseconds: the engine waits a quarter of one for drafts.
    tiny_network("llama", seed=4, num_hidden_layers=12).to(torch.float32).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def retriever_address(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[str]:
    with retriever(tmp_path_factory.mktemp("pools"), logs / "retriever.log") as process:
        yield process.address


@pytest.fixture(scope="module")
def client(model: Path, logs: Path, retriever_address: str) -> Iterator[LaserClient]:
    options = ("--retriever", retriever_address, "--draft-policy", "all", "--max-sequences", "4")
    with verifier(model, logs / "verifier.log", *options) as process, LaserClient(process.address) as client:
        yield client


@pytest.fixture(scope="module")
def pools(retriever_address: str) -> Iterator[PoolClient]:
    with PoolClient(Endpoint.make(retriever_address)) as pools:
        yield pools


def until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.05)


def test_what_is_learned_is_drafted_from_and_changes_nothing(client: LaserClient, pools: PoolClient) -> None:
    plain = client.generate(PROMPTS, draft=False, max_new_tokens=NUM_TOKENS)
    assert {g.stats.draft_status for g in plain} == {"off"}
    ids = [f"user {i}" for i in range(len(PROMPTS))]
    first = client.generate(PROMPTS, pool="t/learn", learn=True, document_id=ids, max_new_tokens=NUM_TOKENS)
    until(lambda: any(p.id == "t/learn" and p.num_documents == len(PROMPTS) for p in pools.list_pools()))
    time.sleep(2.5)  # readers look every two seconds
    second = client.generate(PROMPTS, pool="t/learn", max_new_tokens=NUM_TOKENS)
    assert [g.token_ids for g in first] == [g.token_ids for g in second] == [g.token_ids for g in plain]
    assert {g.stats.draft_status for g in second} == {"ok"}
    # How many depends on how often drafts are there in time, so on the machine: that is for benchmarks.
    assert sum(g.stats.num_accepted_tokens for g in second) > len(PROMPTS)
    assert sum(g.stats.num_steps for g in second) < sum(g.stats.num_steps for g in plain)


def test_an_unknown_pool_answers_and_says_so(client: LaserClient) -> None:
    assert client.generate([1, 2], pool="t/nobody/7", max_new_tokens=100).stats.draft_status == "no_pool"
    assert client.generate([1, 2], max_new_tokens=100).stats.draft_status == "no_pool"


def test_another_tokenizers_pool_answers_plainly_and_takes_no_documents_of_ours(
    client: LaserClient, pools: PoolClient
) -> None:
    list(pools.add("t/foreign", "0" * 64, [Document.make("x", [1, 2, 3])]))
    until(
        lambda: client.generate([1, 2], pool="t/foreign", max_new_tokens=4).stats.draft_status == "tokenizer_mismatch"
    )
    ours = client.model().tokenizer_fingerprint
    with pytest.raises(PoolMismatch) as caught:
        list(pools.add("t/foreign", ours, [Document.make("y", [1])]))
    assert "0" * 12 in str(caught.value) and ours[:12] in str(caught.value)


def test_bad_input_names_its_field_over_the_whole_path(client: LaserClient, pools: PoolClient) -> None:
    with pytest.raises(InvalidRequest, match="max_new_tokens") as caught:
        client.generate([1], max_new_tokens=100_000)
    assert caught.value.field == "max_new_tokens"
    with pytest.raises(InvalidRequest) as caught:
        client.generate([1], pool="a/../b")
    assert caught.value.field == "pool"
    with pytest.raises(UnknownPool):
        pools.describe("t/unknown")


@pytest.mark.parametrize("acceptance", [None, Relaxed()])
def test_killing_the_retriever_mid_run_loses_no_request_and_changes_no_strict_output(
    model: Path, tmp_path: Path, acceptance: Relaxed | None
) -> None:
    """The retriever dies once accepted drafts were seen, and drafts again after it is back."""
    address = free_address()
    pools = tmp_path / "pools"
    with verifier(
        model, tmp_path / "verifier.log", "--retriever", address, "--draft-policy", "all", "--max-sequences", "4"
    ) as server, LaserClient(server.address) as client:  # fmt: skip
        plain = client.generate(PROMPTS, draft=False, max_new_tokens=NUM_TOKENS)
        fingerprint = client.model().tokenizer_fingerprint
        with retriever(pools, tmp_path / "retriever.log", address) as process:
            documents = [Document.make(str(i), g.token_ids) for i, g in enumerate(plain)]
            with PoolClient(Endpoint.make(address)) as pool_client:
                assert sum(pool_client.add("t/kill", fingerprint, documents)) == len(documents)
            until(lambda: client.generate(PROMPTS[0], pool="t/kill", max_new_tokens=8).stats.num_accepted_tokens > 0)
            streams = [
                client.stream(prompt, pool="t/kill", acceptance=acceptance, max_new_tokens=NUM_TOKENS)
                for prompt in PROMPTS
            ]
            # A stream's call begins with its first chunk: now as many run as the server takes.
            running = [next(stream) for stream in streams[:4]]
            assert any(c.accepted_length for c in running) or any(c.accepted_length for c in streams[0])
            kill(process)
            ended = [stream.finish() for stream in streams]
        assert all(g.stats.num_output_tokens == NUM_TOKENS for g in ended)
        if acceptance is None:
            assert [g.token_ids for g in ended] == [g.token_ids for g in plain]
        assert client.generate(PROMPTS[1], pool="t/kill", max_new_tokens=8).stats.draft_status == "no_retriever"
        with retriever(pools, tmp_path / "again.log", address):
            until(lambda: client.generate(PROMPTS[0], pool="t/kill", max_new_tokens=8).stats.num_accepted_tokens > 0)


def test_two_shards_share_a_directory_and_one_alone_goes_on(model: Path, tmp_path: Path) -> None:
    pools = tmp_path / "pools"
    with (
        retriever(pools, tmp_path / "r1.log", None, "--name", "r1") as first,
        retriever(pools, tmp_path / "r2.log", None, "--name", "r2") as second,
        verifier(
            model, tmp_path / "v.log", "--retriever", f"{first.address},{second.address}", "--draft-policy", "all"
        ) as server,
        LaserClient(server.address) as client,
    ):
        names = [f"t/{i}" for i in range(len(PROMPTS))]
        plain = client.generate(
            PROMPTS, pool=names, learn=True, document_id=["x"] * len(PROMPTS), max_new_tokens=NUM_TOKENS
        )
        with PoolClient(Endpoint.make(first.address)) as pool_client:
            until(lambda: len(pool_client.list_pools()) == len(names))
        until(lambda: all(g.stats.draft_status == "ok" for g in client.generate(PROMPTS, pool=names, max_new_tokens=2)))
        kill(first)
        again = client.generate(PROMPTS, pool=names, max_new_tokens=NUM_TOKENS)
        assert [g.token_ids for g in again] == [g.token_ids for g in plain]
        # Drafts of all pools, those that the dead shard wrote among them, now come from the other.
        assert sum(g.stats.num_accepted_tokens for g in again) > len(PROMPTS)
        learned = client.generate(PROMPTS[0], pool=names[0], learn=True, document_id="y", max_new_tokens=8)
        assert learned.stats.num_output_tokens == 8
        with PoolClient(Endpoint.make(second.address)) as pool_client:
            until(lambda: pool_client.describe(names[0]).num_documents == 2, 20.0)


def test_tokens_guard_both_servers_and_the_verifier_has_the_retrievers(model: Path, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("open sesame\n")
    guarded = ("--token-file", str(token_file))
    with retriever(tmp_path / "pools", tmp_path / "r.log", None, *guarded) as shard:
        options = ("--retriever", shard.address, "--retriever-token-file", str(token_file), *guarded)
        with verifier(model, tmp_path / "v.log", *options) as server:
            with LaserClient(server.address, token="open sesame") as client:
                until(lambda: client.generate([1, 2], max_new_tokens=2).stats.draft_status == "no_pool")
            for token in (None, "wrong"):
                with LaserClient(server.address, token=token) as client, pytest.raises(Unauthenticated):
                    client.generate([1, 2], max_new_tokens=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "/no/such/model"], "model '/no/such/model': no such directory"),
        (["--model", "MODEL", "--retriever", "host"], "retriever is 'host'"),
        (["--model", "MODEL", "--max-sequences", "0"], "max_sequences is 0"),
        (["--model", "MODEL", "--min-prob", "1.5"], "min_prob is 1.5"),
        (["--model", "MODEL", "--listen", "nowhere"], "listen is 'nowhere'"),
        (["--model", "MODEL", "--token-file", "/no/such/file"], "token_file /no/such/file"),
    ],
)
def test_wrong_settings_end_the_command_with_one_line(model: Path, options: list[str], says: str) -> None:
    command = [command_path("laser-verifier"), "serve", "--listen", "127.0.0.1:0"]
    arguments = [str(model) if option == "MODEL" else option for option in options]
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and says in last
    assert "Traceback" not in ended.stderr
