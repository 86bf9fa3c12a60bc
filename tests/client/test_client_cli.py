"""The `laser` command end to end."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import subprocess
import sys
import time

import pyarrow
import pyarrow.parquet
import pytest
from scripted_servers import FINGERPRINT, ScriptedRetriever, ServerThread, delta, echo, finished, prompt_of

from laser_client.cli import main
from laser_client.document_files import read_document_file, write_document_file
from laser_client.output import ParquetWriter
from laser_client.pools import Document
from laser_protocol.errors import EngineDead, InvalidRequest, NotReady, StorageUnavailable, WriterElsewhere


@pytest.fixture
def laser(capsys):
    """Runs the command; gives exit code, standard output and standard error."""

    def run(*argv: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in argv])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def write_lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_prompt_is_streamed_to_stdout_and_its_stats_to_stderr(laser, verifier_server, verifier):
    code, out, err = laser(
        *("generate", "--verifier", verifier_server.target, "--prompt", "hello world", "--pool", "a/b"),
        *("--acceptance", "relaxed", "--top-k", 3, "--min-prob", 0.5, "--max-new-tokens", 9, "--stop", "###"),
        *("--system", "s", "--no-draft", "--learn"),
    )
    assert (code, out) == (0, "hello world\n")
    assert "2.00 tokens_per_step" in err and "2 of 8 tokens accepted (ok)" in err
    request = verifier.requests[0]
    assert (request.acceptance.relaxed.top_k, request.acceptance.relaxed.min_prob) == (3, 0.5)
    assert (request.max_new_tokens, list(request.stop), request.text.system) == (9, ["###"], "s")
    assert (request.drafting, request.learn, request.pool) == (2, True, "a/b")


def test_a_file_of_prompts_becomes_json_lines_in_the_same_order(laser, verifier_server, verifier, tmp_path):
    async def slow_first(request):
        await asyncio.sleep(0.2 if prompt_of(request) == "first" else 0)
        async for response in echo(request):
            yield response

    verifier.script = slow_first
    prompts = write_lines(
        tmp_path / "prompts.jsonl",
        {"id": "u1", "prompt": "first", "pool": "a/1"},
        "",
        {"prompt": [4, 5], "extra": True},
        {"id": 7, "prompt": "third"},
    )
    output = tmp_path / "results.jsonl"
    code, out, err = laser(
        *("generate", "--verifier", verifier_server.target, "--input", prompts, "--output", output),
        *("--pool", "a", "--learn"),
    )
    assert (code, out) == (0, "")
    rows = read_lines(output.read_text())
    assert [(row["id"], row["text"]) for row in rows] == [("u1", "first"), (3, "tokens [4, 5]"), (7, "third")]
    assert rows[0]["token_ids"] == [1, 2, 3, 4] and rows[0]["finish_reason"] == "stop"
    assert rows[0]["stats"]["tokens_per_step"] == 2.0 and rows[0]["stats"]["draft_status"] == "ok"
    got = {prompt_of(request): (request.pool, request.document_id) for request in verifier.requests}
    assert got == {"first": ("a/1", "u1"), "tokens [4, 5]": ("a", ""), "third": ("a", "7")}
    assert "prompts                3 (0 failed)" in err and "tokens_per_step        2.00" in err


def test_a_prompt_that_the_server_refuses_is_kept_as_an_error_and_the_others_go_on(
    laser, verifier_server, verifier, tmp_path
):
    async def refuse_b(request):
        if prompt_of(request) == "b":
            raise InvalidRequest("prompt has 600 tokens, must be at most 500", field="prompt")
        async for response in echo(request):
            yield response

    verifier.script = refuse_b
    prompts = write_lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"})
    code, out, err = laser("generate", "--verifier", verifier_server.target, "--input", prompts)
    assert code == 1
    assert [row.get("text", row.get("error")) for row in read_lines(out)] == [
        "a",
        "InvalidRequest: prompt has 600 tokens, must be at most 500",
        "c",
    ]
    assert "3 (1 failed)" in err


def test_of_several_verifiers_a_dead_one_costs_its_prompts_only(laser, verifier_server, verifier, tmp_path):
    async def dying(request):
        if prompt_of(request) == "b":
            raise EngineDead("the engine ended after a fault")
        async for response in echo(request):
            yield response

    verifier.script = dying
    prompts = write_lines(tmp_path / "p.jsonl", *({"prompt": name} for name in "abc"))
    options = ("--input", prompts, "--max-in-flight", "2")
    code, out, _ = laser("generate", "--verifier", f"ipv4:{verifier_server.target}", *options)
    assert code == 1
    assert [row.get("text") for row in read_lines(out)] == ["a", None, "c"]
    code, out, err = laser("generate", "--verifier", verifier_server.target, *options)
    assert code == 1 and "the engine ended" in err and len(read_lines(out)) < 3, "the next would find it dead too"
    prompts = write_lines(tmp_path / "p.jsonl", *({"prompt": name} for name in "acb"))
    code, out, err = laser("generate", "--verifier", f"ipv4:{verifier_server.target}", *options)
    assert code == 1 and "3 (1 failed)" in err
    assert [row.get("text") for row in read_lines(out)] == ["a", "c", None], "no prompt after it says that others live"


def test_where_all_of_several_verifiers_are_dead_an_earlier_output_stays(laser, verifier_server, verifier, tmp_path):
    async def dead(request):
        raise EngineDead("the engine ended after a fault")
        yield

    verifier.script = dead
    prompts = write_lines(tmp_path / "p.jsonl", *({"prompt": name} for name in "abcdef"))
    output = tmp_path / "out.jsonl"
    output.write_text("of an earlier job\n")
    options = ("--input", prompts, "--output", output, "--max-in-flight", "2")
    code, _, err = laser("generate", "--verifier", f"ipv4:{verifier_server.target}", *options)
    assert code == 1 and "the engine ended" in err
    assert output.read_text() == "of an earlier job\n"


def test_prompts_come_from_standard_input(laser, verifier_server, verifier, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"about a")))
    code, out, _ = laser(
        "generate",
        "--verifier",
        verifier_server.target,
        "--prompt",
        "-",
        "--pool",
        "p",
        "--learn",
        "--document-id",
        "u",
    )
    assert (code, out) == (0, "about a\n") and verifier.requests[0].document_id == "u"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "b", "id": 7}\n')))
    code, out, _ = laser("generate", "--verifier", verifier_server.target, "--input", "-")
    assert code == 0 and read_lines(out)[0]["text"] == "b"
    code, _, err = laser("generate", "--verifier", verifier_server.target, "--input", "-", "--document-id", "u")
    assert code == 2 and "document_id is 'u', must be left out with --input" in err


def test_a_version_is_shown(laser):
    code, out, _ = laser("--version")
    assert code == 0 and re.fullmatch(r"laser \d+\.\d+\.\d+\n", out)


def test_parquet_holds_the_same_rows(laser, verifier_server, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    prompts = write_lines(tmp_path / "p.jsonl", {"prompt": "aa", "id": 1}, {"prompt": "bb", "id": "x"})
    output = tmp_path / "r.parquet"
    code, _, _ = laser("generate", "--verifier", verifier_server.target, "--input", prompts, "--output", output)
    assert code == 0
    rows = parquet.read_table(output).to_pylist()
    assert [(row["id"], row["text"], row["token_ids"], row["error"]) for row in rows] == [
        ("1", "aa", [1, 2, 3, 4], None),
        ("x", "bb", [1, 2, 3, 4], None),
    ]
    assert rows[0]["stats"]["tokens_per_step"] == 2.0
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []


@pytest.mark.parametrize(
    ("ending", "source", "num_before"),
    [(ending, *rest) for ending in ("jsonl", "parquet") for rest in (("--prompt", 0), ("--input", 0), ("--input", 1))],
)
def test_a_run_that_fails_leaves_the_earlier_file_as_it_was_or_what_it_has_done_and_nothing_beside_it(
    laser, verifier_server, verifier, tmp_path, ending, source, num_before
):
    prompts = write_lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})
    output = tmp_path / f"r.{ending}"
    command = (
        *("generate", "--verifier", verifier_server.target, "--max-in-flight", 1, "--output", output),
        *(source, prompts if source == "--input" else "a"),
    )
    assert laser(*command)[0] == 0
    whole = output.read_bytes()

    async def stop(request):
        if len(verifier.requests) > num_before:
            raise NotReady("the server is stopping")
        async for response in echo(request):
            yield response

    verifier.requests, verifier.script = [], stop
    assert laser(*command)[0] == 1
    if num_before:
        rows = pyarrow.parquet.read_table(output) if ending == "parquet" else read_lines(output.read_text())
        assert len(rows) == 1
    else:
        assert output.read_bytes() == whole
    assert sorted(tmp_path.iterdir()) == [prompts, output]


@pytest.mark.parametrize("source", ["--input", "--prompt"])
def test_a_full_disk_leaves_nothing_beside_the_output(laser, verifier_server, tmp_path, monkeypatch, source):
    def write(writer, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ParquetWriter, "write", write)
    prompts = write_lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})
    code, _, err = laser(
        *("generate", "--verifier", verifier_server.target, "--output", tmp_path / "r.parquet"),
        *(source, prompts if source == "--input" else "a"),
    )
    assert code == 1 and "No space left" in err
    assert list(tmp_path.iterdir()) == [prompts]


def test_parquet_without_pyarrow_names_the_extra(laser, verifier_server, verifier, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    prompts = write_lines(tmp_path / "p.jsonl", {"prompt": "a"})
    code, _, err = laser(
        "generate", "--verifier", verifier_server.target, "--input", prompts, "--output", tmp_path / "r.parquet"
    )
    assert code == 2 and "pip install '.[parquet]'" in err
    assert verifier.requests == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{nonsense", "no JSON"),
        ("[1]", "must be a JSON object"),
        ('{"id": 1}', "prompt is missing"),
        ('{"prompt": ""}', "prompt is ''"),
        ('{"prompt": 5}', "prompt is 5"),
        ('{"prompt": "a", "pool": "../x"}', "pool is '../x'"),
        ('{"prompt": "a", "id": [1]}', "id is [1]"),
    ],
)
def test_an_unreadable_line_names_file_line_and_field_before_anything_is_sent(
    laser, verifier_server, verifier, tmp_path, line, expected
):
    prompts = write_lines(tmp_path / "p.jsonl", {"prompt": "fine"}, line)
    code, _, err = laser("generate", "--verifier", verifier_server.target, "--input", prompts)
    assert code == 2
    assert err.startswith(f"error: {prompts} line 2: {expected}") and err.count("\n") == 1
    assert verifier.requests == []


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), "COMMAND"),
        (("generate", "--prompt", "x"), "--verifier"),
        (("generate", "--verifier", "h:1"), "--prompt"),
        (("generate", "--verifier", "h:1", "--prompt", ""), "prompt is ''"),
        (("generate", "--verifier", "h", "--prompt", "x"), "target is 'h'"),
        (("generate", "--verifier", "h:1", "--prompt", "x", "--top-k", "2"), "--acceptance relaxed"),
        (("generate", "--verifier", "h:1", "--prompt", "x", "--acceptance", "relaxed", "--top-k", "0"), "top_k is 0"),
        (("generate", "--verifier", "h:1", "--input", "/no/such"), "No such file"),
        (("generate", "--verifier", "h:1", "--prompt", "x", "--output", "r.csv"), ".jsonl or .parquet"),
        (("generate", "--verifier", "h:1", "--prompt", "x", "--token-file", "/no/such"), "token_file"),
        (("pools", "describe", "--retriever", "h:1", "--pool", "a/../b"), "pool is 'a/../b'"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(laser, argv, expected):
    code, out, err = laser(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and expected in err


def test_a_server_that_is_not_there_is_one_line_and_exit_code_1(laser, tmp_path):
    prompts = write_lines(tmp_path / "p.jsonl", *({"prompt": "a"} for _ in range(5)))
    for argv in (
        ("generate", "--verifier", "127.0.0.1:1", "--prompt", "x"),
        ("generate", "--verifier", "127.0.0.1:1", "--input", prompts),
        ("pools", "list", "--retriever", "127.0.0.1:1"),
        ("health", "127.0.0.1:1"),
        ("model", "--verifier", "127.0.0.1:1"),
    ):
        code, out, err = laser(*argv)
        assert (code, out) == (1, "")
        assert err.startswith("error: ") and err.count("\n") == 1


def test_health_says_what_the_server_says(laser, verifier_server):
    assert laser("health", verifier_server.target)[:2] == (0, "SERVING\n")
    assert laser("health", verifier_server.target, "--service", "laser.v1.Verifier")[:2] == (0, "SERVING\n")
    assert laser("health", verifier_server.target, "--service", "x" * 300)[:2] == (1, "SERVICE_UNKNOWN\n")
    verifier_server.set_serving(False)
    assert laser("health", verifier_server.target)[:2] == (1, "NOT_SERVING\n")


def test_model_shows_what_is_served(laser, verifier_server):
    code, out, _ = laser("model", "--verifier", verifier_server.target)
    assert code == 0 and FINGERPRINT in out and "Strict()" in out
    _, out, _ = laser("model", "--verifier", verifier_server.target, "--json")
    assert json.loads(out)["vocab_size"] == 100


def test_pools_can_be_filled_listed_described_compacted_and_dropped(
    laser, verifier_server, retriever_server, retriever, tmp_path
):
    at = ("--retriever", retriever_server.target)
    pool = ("--pool", "a/b")
    documents = write_lines(
        tmp_path / "d.jsonl",
        *({"id": i, "output_token_ids": [i % 100, 2], "text": "ignored"} for i in range(1, 301)),
        {"id": "long", "output_token_ids": [9] * 300_000},
        {"id": "last", "output_token_ids": [7]},
    )
    code, out, _ = laser("pools", "add", *at, *pool, "--input", documents, "--verifier", verifier_server.target)
    assert (code, out) == (0, "302 of 302 documents stored in a/b\n")
    assert retriever.pools["a/b"]["17"] == [17, 2] and len(retriever.pools["a/b"]["long"]) == 300_000

    code, out, _ = laser("pools", "list", *at)
    assert code == 0 and out.splitlines()[1].split()[:3] == ["a/b", "302", "300,601"]
    _, out, _ = laser("pools", "list", *at, "--root", "a", "--json")
    assert json.loads(out)["num_documents"] == 302
    assert laser("pools", "list", *at, "--root", "z", "--json")[1] == ""
    assert FINGERPRINT in laser("pools", "describe", *at, *pool)[1]
    assert json.loads(laser("pools", "compact", *at, *pool, "--json")[1])["id"] == "a/b"

    code, out, _ = laser("pools", "remove", *at, *pool, "--id", "17", "--id", "nobody")
    assert (code, out) == (0, "1 of 2 documents existed and are deleted\n")
    code, _, err = laser("pools", "drop", *at, *pool)
    assert code == 2 and "301 documents" in err and "--yes" in err and "a/b" in retriever.pools
    assert laser("pools", "drop", *at, *pool, "--yes")[0] == 0 and retriever.pools == {}
    code, _, err = laser("pools", "describe", *at, *pool)
    assert code == 1 and "'a/b'" in err


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_an_exported_pool_comes_back_as_it_was(laser, verifier_server, retriever_server, retriever, tmp_path, ending):
    at = ("--retriever", retriever_server.target)
    path = str(tmp_path / f"pool.{ending}")
    largest = 2**31 - 1 if ending == "parquet" else 99  # of the verifier's vocabulary, which is asked for JSON lines
    retriever.pools["a/b"] = kept = {"17": [5, 2], "ü": [0], "long": [largest] * 5_000}
    code, out, _ = laser("pools", "export", *at, "--pool", "a/b", "--output", path)
    assert (code, out) == (0, f"3 documents of a/b written to {path}\n")
    retriever.pools = {}
    # A Parquet file says itself what tokenizer its ids are of.
    verifier = () if ending == "parquet" else ("--verifier", verifier_server.target)
    code, out, _ = laser("pools", "add", *at, "--pool", "c", "--input", path, *verifier)
    assert (code, out) == (0, "3 of 3 documents stored in c\n")
    assert retriever.pools == {"c": kept}


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_an_export_that_fails_leaves_the_earlier_file_as_it_was_and_nothing_beside_it(
    laser, retriever_server, retriever, tmp_path, ending
):
    path = tmp_path / f"pool.{ending}"
    export = ("pools", "export", "--retriever", retriever_server.target, "--pool", "a", "--output", path)
    retriever.pools["a"] = {str(i): [i] for i in range(20)}
    assert laser(*export)[0] == 0
    whole = path.read_bytes()
    # An id that is no string cannot be sent: the stream ends in an error there.
    retriever.pools["a"] = {"another": [1], 7: [1]}
    code, _, err = laser(*export)
    assert code == 1 and "internal error" in err
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_documents_without_a_tokenizer_or_of_another_than_the_verifiers_are_refused(
    laser, verifier_server, retriever_server, retriever, tmp_path
):
    add = ("pools", "add", "--retriever", retriever_server.target, "--pool", "a", "--input")
    code, _, err = laser(*add, write_lines(tmp_path / "d.jsonl", {"id": "x", "output_token_ids": [1]}))
    assert code == 2 and "verifier is missing" in err
    path = tmp_path / "d.parquet"
    write_document_file(path, "0" * 64, [Document.make("x", [1])])
    code, _, err = laser(*add, str(path), "--verifier", verifier_server.target)
    assert code == 2 and "0" * 64 in err and FINGERPRINT in err
    assert retriever.pools == {}


def test_a_parquet_file_with_two_columns_of_one_name_or_a_fingerprint_of_no_text_ends_no_command_in_a_traceback(
    laser, tmp_path
):
    path = tmp_path / "d.parquet"
    add = ("pools", "add", "--retriever", "h:1", "--pool", "a", "--input", str(path))
    ids, tokens = pyarrow.array(["x"]), pyarrow.array([[1]])
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([ids, ids, tokens], ["id", "id", "output_token_ids"]), path)
    code, _, err = laser(*add)
    assert code == 2 and "column id stands 2 times, must stand once" in err
    fields = [("id", ids.type), ("output_token_ids", tokens.type)]
    schema = pyarrow.schema(fields, metadata={b"laser.tokenizer_fingerprint": b"\xff"})
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([ids, tokens], schema=schema), path)
    assert read_document_file(path).tokenizer_fingerprint == "\ufffd"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"id": ["x"]}, "column output_token_ids is missing"),
        ({"id": ["x", None], "output_token_ids": [[1], [1]]}, "row 2: id is None"),
        ({"id": [True], "output_token_ids": [[1]]}, "row 1: id is True"),
        ({"id": ["x"], "output_token_ids": [[1, -1]]}, "row 1: output_token_ids[1] is -1"),
        ({"id": ["x"], "output_token_ids": ["text"]}, "row 1: output_token_ids is 'text'"),
    ],
)
def test_an_unreadable_parquet_row_names_file_row_and_field(laser, tmp_path, columns, expected):
    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    code, _, err = laser("pools", "add", "--retriever", "h:1", "--pool", "a", "--input", str(path))
    assert code == 2 and err.startswith(f"error: {path}") and expected in err


def test_without_pyarrow_parquet_says_what_to_install(laser, retriever_server, retriever, tmp_path, monkeypatch):
    retriever.pools["a"] = {"x": [1]}
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for action, option in (("add", "--input"), ("export", "--output")):
        path = tmp_path / "d.parquet"
        code, _, err = laser("pools", action, "--retriever", retriever_server.target, "--pool", "a", option, path)
        assert code == 2 and "pip install '.[parquet]'" in err and not path.exists()


def test_documents_go_to_the_retriever_that_writes_the_pool(
    laser, verifier_server, retriever_server, retriever, tmp_path
):
    documents = write_lines(tmp_path / "d.jsonl", {"id": "x", "output_token_ids": [1]})
    add = ("pools", "add", "--pool", "a", "--input", documents, "--verifier", verifier_server.target)
    first = ScriptedRetriever()
    with ServerThread(first) as other:
        first.refuse = WriterElsewhere("another shard writes a", holder=retriever_server.target)
        assert laser(*add, "--retriever", other.target)[0] == 0
        assert retriever.pools == {"a": {"x": [1]}} and first.pools == {}
        retriever.refuse = WriterElsewhere("another shard writes a", holder=other.target)
        code, _, err = laser(*add, "--retriever", other.target)
        assert code == 1 and err.startswith("error: another shard writes a")


def test_a_full_disk_says_how_many_documents_were_stored(laser, verifier_server, retriever_server, retriever, tmp_path):
    retriever.refuse = StorageUnavailable("no space left on the pool directory")
    documents = write_lines(tmp_path / "d.jsonl", {"id": "x", "output_token_ids": [1]})
    code, out, err = laser(
        *("pools", "add", "--pool", "a", "--input", documents, "--verifier", verifier_server.target),
        *("--retriever", retriever_server.target),
    )
    assert (code, out, err) == (1, "0 of 1 documents stored in a\n", "error: no space left on the pool directory\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"output_token_ids": [1]}', "id is missing"),
        ('{"id": 1}', "output_token_ids is missing"),
        ('{"id": 1, "output_token_ids": []}', "output_token_ids has 0 tokens"),
        ('{"id": 1, "output_token_ids": "x"}', "output_token_ids is a str"),
        ('{"id": 1, "output_token_ids": [1, -1]}', "output_token_ids[1] is -1"),
        ('{"id": "", "output_token_ids": [1]}', "id is ''"),
        ('{"id": "\\ud800", "output_token_ids": [1]}', "id is '\\ud800', must be valid Unicode"),
    ],
)
def test_an_unreadable_document_names_file_line_and_field_before_any_is_added(
    laser, verifier_server, retriever_server, retriever, tmp_path, line, expected
):
    documents = write_lines(tmp_path / "d.jsonl", {"id": "x", "output_token_ids": [1]}, line)
    code, _, err = laser(
        *("pools", "add", "--pool", "a", "--input", documents, "--verifier", verifier_server.target),
        *("--retriever", retriever_server.target),
    )
    assert code == 2 and err.startswith(f"error: {documents} line 2: {expected}")
    assert retriever.pools == {}


def test_ids_that_the_verifiers_vocabulary_does_not_have_are_refused(
    laser, verifier_server, retriever_server, retriever, tmp_path
):
    documents = write_lines(tmp_path / "d.jsonl", {"id": "x", "output_token_ids": [1, 100]})
    code, _, err = laser(
        *("pools", "add", "--pool", "a", "--input", documents, "--verifier", verifier_server.target),
        *("--retriever", retriever_server.target),
    )
    assert (
        code == 2
        and f"output_token_ids of 'x' in {documents} holds 100, must be below the verifier's vocabulary of 100" in err
    )
    assert retriever.pools == {}


def test_every_subcommand_teaches_with_an_example(laser):
    commands = [("generate",), ("pools",), ("health",), ("model",)]
    commands += [("pools", action) for action in ("list", "describe", "add", "export", "remove", "drop", "compact")]
    for command in commands:
        code, out, _ = laser(*command, "--help")
        assert code == 0 and "example" in out and f"laser {command[0]}" in out.partition("example")[2]


def test_an_interrupt_exits_130_keeps_what_ended_and_frees_the_server(verifier_server, verifier, tmp_path):
    async def one_hangs(request):
        if prompt_of(request) == "hang":
            yield delta("x", 1)
            await asyncio.sleep(60)
        async for response in echo(request):
            yield response

    verifier.script = one_hangs
    prompts = write_lines(tmp_path / "p.jsonl", {"prompt": "aa"}, {"prompt": "hang"}, {"prompt": "bb"})
    output = tmp_path / "r.jsonl"
    # A shell has what it runs in the background ignore this signal, and so would our child.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "laser_client.cli", "generate", "--verifier", verifier_server.target),
            *("--input", prompts, "--output", output),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while verifier.num_open != 1 or len(verifier.requests) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err.strip().splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in err
    assert [row["text"] for row in read_lines(output.read_text())] == ["aa", "bb"]
    assert verifier.given_up.acquire(timeout=5)


def test_the_installed_command_streams_into_a_pipe_that_closes_early(verifier_server, verifier):
    async def long_text(request):
        for _ in range(200):
            yield delta("x" * 1000, 1)
        yield finished(200)

    verifier.script = long_text
    process = subprocess.Popen(
        [sys.executable, "-m", "laser_client.cli", "generate", "--verifier", verifier_server.target, "--prompt", "a"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(10) == b"x" * 10
    process.stdout.close()
    assert process.wait(10) == 1
    assert process.stderr.read() == b""
    process.stderr.close()
