"""What a model must know of sequences of tokens. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pyro_delta.data.spec import Spec, check_sizes
from pyro_delta.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TokenSpec(Spec):
    """Length and vocabulary of sequences of tokens, integers 0 … levels − 1. Positions are tokens.

    Args:
        length: T, tokens of a sequence.
        levels: V, size of the vocabulary, up to 2³¹.
        alphabet: the character of each token, by which sequences are shown and read; without it they are bytes
            (levels = 256) or numbers.

    Raises:
        UserError: if a size is below 1, the vocabulary is below 2 or above 2³¹, or the alphabet does not fit it.
    """

    length: int
    levels: int
    alphabet: str | None = None

    unit: ClassVar[str] = "bits/token"
    what: ClassVar[str] = "sequences"
    datum: ClassVar[str] = "sequence"
    place: ClassVar[str] = "token"

    def __post_init__(self) -> None:
        """Refuse what no sequences are."""
        check_sizes(self.shape, self.levels)
        if self.alphabet is not None and not len(self.alphabet) == len(set(self.alphabet)) == self.levels:
            raise UserError(
                f"an alphabet of {len(set(self.alphabet))} different characters does not fit {self.levels} levels; "
                "give one character, once, for each token."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(T,)."""
        return (self.length,)

    def texts(self, x: Tensor) -> list[str]:
        """Sequences (N, T) as a person reads them."""
        if self.alphabet is not None:
            return ["".join(self.alphabet[token] for token in tokens) for tokens in x.tolist()]
        if self.levels == 256:
            return [bytes(tokens).decode(errors="replace") for tokens in x.tolist()]
        return [" ".join(map(str, tokens)) for tokens in x.tolist()]

    def show(self, x: Tensor, path: Path, columns: int) -> None:
        """Writes sequences as lines of text; line breaks within one are shown as ⏎."""
        from pyro_delta.data.texts import save_text

        save_text("".join(text.replace("\n", "⏎").replace("\r", "␍") + "\n" for text in self.texts(x)), path)

    def open(self, path: Path, count: int | None = None) -> tuple[Tensor, list[str]]:
        """The lines of a text file, cut to the length of a sequence; ⏎ is a line break, shorter lines are left out.

        Raises:
            UserError: if the file cannot be read, no line is long enough, or it has characters without a token.
        """
        from pyro_delta.data.sequences.text import read_lines
        from pyro_delta.data.values import read_numbers

        if self.alphabet is None and self.levels != 256:
            return read_numbers(self, path, count)
        return read_lines(self, path, count)


def require_tokens(spec: object, kind: str, name: str) -> TokenSpec:
    """The spec, which must be one of sequences of tokens.

    Args:
        spec: of data.
        kind: of the program that takes nothing else, such as guide.
        name: of that program.

    Raises:
        UserError: naming the program, and the option that names another.
    """
    if not isinstance(spec, TokenSpec):
        raise UserError(
            f"the {kind} {name} takes sequences of tokens, not data of {type(spec).__name__}; name another with "
            f"--{kind}."
        )
    return spec
