"""Pieces of words, by SentencePiece: learned on a text, kept as a line of text, and lossless.

References:
    [1] T. Kudo, J. Richardson, "SentencePiece: A simple and language independent subword tokenizer and detokenizer for
        Neural Text Processing", EMNLP 2018.
    [2] R. Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL 2016.
"""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from pyro_delta.errors import UserError, in_a_line

SPACE = "▁"
"""What SentencePiece writes for a space."""


def learned(texts: Iterable[str], vocabulary: int) -> str:
    """The model of so many pieces that byte pair encoding [2] finds in texts.

    Token 0 ends a document. The 256 bytes are among the pieces, so that any text can be said by them, and no text is
    changed: what is scored is the text itself.

    Args:
        texts: of training.
        vocabulary: V.

    Raises:
        UserError: if the texts do not have so many pieces, or the number leaves none beside the bytes.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text for text in texts if text.strip()),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 24,
            eos_id=0,
            unk_id=1,
            bos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=3,
        )
    except RuntimeError as error:
        most = re.search(r"<= (\d+)", str(error))
        fewest = re.search(r"required_chars\D*\d+ vs (\d+)|larger than (\d+)", str(error))
        limit = f"at most {most[1]}" if most else f"more than {next(filter(None, fewest.groups()))}" if fewest else ""
        mend = f"give {limit}" if limit else f"give another number ({in_a_line(error)})"
        raise UserError(f"data.vocabulary={vocabulary} does not fit this text; {mend}, or data.tokens=bytes.") from None
    return base64.b64encode(zlib.compress(model.getvalue(), 9)).decode()


@lru_cache(maxsize=8)
def _processor(pieces: str) -> Any:
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=zlib.decompress(base64.b64decode(pieces)))
        whole = processor.eos_id() == 0
    except (ValueError, zlib.error, RuntimeError):
        whole = False
    if not whole:
        raise UserError(f"the pieces {pieces[:12]!r}… are no model of SentencePiece whose token 0 ends a document.")
    return processor


def size_of_vocabulary(pieces: str) -> int:
    """V of a model.

    Raises:
        UserError: if it cannot be read.
    """
    return _processor(pieces).get_piece_size()


def tokens_of_pieces(pieces: str, text: str) -> list[int]:
    """A text as pieces.

    Raises:
        UserError: if they cannot give it back as it is.
    """
    if SPACE in text:
        raise UserError(f"the character {SPACE!r} stands for a space in pieces; take it out, or set data.tokens=bytes.")
    return _processor(pieces).encode(text)


def text_of(pieces: str, tokens: list[int]) -> str:
    """The text of pieces."""
    return _processor(pieces).decode(tokens)


def sizes_of(pieces: str, tokens: list[int]) -> list[int]:
    """Bytes in UTF-8 that each token stands for; the space before a text's first word is SentencePiece's own."""
    processor, sizes = _processor(pieces), []
    for place, token in enumerate(tokens):
        piece = processor.id_to_piece(token)
        size = 1 if processor.is_byte(token) else len(piece.replace(SPACE, " ").encode())
        sizes.append(size - (place == 0 and piece.startswith(SPACE)))
    return sizes


def begins_word(pieces: str, token: int) -> bool:
    """Whether a piece begins with a space."""
    return _processor(pieces).id_to_piece(token).startswith(SPACE)
