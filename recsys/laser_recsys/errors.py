"""The base of this package's errors: what went wrong for the user's sake, with a message that says what to do."""

from __future__ import annotations


class RecsysError(Exception):
    """Base of all errors of `laser_recsys`. The message is for the user."""
