"""Uniforms for sampling, counter-based: u(seed, t) depends on nothing but the seed and the output position."""

from __future__ import annotations

_MASK = 2**64 - 1


def uniform(seed: int, position: int) -> float:
    """A uniform in [0, 1) for the token at an output position.

    SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014) over seed and position; 53 bits.

    Args:
        seed: 0 <= seed < 2^64. position: index of the token in the output, from 0.
    """
    mixed = _mix((seed + 0x9E3779B97F4A7C15 * (position + 1)) & _MASK)
    # Twice: neighbouring seeds must not give neighbouring streams.
    return (_mix(mixed ^ _mix(seed)) >> 11) / float(1 << 53)


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
