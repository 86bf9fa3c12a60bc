from __future__ import annotations

from collections.abc import Iterator

import pytest
from scripted_servers import ScriptedRetriever, ScriptedVerifier, ServerThread

from laser_client import LaserClient


@pytest.fixture
def verifier() -> ScriptedVerifier:
    return ScriptedVerifier()


@pytest.fixture
def retriever() -> ScriptedRetriever:
    return ScriptedRetriever()


@pytest.fixture
def verifier_server(verifier: ScriptedVerifier) -> Iterator[ServerThread]:
    with ServerThread(verifier) as server:
        yield server


@pytest.fixture
def retriever_server(retriever: ScriptedRetriever) -> Iterator[ServerThread]:
    with ServerThread(retriever) as server:
        yield server


@pytest.fixture
def client(verifier_server: ServerThread) -> Iterator[LaserClient]:
    with LaserClient(verifier_server.target) as client:
        yield client
