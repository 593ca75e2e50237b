"""What a model must know of sequences of tokens. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pyro_delta.data.condition import Condition
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
        condition: what sequences are conditioned on.

    Raises:
        UserError: if a size is below 1, the vocabulary is below 2 or above 2³¹, or the alphabet does not fit it.
    """

    length: int
    levels: int
    alphabet: str | None = None
    condition: Condition | None = field(default=None, kw_only=True)

    unit: ClassVar[str] = "bits/token"
    what: ClassVar[str] = "sequences"
    datum: ClassVar[str] = "sequence"
    place: ClassVar[str] = "token"
    end: ClassVar[int | None] = None
    """The token that ends a sequence, if one does."""

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


@dataclass(frozen=True)
class TextSpec(TokenSpec):
    """Documents of up to so many tokens, each closed by token 0: bytes, or the pieces of words that a model knows.

    With each goes its length, the token that ends it included.

    Args:
        length: T, tokens of the longest, the last one included.
        levels: V; 256 for bytes, of which 0 is in no text.
        alphabet: None.
        pieces: the model of SentencePiece, as `pyro_delta.data.sequences.pieces.learned` makes one; None for bytes.

    Raises:
        UserError: if sizes are out of range, do not fit, or the model cannot be read.
    """

    pieces: str | None = None

    datum: ClassVar[str] = "document"
    what: ClassVar[str] = "documents"
    end: ClassVar[int | None] = 0

    def __post_init__(self) -> None:
        """Refuse what no documents are."""
        check_sizes(self.shape, self.levels)
        if self.alphabet is not None:
            raise UserError(f"documents have bytes or pieces, and no alphabet {self.alphabet!r}; leave it out.")
        if self.pieces is None:
            known, what = 256, "bytes"
        else:
            from pyro_delta.data.sequences.pieces import size_of_vocabulary

            known, what = size_of_vocabulary(self.pieces), "the pieces of this model"
        if self.levels != known:
            raise UserError(f"{self.levels} levels do not fit {what}, of which there are {known}; give as many.")

    def texts(self, x: Tensor) -> list[str]:
        """Documents (N, T) as a person reads them, up to the token that ends them."""
        rows = [tokens[: tokens.index(0)] if 0 in tokens else tokens for tokens in x.tolist()]
        if self.pieces is None:
            return [bytes(tokens).decode(errors="replace") for tokens in rows]
        from pyro_delta.data.sequences.pieces import text_of

        return [text_of(self.pieces, tokens) for tokens in rows]

    def _bytes(self, x: Tensor) -> list[int]:
        """Of each document (N, T), without its end; also of one that was cut within a character."""
        sizes = (self.beside(x)["lengths"] - (x == 0).any(-1).long()).tolist()
        return [sum(self.sizes(tokens[:size])) for tokens, size in zip(x.tolist(), sizes)]

    def sizes(self, tokens: list[int]) -> list[int]:
        """Bytes in UTF-8 of each token of a document, without that which ends it."""
        if self.pieces is None:
            return [1] * len(tokens)
        from pyro_delta.data.sequences.pieces import sizes_of

        return sizes_of(self.pieces, tokens)

    def tokens(self, text: str) -> list[int]:
        """A text as tokens, without that which ends it.

        Raises:
            UserError: if tokens cannot say it: it has the character NUL, or one that stands for a space in pieces.
        """
        if "\0" in text:
            raise UserError("the character NUL is in no text; take it out.")
        if self.pieces is None:
            return list(text.encode())
        from pyro_delta.data.sequences.pieces import tokens_of_pieces

        return tokens_of_pieces(self.pieces, text)

    def open(self, path: Path, count: int | None = None) -> tuple[Tensor, list[str]]:
        """The lines of a text file, each a document; ⏎ is a line break within one, empty lines are passed over.

        Raises:
            UserError: if the file cannot be read, has no text, or a line is longer than the longest document.
        """
        from pyro_delta.data.sequences.documents import read_documents

        return read_documents(self, path, count)

    def beside(self, x: Tensor) -> dict[str, Tensor]:
        """Lengths of documents (N, T): tokens up to the one that ends each, all T if none does, as in a sample."""
        import torch

        places = torch.arange(1, self.length + 1, device=x.device)
        return {"lengths": torch.where(x == 0, places, self.length).amin(-1)}

    def measures(self, x: Tensor) -> dict[str, list[int]]:
        """Bytes (in UTF-8) and words (between white space) of each document (N, T); what ends it counts as one more.

        Parts of one that was cut count as documents here; what they count too much is the `surplus` of their split.
        """
        texts, ends = self.texts(x), (x == 0).any(-1).tolist()
        return {
            "byte": [size + end for size, end in zip(self._bytes(x), ends)],
            "word": [len(text.split()) + end for text, end in zip(texts, ends)],
        }
