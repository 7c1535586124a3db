"""Errors that a user can mend: the command line prints them in one line and exits with code 2."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used; the message names the thing, the value and the remedy."""
