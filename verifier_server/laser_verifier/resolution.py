"""Names of shards to their addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket

logger = logging.getLogger(__name__)


async def resolve(targets: tuple[str, ...]) -> dict[str, str | None]:
    """HOST:PORT of every address behind the targets; a name that does not resolve gives none.

    Returns:
        Each address with the name that it was found by, which a certificate carries; None: the target was an address.
    """
    loop = asyncio.get_running_loop()
    names: dict[str, str | None] = {}
    for target in targets:
        bracketed, _, port = target.rpartition(":")
        host = bracketed.strip("[]")
        try:
            found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            logger.debug("shard.unresolved target=%s error=%s", target, error)
            continue
        # A name with both families is one shard, not two.
        family = socket.AF_INET if any(entry[0] == socket.AF_INET for entry in found) else socket.AF_INET6
        for entry in found:
            if entry[0] == family:
                ip = str(entry[4][0])
                address = f"[{ip}]:{port}" if family == socket.AF_INET6 else f"{ip}:{port}"
                names.setdefault(address, None if _is_address(host) else host)
    return names


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
