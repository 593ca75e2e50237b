"""Text files, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from pyro_delta.errors import UserError
from pyro_delta.files import written_whole


def save_text(text: str, path: Path) -> None:
    """Writes a text in UTF-8.

    Raises:
        UserError: if the path cannot be written.
    """
    try:
        with written_whole(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); give another path.") from None
