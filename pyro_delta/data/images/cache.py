"""Decoded image folders, kept on disk: decoding 60 000 PNGs takes a dozen seconds, reading them back a fraction of one.

The cache is one uncompressed `.npz` (whose checksums reveal damage) in the folder itself or, where that cannot be
written, in the user's cache folder. Losing it costs time only, so any trouble with it is a miss and never an error.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from pyro_delta.files import written_whole

FORMAT = "pyro-delta image folder 1"


def digest(folder: Path, files: list[Path]) -> str:
    """Fingerprint of a folder's files, in the given order: their names below `folder`, sizes and modification times."""
    fingerprint = hashlib.sha256(FORMAT.encode())
    for file in files:
        status = file.stat()
        line = f"\0{status.st_size} {status.st_mtime_ns} ".encode() + os.fsencode(file.relative_to(folder))
        fingerprint.update(line)
    return fingerprint.hexdigest()


def read(folder: Path, key: str) -> np.ndarray | None:
    """The array saved for `folder` under `key`, or None if there is none, it is stale or it is damaged."""
    for path in _places(folder):
        try:
            # Opened here, since np.load forgets to close a truncated file.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as saved:
                if str(saved["key"]) == key:
                    return saved["images"]
        except Exception:  # a damaged zip file fails in a dozen ways, and each of them means: decode again
            continue
    return None


def write(folder: Path, key: str, images: np.ndarray) -> None:
    """Save an array for `folder` under `key`, in the first place that can be written, replacing what was there."""
    for path in _places(folder):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                np.savez(file, key=np.array(key), images=images)
        except OSError:
            continue
        return


def _places(folder: Path) -> tuple[Path, Path]:
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return folder / ".pyro-delta-cache.npz", cache_home / "pyro-delta" / f"{name}.npz"
