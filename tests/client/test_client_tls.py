"""TLS and tokens, from both sides."""

from __future__ import annotations

import asyncio

import pytest
from scripted_servers import ServerThread

from laser_client import AsyncLaserClient, LaserClient, NotReady, Unauthenticated
from laser_client.cli import main
from tests.certificates import Authority


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    directory = tmp_path_factory.mktemp("tls")
    return Authority(directory / "right"), Authority(directory / "wrong")


def test_a_server_of_a_trusted_authority_is_served_and_another_is_not_ready(authorities, verifier):
    right, wrong = authorities
    with ServerThread(verifier, tls_cert=right.cert, tls_key=right.key) as server:
        with LaserClient(server.target, tls_ca=right.ca) as client:
            assert client.generate("a").text == "a"
        with LaserClient(server.target, tls_ca=right.ca.read_bytes()) as client:
            assert client.generate("a").text == "a"
        with (
            LaserClient(server.target, tls_ca=str(wrong.ca)) as client,
            pytest.raises(NotReady, match=r"(?i)certificate"),
        ):
            client.generate("a")
        with LaserClient(server.target, tls=True) as client, pytest.raises(NotReady, match=r"(?i)certificate"):
            client.generate("a")
        with LaserClient(server.target) as client, pytest.raises(NotReady):
            client.generate("a")
        assert main(["health", server.target, "--tls-ca", str(right.ca)]) == 0
        assert main(["health", server.target, "--tls-ca", str(wrong.ca)]) == 1


def test_mutual_tls_takes_only_clients_of_the_servers_authority(authorities, verifier):
    right, wrong = authorities
    config = {"tls_cert": right.cert, "tls_key": right.key, "tls_client_ca": right.ca}
    with ServerThread(verifier, **config) as server:
        mine = {"tls_cert": right.client_cert, "tls_key": right.client_key}
        with LaserClient(server.target, tls_ca=right.ca, **mine) as client:
            assert client.generate("a").text == "a"
        foreign = {"tls_cert": wrong.client_cert, "tls_key": wrong.client_key}
        for given in ({}, foreign):
            with LaserClient(server.target, tls_ca=right.ca, **given) as client, pytest.raises(NotReady):
                client.generate("a")


def test_the_right_token_is_served_and_a_wrong_or_missing_one_is_unauthenticated(verifier, tmp_path):
    token_file = tmp_path / "token"
    token_file.write_text("s3cret\n")
    with ServerThread(verifier, token_file=token_file) as server:
        with LaserClient(server.target, token="s3cret") as client:
            assert client.generate("a").text == "a"
            assert client.model().name == "tiny"
        assert verifier.metadata[0]["authorization"] == "Bearer s3cret"
        for token in ("wrong", None):
            with LaserClient(server.target, token=token) as client:
                with pytest.raises(Unauthenticated, match="authorization"):
                    client.generate("a")
                with pytest.raises(Unauthenticated):
                    client.model()

        async def run():
            async with AsyncLaserClient(server.target, token="wrong") as client:
                with pytest.raises(Unauthenticated):
                    await client.generate("a")

        asyncio.run(run())
        assert main(["model", "--verifier", server.target, "--token-file", str(token_file)]) == 0
        assert main(["model", "--verifier", server.target]) == 1


def test_a_token_does_not_show_in_a_representation():
    from laser_protocol.channel import Endpoint

    assert "s3cret" not in repr(Endpoint.make("localhost:1", token="s3cret"))
