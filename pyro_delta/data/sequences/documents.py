"""Documents of varying length: a document a line."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pyro_delta.data.sequences.pieces import begins_word, learned, size_of_vocabulary
from pyro_delta.data.sequences.spec import TextSpec
from pyro_delta.data.splits import SPLITS, TEST_SEED, Split, Splits, reordered
from pyro_delta.errors import UserError, unknown_name
from pyro_delta.validation import Count, Seed

Tokens = Literal["bytes", "pieces"]
LONGEST = 1024
"""Tokens that documents have at most where no length is given: attention looks at pairs of them."""
VALIDATION = ("validation.txt", "valid.txt", "val.txt")
BYTE_SPACE = 32
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""How files in other encodings begin; a mark of UTF-32 begins with one of UTF-16."""


class TextFile(Splits):
    """your own text, text:FILE: a document a line, in UTF-8; or text:FOLDER with train.txt and test.txt

    Of a single file, about a tenth of the documents is for test and a tenth for validation, and documents that are
    equal are in one split; what is in the files of a folder is taken as it is. Empty lines are passed over, and ⏎ is
    read as a line break within a document.

    Args:
        root: the file, or a folder with train.txt, test.txt and, if there is one, validation.txt.
        tokens: bytes, or pieces of words, learned from the training documents.
        vocabulary: of pieces.
        length: tokens of the longest document, the one that ends it included; that of the longest there is if None.
        cut: longer documents, into several that begin with a word; without it they are refused.
        validation: number of validation documents; a tenth if None.
        seed: of the choice of validation documents, and of the order.

    Raises:
        UserError: if there is no text, or a document is too long.
    """

    preset = "text"

    def __init__(
        self,
        *,
        root: str,
        tokens: Tokens = "bytes",
        vocabulary: Count = 1000,
        length: Count | None = None,
        cut: bool = False,
        validation: int | None = None,
        seed: Seed = 0,
    ) -> None:
        path = Path(root).expanduser()
        if path.is_dir():
            train, held_out, test = _parts_of_folder(path)
        else:
            texts = lines_of(path)
            if (different := len(set(texts))) < len(SPLITS):
                raise UserError(
                    f"{path} has {len(texts)} documents, {different} of them different; training, validation and test "
                    "take one each at least, so give more text, a document a line."
                )
            train, test = _divided(texts, None, TEST_SEED, path)
            held_out = []
        if not held_out:
            if len(set(train)) < 2:
                raise UserError(f"{path / 'train.txt'} has one document, and validation takes one; give more text.")
            train, held_out = _divided(train, validation, seed, path)
        elif validation is not None:
            held_out = _first(held_out, validation, seed, path)
        spec, rows = tokenised([train, held_out, test], tokens, vocabulary, length, cut=cut, source=str(path))
        splits = [documents(spec, part, cut=cut) for part in rows]
        super().__init__(
            spec, reordered(splits[0], seed), reordered(splits[1], seed), reordered(splits[2], TEST_SEED), None
        )


def tokenised(
    parts: Sequence[Sequence[str]], tokens: str, vocabulary: int, length: int | None, *, cut: bool, source: str
) -> tuple[TextSpec, list[list[list[int]]]]:
    """The spec of documents, those of training first, from which pieces are learned; and the tokens of each.

    Args:
        parts: documents of each split.
        tokens: bytes or pieces.
        vocabulary: of pieces.
        length: of the longest; found if None.
        cut: whether longer ones are cut.
        source: of the documents, in messages.

    Raises:
        UserError: if one is longer and may not be cut, or the vocabulary does not fit.
    """
    if tokens not in get_args(Tokens):
        raise unknown_name("data.tokens", tokens, get_args(Tokens))
    pieces = learned(parts[0], vocabulary) if tokens == "pieces" else None
    levels = 256 if pieces is None else size_of_vocabulary(pieces)
    found = TextSpec(1, levels, pieces=pieces)
    rows = [[found.tokens(text) for text in part] for part in parts]
    longest, text = max((len(row) + 1, text) for part, of_part in zip(parts, rows) for text, row in zip(part, of_part))
    most = LONGEST if length is None else length
    if longest > most and not cut:
        raise UserError(
            f"{source} has a document of {longest} tokens, {text[:40]!r}…, and {most} are the most; set "
            f"data.length={longest}, or data.cut=true, which makes several of longer ones."
        )
    if most < 2:
        raise UserError(f"data.length={most} leaves no token beside the one that ends a document; give 2 or more.")
    return TextSpec(min(longest, most) if length is None else length, levels, pieces=pieces), rows


def documents(
    spec: TextSpec, rows: Sequence[list[int]], labels: Sequence[int] | None = None, *, cut: bool = False
) -> Split:
    """Documents as data with their lengths.

    Args:
        spec: of them.
        rows: tokens of the documents, without those that end them.
        labels: of the documents; those that one is cut into have its label.
        cut: those that are longer.
    """
    parts = [_parts(spec, row, cut=cut) for row in rows]
    found = [(part, i) for i, of_row in enumerate(parts) for part in of_row]
    x = np.zeros((len(found), spec.length), np.dtype(spec.dtype))
    for row, (part, _) in zip(x, found):
        row[: len(part)] = part
    lengths = torch.tensor([len(part) for part, _ in found])
    label = None if labels is None else torch.tensor([labels[i] for _, i in found])
    split = Split(torch.from_numpy(x), label, {"lengths": lengths})
    return replace(split, surplus=_surplus(spec, split.x, rows, parts)) if len(found) > len(rows) else split


def _surplus(
    spec: TextSpec, x: Tensor, rows: Sequence[list[int]], parts: Sequence[Sequence[list[int]]]
) -> dict[str, Tensor]:
    """What `TextSpec.measures` counts too much where documents were cut, (N,) by name: see `counted`.

    Args:
        spec: of the documents.
        x: the parts (N, T).
        rows: tokens of the documents, without those that end them.
        parts: of each document, closed.
    """
    surplus = {name: torch.zeros(len(x), dtype=torch.int64) for name in ("byte", "word")}
    first = 0
    for row, of_row in zip(rows, parts, strict=True):
        here = slice(first, first := first + len(of_row))
        if len(of_row) == 1:
            continue
        own = counted(spec, row, [len(part) - 1 for part in of_row])
        for name, counts in spec.measures(x[here]).items():
            surplus[name][here] = torch.tensor(counts) - torch.from_numpy(own[name])
    return surplus


def counted(spec: TextSpec, tokens: list[int], sizes: Sequence[int]) -> dict[str, np.ndarray]:
    """Bytes and words of the parts of a document; of both, its end counts as one more, in the last part.

    A word is of the part in which it begins.

    Args:
        spec: of the document.
        tokens: of it, without that which ends it.
        sizes: of its parts, in tokens of its own.
    """
    text = spec.texts(torch.tensor([[*tokens, 0]]))[0]
    ends = np.concatenate(([0], np.cumsum(spec.sizes(tokens))))[np.cumsum(sizes)]
    begin, size = np.zeros(len(text) + 1, np.int64), [len(character.encode()) for character in text]
    np.cumsum(size, out=begin[1:])
    words = begin[[word.start() for word in re.finditer(r"\S+", text)]]
    counts = {"byte": np.diff(ends, prepend=0), "word": np.diff(np.searchsorted(words, ends), prepend=0)}
    for count in counts.values():
        count[-1] += 1
    return counts


def _parts(spec: TextSpec, tokens: list[int], *, cut: bool) -> list[list[int]]:
    """A document, or parts of it that begin with a word, each closed, and of the spec's length at most."""
    room, parts = spec.length - 1, []
    while cut and len(tokens) > room:
        end = next((end for end in range(room, 0, -1) if _begins_word(spec, tokens[end])), room)
        parts.append([*tokens[:end], 0])
        tokens = tokens[end:]
    return [*parts, [*tokens, 0]]


def _begins_word(spec: TextSpec, token: int) -> bool:
    return token == BYTE_SPACE if spec.pieces is None else begins_word(spec.pieces, token)


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not empty; ⏎ stands for a line break within one.

    Raises:
        UserError: if it cannot be read, is not UTF-8, holds NUL, or has no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); give a text file.") from None
    if mark := next((mark for mark in MARKS if content.startswith(mark)), None):
        raise UserError(f"{path} is text in {MARKS[mark]}; convert it to UTF-8.")
    found = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.decode().strip("\r")
        except UnicodeDecodeError as error:
            raise UserError(
                f"line {number} of {path} is not UTF-8: the byte {line[error.start]:#04x} at place {error.start + 1}; "
                "convert the file."
            ) from None
        if "\0" in text:
            raise UserError(
                f"line {number} of {path} has the character NUL, which is in no text in UTF-8; take it out, or "
                "convert a file in UTF-16."
            )
        if text.strip():
            found.append(text.replace("⏎", "\n").replace("␍", "\r"))
    if not found:
        raise UserError(f"{path} has no text; give a file with a document a line.")
    return found


def read_documents(spec: TextSpec, path: Path, count: int | None) -> tuple[Tensor, list[str]]:
    """The documents of a file and their names; see `TextSpec.open`."""
    texts = lines_of(path)[:count]
    rows = [spec.tokens(text) for text in texts]
    for text, row in zip(texts, rows):
        if (size := len(row) + 1) > spec.length:
            raise UserError(
                f"{path} has a document of {size} tokens, {text[:40]!r}…, and those of this model have "
                f"{spec.length} at most; shorten it."
            )
    return documents(spec, rows).x, [f"{path.name}/{number}" for number in range(1, len(texts) + 1)]


def _parts_of_folder(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Documents of train.txt, of validation.txt if it is there, and of test.txt."""
    for name in ("train.txt", "test.txt"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; give a folder with train.txt and test.txt, or one text file.")
    held_out = next((folder / name for name in VALIDATION if (folder / name).is_file()), None)
    return lines_of(folder / "train.txt"), [] if held_out is None else lines_of(held_out), lines_of(folder / "test.txt")


def _divided(texts: list[str], count: int | None, seed: int, path: Path) -> tuple[list[str], list[str]]:
    """Documents that are left, and those that are held out: `count`, a tenth if None; equal ones stay together."""
    different = list(dict.fromkeys(texts))
    wanted = max(1, len(texts) // 10) if count is None else count
    if not 1 <= wanted < len(texts):
        raise UserError(
            f"{path} has {len(texts)} documents for training and validation, of which {wanted} cannot be held out; ask "
            f"for 1 to {len(texts) - 1}."
        )
    times, held_out, size = Counter(texts), set[str](), 0
    # Some are left for what is divided next, and one that comes again and again stays in training.
    most = len(different) - 1 if count is not None else max(1, len(different) // len(SPLITS))
    order = [different[index] for index in np.random.default_rng(seed).permutation(len(different))]
    for text in order:
        if len(held_out) < most and size + times[text] <= wanted:
            held_out.add(text)
            size += times[text]
    held_out = held_out or {min(order, key=times.__getitem__)}
    return [text for text in texts if text not in held_out], [text for text in texts if text in held_out]


def _first(texts: list[str], count: int, seed: int, path: Path) -> list[str]:
    """So many of the documents, at random."""
    if not 1 <= count <= len(texts):
        raise UserError(f"{path} has {len(texts)} validation documents, not {count}; ask for 1 to {len(texts)}.")
    return [texts[index] for index in np.random.default_rng(seed).permutation(len(texts))[:count]]
