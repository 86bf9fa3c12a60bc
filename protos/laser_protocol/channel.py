"""How to reach a server: address, TLS, token, keepalive. Knows nothing of what is called there."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from laser_protocol.errors import InvalidRequest
from laser_protocol.limits import MAX_MESSAGE_BYTES

# A path of a PEM file, or its content.
Pem = str | os.PathLike[str] | bytes

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A silent partition is noticed within keepalive time + timeout, by TCP: gRPC hands it the timeout. A process that
    # does nothing, whose host answers for it, within keepalive time + ping timeout (gRPC's own: a minute).
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A server that was restarted is found again within seconds; gRPC's own limit is two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 3000),
)
# Targets that stand for several servers. HOST:PORT does not: `localhost` has two addresses of one server.
_OF_MANY = ("dns:", "ipv4:", "ipv6:")


def stands_for_many(target: str) -> bool:
    """Whether calls to a target go to several servers."""
    return target.startswith(_OF_MANY)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server and how to talk to it.

    Attributes:
        target: HOST:PORT, or any gRPC target with a scheme (`unix:...`). Calls to `dns:///NAME:PORT` are spread over
            all addresses of the name, calls to `ipv4:A:PORT,B:PORT` over those. Addresses that a name gets later are
            found once a connection ends; a verifier ends one after five minutes.
        credentials: TLS credentials, or None: plain text.
        metadata: sent with every call.
        server_name: name that the server's certificate must carry; None: the target's host.
    """

    target: str
    credentials: grpc.ChannelCredentials | None = None
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    server_name: str | None = None

    @staticmethod
    def make(
        target: str,
        *,
        token: str | None = None,
        tls: bool = False,
        tls_ca: Pem | None = None,
        tls_cert: Pem | None = None,
        tls_key: Pem | None = None,
    ) -> Endpoint:
        """The endpoint of a target and its secrets; files are read here.

        Args:
            target: HOST:PORT.
            token: sent as `authorization: Bearer TOKEN`. Without TLS anyone on the way can read it.
            tls: TLS with the system's roots. Any of the three below turns TLS on as well.
            tls_ca: authorities to trust instead of the system's.
            tls_cert, tls_key: own certificate chain and key, for a server that asks for one; both or neither.

        Raises:
            InvalidRequest: names the argument.
        """
        if not isinstance(target, str) or ":" not in target:
            raise InvalidRequest(f"target is {target!r}, must be HOST:PORT", field="target")
        if token is not None and not (isinstance(token, str) and token and token.isascii() and token.isprintable()):
            raise InvalidRequest("token must be printable ASCII, not empty", field="token")
        if (tls_cert is None) != (tls_key is None):
            missing = "tls_key" if tls_key is None else "tls_cert"
            raise InvalidRequest(f"{missing} is None, tls_cert and tls_key must be given together", field=missing)
        credentials = None
        if tls or tls_ca is not None or tls_cert is not None:
            credentials = grpc.ssl_channel_credentials(
                _read_pem("tls_ca", tls_ca), _read_pem("tls_key", tls_key), _read_pem("tls_cert", tls_cert)
            )
        metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
        return Endpoint(target, credentials, metadata)

    def open(self) -> grpc.Channel:
        """A channel for blocking calls."""
        if self.credentials is None:
            return grpc.insecure_channel(self.target, self._options())
        return grpc.secure_channel(self.target, self.credentials, self._options())

    def open_aio(self) -> grpc.aio.Channel:
        """A channel that belongs to the running event loop."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.target, self._options())
        return grpc.aio.secure_channel(self.target, self.credentials, self._options())

    def _options(self) -> tuple[tuple[str, int | str], ...]:
        options: list[tuple[str, int | str]] = list(CHANNEL_OPTIONS)
        if self.credentials is not None and self.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        if stands_for_many(self.target):
            options.append(("grpc.lb_policy_name", "round_robin"))
        return tuple(options)


def read_token(path: Path) -> str:
    """The token in a file, without surrounding white space.

    Raises:
        InvalidRequest: the file cannot be read, is empty, or holds what cannot be sent as a token.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise InvalidRequest(f"token_file {path}: {error.strerror}", field="token_file") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"token_file {path} must hold one line of printable ASCII, holds {error.object[error.start]:#04x}",
            field="token_file",
        ) from error
    if not token:
        raise InvalidRequest(f"token_file {path} is empty", field="token_file")
    if not token.isprintable():
        raise InvalidRequest(f"token_file {path} must hold one line of printable ASCII", field="token_file")
    return token


def _read_pem(name: str, pem: Any) -> bytes | None:
    if pem is None or isinstance(pem, bytes):
        content: bytes | None = pem
    else:
        try:
            content = Path(pem).read_bytes()
        except (OSError, TypeError) as error:
            raise InvalidRequest(
                f"{name} is {pem!r}, must be PEM bytes or a readable file: {error}", field=name
            ) from error
    if content is not None and b"-----BEGIN" not in content:
        raise InvalidRequest(f"{name} holds no PEM block ('-----BEGIN ...')", field=name)
    return content
