"""How much of this machine's processor time the hypervisor gave to others: what no median can take out of a figure."""

from __future__ import annotations

from pathlib import Path

_STAT = Path("/proc/stat")
# Fields of the line `cpu` (Linux, proc(5)): the eighth is stolen time; guest time stands in the first two already.
_STOLEN, _NUM_FIELDS = 7, 8


class StolenTime:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._before = _ticks()

    def share(self) -> float:
        """Stolen share of all processors' time since then, 0 to 1; 0 where the system does not tell."""
        stolen, total = (now - before for now, before in zip(_ticks(), self._before, strict=True))
        return stolen / total if total else 0.0


def _ticks() -> tuple[int, int]:
    if not _STAT.exists():
        return 0, 0
    fields = [int(field) for field in _STAT.read_text().split("\n", 1)[0].split()[1 : 1 + _NUM_FIELDS]]
    return fields[_STOLEN], sum(fields)
