"""What both servers share: listening, TLS, tokens, errors to status, health, reflection, orderly stop.

Needs the extras of a server (grpcio-health-checking, grpcio-reflection). Knows nothing of pools or models.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import logging
import math
import os
import re
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from laser_protocol.channel import read_token
from laser_protocol.errors import Internal, LaserError, Unauthenticated, status_code, to_trailing_metadata
from laser_protocol.limits import MAX_MESSAGE_BYTES

logger = logging.getLogger(__name__)

# A text of a few hundred tokens has its time to end.
DEFAULT_GRACE_S = 30.0

# Two signals within this time are one.
_SAME_SIGNAL_S = 1.0

# Health checks must work for an orchestrator that has no token.
_OPEN_SERVICES = ("/grpc.health.v1.Health/",)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    # Without these a stalled handler lets its peer queue megabytes: HTTP/2's window grows with the bandwidth.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65536),
    # Clients ask whether we are there every two seconds, and must not be cut off for it.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    # A peer that is gone without a word is noticed within keepalive time + timeout (as in channel.py), and its streams
    # end: nothing is held for it any longer. It is asked however long nothing else is sent.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True)
class ListenConfig:
    """Where and how a server listens.

    Attributes:
        listen: HOST:PORT; port 0 takes a free one.
        tls_cert, tls_key: PEM files of the server's certificate chain and key; both or neither.
        tls_client_ca: PEM file; given, clients must present a certificate signed by it.
        token_file: file with the token that callers must send as `authorization: Bearer TOKEN`.
        grace_s: seconds that running calls get after SIGTERM.
        metrics_port: of Prometheus metrics, on the same host; 0 takes a free one; None: they are not served.
    """

    listen: str
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    token_file: Path | None = None
    grace_s: float = DEFAULT_GRACE_S
    metrics_port: int | None = None

    def __post_init__(self) -> None:
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"listen is {self.listen!r}, must be HOST:PORT")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key must be given together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        if not 0 <= self.grace_s <= 3600:
            raise ValueError(f"grace_s is {self.grace_s:g}, must be from 0 to 3600")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise ValueError(f"metrics_port is {self.metrics_port}, must be from 0 to 65535")

    @property
    def host(self) -> str:
        """The host of `listen`, an IPv6 address without its brackets."""
        return self.listen.rpartition(":")[0].strip("[]")

    def check_files(self) -> None:
        """Reads the files it names, so that a server need not have loaded its model to find one missing.

        Raises:
            ValueError: one cannot be read, or is none; names the option and the file.
        """
        _server_credentials(self)
        if self.token_file is not None:
            read_token(self.token_file)

    @staticmethod
    def add_arguments(
        parser: argparse.ArgumentParser, default_listen: str, default_grace_s: float = DEFAULT_GRACE_S
    ) -> None:
        """Adds the options of this configuration to a command."""
        group = parser.add_argument_group("listening")
        group.add_argument(
            "--listen", default=default_listen, metavar="HOST:PORT", help="address (default: %(default)s)"
        )
        group.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM certificate chain: serve with TLS")
        group.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM key of --tls-cert")
        group.add_argument(
            "--tls-client-ca", type=Path, metavar="FILE", help="PEM: callers must have a certificate of this authority"
        )
        group.add_argument("--token-file", type=Path, metavar="FILE", help="file with the token that callers must send")
        group.add_argument(
            "--grace-s",
            type=float,
            default=default_grace_s,
            metavar="SECONDS",
            help="what running calls get after SIGTERM (default: %(default)g)",
        )
        group.add_argument(
            "--metrics-port",
            type=int,
            metavar="P",
            help="serve Prometheus metrics on this port of --listen's host, 0 takes a free one (default: nowhere)",
        )

    @staticmethod
    def from_arguments(arguments: argparse.Namespace) -> ListenConfig:
        """The configuration that `add_arguments`' options give.

        Raises:
            ValueError: names the field and the value.
        """
        names = ("listen", "tls_cert", "tls_key", "tls_client_ca", "token_file", "grace_s", "metrics_port")
        return ListenConfig(**{name: getattr(arguments, name) for name in names})


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call that raised a LaserError with its status and details; any other exception is logged and hidden."""

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or details.method.startswith(_OPEN_SERVICES):
            return handler
        if handler.response_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            wrapped: Any = _guard_stream(handler.stream_stream or handler.unary_stream, details.method)
        else:
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
            wrapped = _guard_unary(handler.stream_unary or handler.unary_unary, details.method)
        return make(wrapped, handler.request_deserializer, handler.response_serializer)


def _guard_unary(behaviour: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:
            await _abort(context, error, method)

    return guarded


def _guard_stream(behaviour: Any, method: str) -> Callable[..., AsyncIterator[Any]]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            result = behaviour(request, context)
            if hasattr(result, "__aiter__"):
                async for response in result:
                    yield response
            else:
                await result
        except Exception as error:
            await _abort(context, error, method)

    return guarded


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str) -> None:
    if isinstance(error, grpc.aio.AbortError | grpc.aio.BaseError):
        raise error
    if not isinstance(error, LaserError):
        request_id = uuid.uuid4().hex[:12]
        logger.error("rpc.internal_error method=%s request_id=%s", method, request_id, exc_info=error)
        error = Internal(f"internal error, request id {request_id}")
    await context.abort(status_code(error), str(error), to_trailing_metadata(error))


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without the right bearer token; health checks pass."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        metadata = dict(details.invocation_metadata or ())
        given = str(metadata.get("authorization", "")).encode()
        if details.method.startswith(_OPEN_SERVICES) or hmac.compare_digest(given, self._expected):
            return await continuation(details)
        handler = await continuation(details)
        error = Unauthenticated("authorization must be 'Bearer TOKEN' with this server's token")

        async def refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await context.abort(status_code(error), str(error), to_trailing_metadata(error))

        # Unary on our side whatever the method is: the abort is the whole answer.
        deserializer = handler.request_deserializer if handler is not None else None
        if handler is not None and handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(refuse, deserializer)
        return grpc.unary_unary_rpc_method_handler(refuse, deserializer)


class LaserServer:
    """A gRPC server with its services registered, plus health and reflection.

    Args:
        config: where to listen.
        service_names: full names of the services, for health and reflection.
        register: called once with the grpc.aio server to add the services to it.
        max_connection_age_s: after about so long a client is told to connect anew for its next calls, and so to
            resolve the server's name again; calls under way go on. None: never.

    Raises:
        ValueError: a certificate, key or token file cannot be read, or is none; names the option and the file.
    """

    def __init__(
        self,
        config: ListenConfig,
        service_names: Sequence[str],
        register: Callable[[grpc.aio.Server], None],
        max_connection_age_s: float | None = None,
    ) -> None:
        self._config = config
        self._credentials = _server_credentials(config)
        self._service_names = tuple(service_names)
        interceptors: list[grpc.aio.ServerInterceptor] = []
        if config.token_file is not None:
            interceptors.append(TokenInterceptor(read_token(config.token_file)))
        interceptors.append(ErrorInterceptor())
        options = SERVER_OPTIONS
        if max_connection_age_s is not None:
            options += (("grpc.max_connection_age_ms", round(max_connection_age_s * 1e3)),)
        self._server = grpc.aio.server(interceptors=interceptors, options=options)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        register(self._server)
        names = (*self._service_names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.port = 0

    async def start(self) -> int:
        """Binds and starts, not yet healthy. Returns the port.

        Raises:
            OSError: the address cannot be bound, or not with this certificate and key.
        """
        await self.set_serving(False)
        config = self._config
        try:
            if self._credentials is None:
                self.port = self._server.add_insecure_port(config.listen)
            else:
                self.port = self._server.add_secure_port(config.listen, self._credentials)
        except RuntimeError as error:  # which does not say which of these it is
            reason = "address in use or not ours"
            if self._credentials is not None:
                reason += f", or --tls-cert {config.tls_cert} and --tls-key {config.tls_key} are damaged or no pair"
            raise OSError(f"cannot listen on {config.listen}: {reason}") from error
        await self._server.start()
        return self.port

    async def set_serving(self, serving: bool, service_names: Sequence[str] | None = None) -> None:
        """Sets the health of the given services, or of all and the server as a whole."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._service_names) if service_names is None else service_names:
            await self._health.set(name, status)

    async def stop(self) -> None:
        """Turns unhealthy, refuses new calls, gives the running ones `grace_s`, then ends them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._config.grace_s)


@contextmanager
def serving_metrics(
    config: ListenConfig, start: Callable[[int, str], tuple[WSGIServer, threading.Thread]]
) -> Iterator[int | None]:
    """Serves `/metrics` where the configuration says so. Yields the port, None for nowhere.

    Args:
        config: its metrics_port and host.
        start: starts a server on a port and a host, as prometheus_client's `start_http_server`.

    Raises:
        OSError: the port cannot be bound; names the option.
    """
    if config.metrics_port is None:
        yield None
        return
    try:
        server, thread = start(config.metrics_port, config.host)
    except OSError as error:
        raise OSError(
            f"cannot serve --metrics-port {config.metrics_port} on {config.host}: {error.strerror}"
        ) from error
    logger.info("metrics.listening port=%d", server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def end_at_signals() -> None:
    """Has SIGTERM and SIGINT end the process at once, until `catch_signals` takes them over.

    For the time in which a server starts: it has taken nothing on yet, and loading, in another thread, would be waited
    for. A container's first process would not even hear of SIGTERM. To be called in the main thread.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: os._exit(128 + got))


def catch_signals() -> asyncio.Event:
    """From now on SIGTERM and SIGINT set this event; one that comes later than a second after ends the process at once
    (some send what is meant as one signal twice). To be called on the event loop, in the main thread."""
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    first_s = math.inf

    def on_signal(number: int) -> None:
        nonlocal first_s
        first_s = min(first_s, loop.time())
        if loop.time() - first_s > _SAME_SIGNAL_S:
            os._exit(128 + number)
        signalled.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return signalled


def _server_credentials(config: ListenConfig) -> grpc.ServerCredentials | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    cert = _read_pem("--tls-cert", config.tls_cert, "CERTIFICATE")
    key = _read_pem("--tls-key", config.tls_key, "PRIVATE KEY")
    client_ca = None
    if config.tls_client_ca is not None:
        client_ca = _read_pem("--tls-client-ca", config.tls_client_ca, "CERTIFICATE")
    return grpc.ssl_server_credentials([(key, cert)], client_ca, require_client_auth=client_ca is not None)


def _read_pem(option: str, path: Path, kind: str) -> bytes:
    """A PEM file with at least one block of a kind. Of any other gRPC would say that the address cannot be bound."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror}") from error
    # There are an RSA PRIVATE KEY, an EC PRIVATE KEY, a TRUSTED CERTIFICATE, ...
    if not re.search(rb"-----BEGIN ([A-Z0-9]+ )*%b-----" % kind.encode(), content):
        raise ValueError(f"{option} {path}: holds no PEM block '-----BEGIN {kind}-----'")
    return content
