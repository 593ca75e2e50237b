"""Errors that are the user's to mend, and the nearest-name hint they carry."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

ALONE = "Expected more than 1 value per channel"
"""What torch's batch normalisation says of a batch of one in training mode."""
TURNING = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
"""Characters that turn the order in which others are shown."""
MANY = 12
"""Names above which an error does not list them all."""


class UserError(ValueError):
    """A mistake in the input: one sentence with the offending value and the mend. The command line exits with 2."""

    said = False
    """Whether another process of the same training says it."""


class CheckFailed(Exception):  # noqa: N818 - it is a verdict, not a mishap
    """A check ran and failed (KL below δ, latents unused, …). The command line exits with 1."""

    said = False
    """As for `UserError`."""


class RankLost(Exception):  # noqa: N818 - it is what happened to another process
    """Another process of the same training has ended or failed, and so must this one. The command line exits with 1."""

    said = False
    """As for `UserError`."""


class NothingCertified(Exception):  # noqa: N818 - it is a verdict, not a mishap
    """No check failed, but one that a certificate rests on could not be made. The command line exits with 3."""


def unknown_name(kind: str, name: str, known: Iterable[str], listed: str = "`pyro-delta list`") -> UserError:
    """The error for a name that is not in a table, with the nearest known ones, or all, or where they are `listed`."""
    names = list(known)
    if near := nearest(name, names):
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    elif len(names) > MANY:
        hint = f"{listed} names all {len(names)}."
    else:
        hint = f"known: {', '.join(sorted(names)) or 'none'}."
    return UserError(f"unknown {kind} {name!r}; {hint}")


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Names with the same last part (lr: training.lr), or else the nearest one, or else those with the nearest part."""
    by_part: dict[str, list[str]] = {}
    for known in names:
        by_part.setdefault(known.rpartition(".")[2], []).append(known)
    part = name.rpartition(".")[2]
    if part in by_part:
        return by_part[part]
    near = get_close_matches(name, [known for same in by_part.values() for known in same], n=1, cutoff=0.5)
    return near or [known for close in get_close_matches(part, by_part, n=1) for known in by_part[close]]


def is_plain(text: str) -> bool:
    """Whether a text holds no characters that steer a terminal, turn the order of others, or cannot be encoded."""
    return all(
        character in "\t\n" or not (unicodedata.category(character) in ("Cc", "Cs") or character in TURNING)
        for character in text
    )


def in_a_line(error: Exception) -> str:
    """An error's class and the first line of what it says; of batch statistics, what is meant by it."""
    if ALONE in str(error):
        return (
            "batch normalisation in training mode cannot take a batch of one; if it is the guide's, give "
            "training.batch=2 or more; in a likelihood, whose word on one datum must not depend on others, take "
            "torch.nn.LayerNorm"
        )
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '').rstrip('.')}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy or torch lacked memory, for which torch has no class of its own on the CPU."""
    words = (
        "can't allocate memory",
        "not enough memory",
        "out of memory",
        "calculation overflowed",
        "unpacking long",
    )
    if isinstance(error, (RuntimeError, TypeError)):
        return any(part in str(error) for part in words)
    return isinstance(error, MemoryError)
