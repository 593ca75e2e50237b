"""Text as sequences of characters, and a small text that is always at hand."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pyro_delta.data.embedded import scikit_learn_data
from pyro_delta.data.sequences.spec import TokenSpec
from pyro_delta.data.splits import TEST_SEED, Split, Splits, reordered
from pyro_delta.errors import UserError
from pyro_delta.validation import Seed

ALPHABET = "\n !\"#$%&'()*+,-./0123456789:;<=>?@[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"
"""Characters of `Descriptions`: printable ASCII in lower case, and the line break."""
LENGTH = 32


class Descriptions(Splits):
    """English prose in windows of 32 characters: scikit-learn's descriptions of its data sets (within scikit-learn)

    A small text for trying: some 1300 windows, which do not overlap. Each description is cut in order into eight parts
    of training, one of validation and one of test. Labels are the descriptions.

    Args:
        root: not read; the text is embedded.
        validation: number of validation windows; all of its tenth if None.
        seed: of the order of training and validation windows.
    """

    preset = "descriptions"
    spec = TokenSpec(LENGTH, len(ALPHABET), ALPHABET)

    def __init__(self, *, root: str = "data", validation: int | None = None, seed: Seed = 0) -> None:
        names, texts = zip(*_descriptions(), strict=True)
        parts: dict[str, list[tuple[Tensor, int]]] = {"train": [], "validation": [], "test": []}
        for label, text in enumerate(texts):
            window_nt = windows(text, self.spec)
            cuts = [0, len(window_nt) * 8 // 10, len(window_nt) * 9 // 10, len(window_nt)]
            for name, first, last in zip(parts, cuts, cuts[1:], strict=False):
                parts[name].append((window_nt[first:last], label))
        train, held_out, test = (_joined(part) for part in parts.values())
        count = len(held_out) if validation is None else validation
        if not 1 <= count <= len(held_out):
            raise UserError(
                f"descriptions has {len(held_out)} validation windows, not {count}; ask for 1 to {len(held_out)}."
            )
        held_out = reordered(held_out, seed).take(slice(count))
        super().__init__(self.spec, reordered(train, seed), held_out, reordered(test, TEST_SEED), names)


def windows(text: str, spec: TokenSpec) -> Tensor:
    """The characters of a text that the alphabet has, in windows that do not overlap: (N, T)."""
    tokens = tokens_of("".join(character for character in text.lower() if character in (spec.alphabet or "")), spec)
    count = len(tokens) // spec.length
    return tokens[: count * spec.length].reshape(count, spec.length)


def tokens_of(text: str, spec: TokenSpec) -> Tensor:
    """A text as tokens (T,): places in the alphabet, or bytes where there is none.

    Raises:
        UserError: if a character has no token.
    """
    dtype = getattr(torch, spec.dtype)
    if spec.alphabet is None:
        return torch.tensor(list(text.encode()), dtype=dtype)
    places = {character: place for place, character in enumerate(spec.alphabet)}
    if unknown := sorted(set(text) - places.keys()):
        raise UserError(f"the character {unknown[0]!r} is not among the {spec.levels} of the alphabet; take it out.")
    return torch.tensor([places[character] for character in text], dtype=dtype)


def read_lines(spec: TokenSpec, path: Path, count: int | None) -> tuple[Tensor, list[str]]:
    """The lines of a text file as sequences (N, T), and their names; see `TokenSpec.open`."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not at what else Unicode calls a line's end
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); give a text file.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; convert it.") from None
    found, names = [], []
    for number, line in enumerate(lines, 1):
        tokens = tokens_of(line.replace("⏎", "\n").replace("␍", "\r"), spec)
        if len(tokens) >= spec.length:
            found.append(tokens[: spec.length])
            names.append(f"{path.name}/{number}")
    if not found:
        raise UserError(f"{path} has no line of {spec.length} characters or more; give longer ones.")
    return torch.stack(found[:count]), names[:count]


def _descriptions() -> list[tuple[str, str]]:
    """Name and text of each of scikit-learn's descriptions, in the order of their names."""
    files = sorted((scikit_learn_data() / "descr").iterdir(), key=lambda file: file.name)
    return [
        (file.name.removesuffix(".rst"), file.read_text(encoding="utf-8"))
        for file in files
        if file.name.endswith(".rst")
    ]


def _joined(parts: list[tuple[Tensor, int]]) -> Split:
    labels = torch.cat([torch.full((len(window_nt),), label) for window_nt, label in parts])
    return Split(torch.cat([window_nt for window_nt, _ in parts]), labels)
