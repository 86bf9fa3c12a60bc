"""Names of shards to their addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket

logger = logging.getLogger(__name__)


class Resolver:
    """Looks the shards' names up, again and again, and tells once when one begins to fail and when it is found again.

    Args:
        targets: HOST:PORT each.
    """

    def __init__(self, targets: tuple[str, ...]) -> None:
        self._targets = targets
        self._failing: set[str] = set()

    async def resolve(self) -> dict[str, str | None]:
        """HOST:PORT of every address behind the targets; a name that does not resolve gives none.

        Returns:
            Each address with the name that it was found by, which a certificate carries; None: the target was an
            address.
        """
        names: dict[str, str | None] = {}
        for target in self._targets:
            bracketed, _, port = target.rpartition(":")
            host = bracketed.strip("[]")
            try:
                found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                self._failed(target, error)
                continue
            if target in self._failing:
                self._failing.remove(target)
                logger.info("shard.resolved target=%s", target)
            # A name with both families is one shard, not two.
            family = socket.AF_INET if any(entry[0] == socket.AF_INET for entry in found) else socket.AF_INET6
            for entry in found:
                if entry[0] == family:
                    ip = str(entry[4][0])
                    address = f"[{ip}]:{port}" if family == socket.AF_INET6 else f"{ip}:{port}"
                    names.setdefault(address, None if _is_address(host) else host)
        return names

    def _failed(self, target: str, error: Exception) -> None:
        if target not in self._failing:
            self._failing.add(target)
            logger.warning("shard.unresolved target=%s error=%s", target, error)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
