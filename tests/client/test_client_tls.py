"""TLS and tokens, from both sides."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
from pathlib import Path
from typing import Any

import pytest
from scripted_servers import ServerThread

from laser_client import AsyncLaserClient, LaserClient, NotReady, Unauthenticated
from laser_client.cli import main

x509 = pytest.importorskip("cryptography.x509", reason="cryptography is not installed: no certificates to test with")
hashes: Any = pytest.importorskip("cryptography.hazmat.primitives.hashes")
serialization: Any = pytest.importorskip("cryptography.hazmat.primitives.serialization")
ec: Any = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")


class Authority:
    """A certificate authority with one server and one client certificate in a directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(self._sign(self._name, self._key.public_key(), is_ca=True))
        self.cert, self.key = self._issue(directory / "server.pem")
        self.client_cert, self.client_key = self._issue(directory / "client.pem")

    def _issue(self, path: Path) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, path.stem)])
        path.write_bytes(self._sign(name, key.public_key(), is_ca=False))
        key_path = path.with_suffix(".key")
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return path, key_path

    def _sign(self, name: Any, public_key: Any, *, is_ca: bool) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


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
