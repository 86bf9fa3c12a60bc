"""Generate text with LASER: `LaserClient` and `AsyncLaserClient`, the values they take and give, and their errors.

Needs grpcio and protobuf only; importing it imports no numpy.

    from laser_client import LaserClient, Relaxed

    with LaserClient("localhost:50052") as client:
        generation = client.generate("Given user's movie rating history: ...", pool="ml-100k/kar/user/2",
                                     acceptance=Relaxed(top_k=2, min_prob=0.1))
"""

from laser_client.aio import AsyncLaserClient
from laser_client.client import LaserClient, TextStream
from laser_client.generation import Chunk, Generation, GenerationStats, Model
from laser_client.stream import AsyncTextStream
from laser_protocol.acceptance import Acceptance, Relaxed, Strict
from laser_protocol.errors import (
    DeadlineExceeded,
    EngineDead,
    Internal,
    InvalidRequest,
    LaserError,
    NotReady,
    Overloaded,
    PoolMismatch,
    StorageUnavailable,
    Unauthenticated,
    UnknownPool,
    WriterElsewhere,
)

__all__ = [
    "Acceptance",
    "AsyncLaserClient",
    "AsyncTextStream",
    "Chunk",
    "DeadlineExceeded",
    "EngineDead",
    "Generation",
    "GenerationStats",
    "Internal",
    "InvalidRequest",
    "LaserClient",
    "LaserError",
    "Model",
    "NotReady",
    "Overloaded",
    "PoolMismatch",
    "Relaxed",
    "StorageUnavailable",
    "Strict",
    "TextStream",
    "Unauthenticated",
    "UnknownPool",
    "WriterElsewhere",
]
