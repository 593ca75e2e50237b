"""Whose programs may run: shipped and installed ones, those of runs that this user made here, and those that are
trusted by a word.

A run made here is known by a file in the user's own folder (`platformdirs`), whose name is a digest of everything that
the run would execute and how: the SHA-256 of its programs and of what they import from beside them, their names, the
class of its spec, and its settings. So a run may be moved and made longer, but once its programs or settings are
others, it is a stranger's. Nothing is imported to find that out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs

from pyro_delta.errors import UserError
from pyro_delta.programs import KINDS, SHIPPED, Record, data_name, is_foreign, names

OWN = "pyro_delta"
_ACCEPTED: set[str] = set()
"""Digests of runs that were trusted by a word, in this process."""


def store() -> Path:
    """The folder of what this user's own runs are known by."""
    return platformdirs.user_data_path("pyro-delta") / "own-runs"


def foreign(sections: Mapping[str, Any], spec: str) -> dict[str, str]:
    """Kind → name of what a run would execute that is neither shipped nor installed by an entry point.

    Args:
        sections: of its settings, each of a program with its name.
        spec: the place of its spec's class, `module:Class`; `spec` is its kind here.
    """
    programs = {kind: str(sections[kind]["program"]) for kind in KINDS if "program" in sections.get(kind, {})}
    found = {kind: name for kind, name in programs.items() if is_foreign(kind, name)}
    known = {OWN}
    data = data_name(programs.get("data", ""))[0]
    if data in names("data") and data not in SHIPPED["data"]:  # a package that adds data may have specs of its own
        known.add(names("data")[data].partition(":")[0].partition(".")[0])
    if spec.partition(":")[0].partition(".")[0] not in known and "data" not in found:
        found["spec"] = spec
    return found


def digest(sections: Mapping[str, Any], spec: str, records: Mapping[str, Record]) -> str:
    """What a run is known by; settings that a resumed run may change are left out of `sections` by the caller."""
    kept = {kind: record.model_dump() for kind, record in records.items()}
    text = json.dumps({"settings": sections, "spec": spec, "programs": kept}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def remember(known_by: str, folder: Path) -> None:
    """Notes that a run was made here; a user's folder that cannot be written is not needed to train."""
    with suppress(OSError):
        store().mkdir(parents=True, exist_ok=True)
        (store() / known_by).write_text(f"{folder.absolute()}\n", encoding="utf-8")


def check(folder: Path, sections: Mapping[str, Any], spec: str, records: Mapping[str, Record], trust: bool) -> None:
    """Refuses, before anything of it is imported, a run whose programs are a stranger's.

    Args:
        folder: of the run.
        sections: of its settings, without those that a resumed run may change.
        spec: the place of its spec's class.
        records: of its programs.
        trust: whether it is trusted by a word; from then on it is, in this process.

    Raises:
        UserError: naming the programs, or the one of which the run has no digest, or a digest and nothing else.
    """
    found, known_by = foreign(sections, spec), digest(sections, spec, records)
    for kind, record in records.items():  # a look at a module imports the package that it is in
        if record.name != found.get(kind) and (kind not in KINDS or record.name != sections[kind]["program"]):
            raise UserError(
                f"the run.json of {folder} has a digest of the {kind} {record.name!r}, which the run does not name; "
                "restore both as they were."
            )
    for kind, name in found.items():
        if kind not in records or records[kind].name != name:
            raise UserError(
                f"{folder} names the {kind} {name!r}, of which its run.json has no digest; restore both as they were."
            )
    if not found:
        return
    if trust:
        _ACCEPTED.add(known_by)
    if known_by not in _ACCEPTED and not (store() / known_by).is_file():
        listed = ", ".join(f"{name} ({kind})" for kind, name in found.items())
        raise UserError(
            f"{folder} would run {listed}, which is not shipped, nor is this a run made here by you and unchanged "
            f"since; look at {folder / 'programs'} and say --trust (trust=True in Python) if you trust it."
        )
