"""The Brown corpus, in sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pyro_delta.data.sequences.documents import Tokens, documents, tokenised
from pyro_delta.data.splits import TEST_SEED, Splits, reordered
from pyro_delta.errors import UserError
from pyro_delta.validation import Count, Seed

TEXT = re.compile(r"c[a-r]\d\d")
"""The name of a text's file."""
HELD_OUT = 0.1
"""Of the texts of each genre, for validation and for test."""


class Brown(Splits):
    """Brown corpus, 57 340 sentences of American English of 1961 in 15 genres (not downloaded; as NLTK has it)

    A document is a sentence, its words as the corpus has them, with spaces between. Labels are genres. A tenth of the
    texts of each genre is for test and a tenth for validation, always the same: no text is in two splits, though some
    sentences are, such as "He said .".

    Args:
        root: the folder `brown` of the corpus, or one that holds it, as `nltk.download("brown")` leaves it.
        tokens: bytes, or pieces of words, learned from the training sentences.
        vocabulary: of pieces.
        length: tokens of the longest sentence, the one that ends it included; that of the longest there is if None.
        cut: longer sentences, into several that begin with a word; without it they are refused.
        validation: number of validation sentences; all if None.
        seed: of the order of training and validation sentences.

    Raises:
        UserError: if the corpus is not there, or not whole.

    References:
        [1] W. N. Francis, H. Kučera, "A Standard Corpus of Present-Day Edited American English", 1964.
    """

    preset = "brown"

    def __init__(
        self,
        *,
        root: str = "data",
        tokens: Tokens = "pieces",
        vocabulary: Count = 1000,
        length: Count | None = None,
        cut: bool = False,
        validation: int | None = None,
        seed: Seed = 0,
    ) -> None:
        folder = find_corpus(Path(root).expanduser())
        genres = read_genres(folder)
        classes = tuple(sorted(set(genres.values())))
        names = split_texts(genres)
        read = [[(text, genres[name]) for name in part for text in sentences(folder / name)] for part in names]
        spec, rows = tokenised(
            [[text for text, _ in part] for part in read], tokens, vocabulary, length, cut=cut, source=str(folder)
        )
        train, held_out, test = (
            documents(spec, of_part, [classes.index(genre) for _, genre in part], cut=cut)
            for part, of_part in zip(read, rows)
        )
        count = len(held_out) if validation is None else validation
        if not 1 <= count <= len(held_out):
            raise UserError(f"brown has {len(held_out)} validation data, not {count}; ask for 1 to {len(held_out)}.")
        held_out = reordered(held_out, seed).take(slice(count))
        super().__init__(spec, reordered(train, seed), held_out, reordered(test, TEST_SEED), classes)


def find_corpus(root: Path) -> Path:
    """The folder with `cats.txt`: the root, or `brown` in it, where NLTK puts it, too.

    Raises:
        UserError: if there is none.
    """
    for folder in (root, root / "brown", root / "corpora" / "brown"):
        if (folder / "cats.txt").is_file():
            return folder
    raise UserError(
        f"the Brown corpus is not in {root / 'brown'}; nltk.download('brown', download_dir=…) gets it: name that "
        "folder with --data-root."
    )


def read_genres(folder: Path) -> dict[str, str]:
    """The genre of each text, by the name of its file.

    Raises:
        UserError: if texts and the list of genres do not fit.
    """
    lines = _text(folder / "cats.txt").split("\n")
    genres = dict(line.split(maxsplit=1) for line in lines if len(line.split()) == 2)
    there = {path.name for path in folder.iterdir() if TEXT.fullmatch(path.name)}
    if there != set(genres):
        odd = sorted(there ^ set(genres))
        raise UserError(f"{folder} is not whole: {odd[0]} is only a file or only in cats.txt; get the corpus again.")
    if len(set(genres.values())) < 2:
        raise UserError(f"{folder / 'cats.txt'} lists {len(genres)} texts of one genre; get the corpus again.")
    return genres


def split_texts(genres: dict[str, str]) -> tuple[list[str], list[str], list[str]]:
    """Names of the texts of training, validation and test, of each genre in proportion; the same each time."""
    rng = np.random.default_rng(TEST_SEED)
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for genre in sorted(set(genres.values())):
        names = rng.permutation(sorted(name for name, of in genres.items() if of == genre)).tolist()
        count = max(1, round(HELD_OUT * len(names)))
        for part, found in zip(parts, (names[2 * count :], names[:count], names[count : 2 * count])):
            part += found
    return parts


def sentences(path: Path) -> Iterator[str]:
    """The sentences of a text, their words without the tags.

    Raises:
        UserError: if a word has no tag.
    """
    for number, line in enumerate(_text(path).split("\n"), 1):
        words = line.split()
        if untagged := [word for word in words if "/" not in word]:
            raise UserError(f"line {number} of {path} has {untagged[0]!r} without a tag; get the corpus again.")
        if words:
            yield " ".join(word.rsplit("/", 1)[0] for word in words)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); get the corpus again.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; get the corpus again.") from None
