"""Errors that are the user's to mend, and the nearest-name hint they carry."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in the input: one sentence with the offending value and the mend. The command line exits with 2."""


class CheckFailed(Exception):  # noqa: N818 - it is a verdict, not a mishap
    """A check ran and failed (KL below δ, latents unused, …). The command line exits with 1."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a table, with the nearest known name."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}."
    return UserError(f"unknown {kind} {name!r}; {hint}")
