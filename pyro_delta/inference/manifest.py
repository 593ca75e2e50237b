"""The manifest of a run folder: the SHA-256 of every file that numbers depend on, checked whenever one is read.

A file takes its place in two steps, so that a kill between any two of them leaves a run that can be read: the manifest
first admits the new content beside the old, and forgets the old one when the file is there. A checkpoint has a name of
its own, and counts from the moment that the manifest names it. Metrics grow between checkpoints: each checkpoint
vouches for as much of them as there was when it was made.

NOTE: checksums find damage, not malice: who can change a file can change the manifest. See `pyro_delta.trust`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import ConfigDict, Field, ValidationError, field_validator

from pyro_delta.errors import UserError
from pyro_delta.files import bytes_of, json_of, written_whole
from pyro_delta.validation import Section

MANIFEST, METRICS = "manifest.json", "metrics.jsonl"
NAME = re.compile(r"[^/\\\0]+(/[^/\\\0]+)?")
"""Of a file in a run."""
KEPT = 2
"""Checkpoints, the newest; the older one serves where the newest is damaged."""


class Typed(Section):
    """Values of a file, of just the types that they are said to have."""

    model_config = ConfigDict(strict=True)


class Saved(Typed):
    """A checkpoint."""

    step: int = Field(ge=0, lt=2**63)
    sha256: str
    metrics_bytes: int = Field(ge=0)
    metrics_sha256: str
    """of so many bytes of the metrics"""


class Manifest(Typed):
    """What a run consists of."""

    files: dict[str, list[str]] = Field(default={})
    """name → SHA-256; two while a file is being replaced"""
    checkpoints: list[Saved] = Field(default=[])
    """the newest last"""

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, list[str]]) -> dict[str, list[str]]:
        """Names are of files of the run, or of one of its folders."""
        if any(not NAME.fullmatch(name) or ".." in name.split("/") for name in files):
            raise ValueError("a name leads out of the run")
        return files

    @property
    def newest(self) -> Saved | None:
        """The newest checkpoint."""
        return self.checkpoints[-1] if self.checkpoints else None


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def checkpoint_name(step: int) -> str:
    """The file of a checkpoint."""
    return f"checkpoint-{step:08d}.safetensors"


def parsed(content: bytes, path: Path) -> object:
    """What JSON says.

    Raises:
        UserError: if it is none, nested too deep, or holds control characters.
    """
    try:
        return json_of(content)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; restore it.") from None


def read(folder: Path) -> Manifest | None:
    """The manifest of a folder; None if it has none.

    Raises:
        UserError: if it is damaged or cannot be read.
    """
    path = folder / MANIFEST
    try:
        content = bytes_of(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    found = parsed(content, path)
    try:
        if not isinstance(found, dict) or found.pop("sha256", None) != sha256(_text(found)):
            raise UserError(f"{path} is damaged: its own checksum does not fit; restore it.")
        return Manifest.model_validate(found)
    except (ValidationError, RecursionError):
        raise UserError(f"{path} is damaged: it holds something else than checksums; restore it.") from None


def _text(values: Mapping[str, object]) -> bytes:
    return json.dumps(values, sort_keys=True).encode()


def write(folder: Path, manifest: Manifest) -> None:
    """Writes a manifest, with its own checksum."""
    values = manifest.model_dump(mode="json")
    with written_whole(folder / MANIFEST) as file:
        file.write((json.dumps({**values, "sha256": sha256(_text(values))}, indent=2) + "\n").encode())


def verified(folder: Path, name: str) -> bytes:
    """A file of a run; unverified where the run has no manifest, as those of former versions.

    Raises:
        FileNotFoundError: if it is missing.
        UserError: if it is not what the manifest says, or not in it.
    """
    manifest, path = read(folder), folder / name
    while manifest is not None:
        content, before = bytes_of(path), manifest
        if sha256(content) in manifest.files.get(name, ()):
            return content
        manifest = read(folder)
        if manifest == before:  # else somebody was writing it
            raise UserError(
                f"{path} is damaged or was changed: its checksum is not the one in {MANIFEST}; restore it as it was."
            )
    return bytes_of(path)


def put(folder: Path, contents: Mapping[str, bytes], gone: tuple[str, ...] = ()) -> None:
    """Writes files of a run, whole, and what the manifest says of them.

    A run of a former version has no manifest, and gets none, which would tell of a part of it alone.

    Args:
        folder: of the run, which its caller has locked.
        contents: by name.
        gone: names of files that are taken away before.
    """
    manifest = read(folder)
    kept = {} if manifest is None else {name: of for name, of in manifest.files.items() if name not in gone}
    new = {name: [sha256(content)] for name, content in contents.items()}
    between = {name: [*kept.get(name, []), *digests] for name, digests in new.items()}
    if manifest is not None:
        write(folder, manifest.model_copy(update={"files": kept | between}))
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with written_whole(folder / name) as file:
            file.write(content)
    if manifest is not None:
        write(folder, manifest.model_copy(update={"files": kept | new}))


def add_checkpoint(folder: Path, step: int, content: bytes) -> None:
    """Writes a checkpoint; the last `KEPT` ones stay."""
    with written_whole(folder / checkpoint_name(step)) as file:
        file.write(content)
    metrics = _metrics(folder)
    saved = Saved(step=step, sha256=sha256(content), metrics_bytes=len(metrics), metrics_sha256=sha256(metrics))
    manifest = read(folder) or Manifest()
    before = [other for other in manifest.checkpoints if other.step != step]
    keep_checkpoints(folder, manifest, [*before[1 - KEPT :], saved])


def keep_checkpoints(folder: Path, manifest: Manifest, kept: list[Saved]) -> None:
    """Notes which checkpoints there are, and takes the files of all others away."""
    write(folder, manifest.model_copy(update={"checkpoints": kept}))
    names = {checkpoint_name(saved.step) for saved in kept}
    for path in folder.glob("checkpoint-*.safetensors"):
        if path.name not in names:
            path.unlink(missing_ok=True)


def whole_checkpoint(folder: Path, manifest: Manifest) -> tuple[Manifest, Saved, bytes]:
    """The newest checkpoint that is what the manifest says, and that manifest, a newer one where a training goes on.

    Raises:
        UserError: if there is none.
    """
    for saved in reversed(manifest.checkpoints):
        with suppress(FileNotFoundError):
            content = bytes_of(folder / checkpoint_name(saved.step))
            if sha256(content) == saved.sha256:
                return manifest, saved, content
        if (now := read(folder)) not in (None, manifest):  # its place has been taken meanwhile
            return whole_checkpoint(folder, now)
    raise UserError(
        f"all {len(manifest.checkpoints)} checkpoints of {folder} are damaged or missing: none has the checksum that "
        f"{MANIFEST} says; restore {checkpoint_name(manifest.checkpoints[-1].step)}, or train the run again."
        if manifest.checkpoints
        else f"{folder} has no checkpoint yet; train it first."
    )


def verified_metrics(folder: Path) -> bytes:
    """The metrics of a run, of which what the newest checkpoint vouches for is what it was.

    Raises:
        UserError: if it is not.
    """
    manifest, content = read(folder), _metrics(folder)
    saved = None if manifest is None else manifest.newest
    if saved is not None and sha256(content[: saved.metrics_bytes]) != saved.metrics_sha256:
        raise UserError(
            f"{folder / METRICS} is damaged or was changed: the checksum of its first {saved.metrics_bytes} bytes is "
            f"not the one in {MANIFEST}; restore it as it was."
        )
    return content


def _metrics(folder: Path) -> bytes:
    path = folder / METRICS
    return bytes_of(path) if path.exists() else b""
