"""A run as a folder that others read: weights, settings, the check, and a model card; nothing to train on from."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import torch
from packaging.licenses import canonicalize_license_expression

from pyro_delta import config as configuration
from pyro_delta import hub
from pyro_delta.api.kept import evaluations, kept
from pyro_delta.errors import UserError
from pyro_delta.files import written_whole
from pyro_delta.inference import manifest as manifests
from pyro_delta.inference.checkpoint import exported, pack
from pyro_delta.inference.manifest import METRICS
from pyro_delta.inference.run import (
    AUXILIARY,
    CHECK,
    CONFIG,
    EVALUATIONS,
    FORMAT,
    INFO,
    PROGRAMS,
    TERMS,
    Run,
    load,
    read_auxiliary,
    read_info,
    read_state,
)
from pyro_delta.programs import find, options_model
from pyro_delta.share.card import card
from pyro_delta.share.graphs import graphs

CARD = "README.md"
OF_INFO = ("format", "preset", "spec", "data", "version", "commit", "versions", "threads", "programs", "license")
"""What of run.json travels."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the folder or file; None if it went to the hub alone.
        address: of the repository on the hub; None if it went to none.
        files: names of all files, in order.
        notes: what a person should know of it, in sentences.
        data_named: whether its data have a name by which commands find them.
    """

    path: Path | None
    address: str | None
    files: tuple[str, ...]
    notes: tuple[str, ...]
    data_named: bool = True


def export(
    run: Run | str | Path,
    path: str | Path | None = None,
    *,
    to: str | None = None,
    weights: str = "best",
    license: str | None = None,
    torch_programs: bool = False,
    private: bool = False,
    data_root: str | None = None,
    trust: bool = False,
) -> Exported:
    """Writes a run as a folder that `load` and all commands that read runs take, or the same packed, to be unpacked.

        pyro_delta.export("runs/first", "first", license="CC-BY-4.0")
        run = pyro_delta.load("first")

    It holds the averaged weights, settings, what run.json says of data, programs and versions, metrics, the check that
    was kept, an auxiliary prior, copies of programs of one's own, and a model card. It has no state of an optimiser, so
    training cannot go on from it. Of paths that lead through this machine, the last name stays.

    Args:
        run: with a folder, or that folder.
        path: new or empty folder, or a new file FILE.zip; None with `to` for the hub alone.
        to: hf:USER/NAME, a model repository of the Hugging Face hub that it is uploaded to.
        weights: best or last, as for `load`; the others do not travel.
        license: of the weights, an SPDX expression such as CC-BY-4.0; None keeps what an exported run says; else it
            is unknown.
        torch_programs: whether guide.pt2, decoder.pt2 and its steps go with it, see `pyro_delta.share.graphs`.
        private: whether a new repository on the hub is shown to its owner alone.
        data_root: where the data of the run live now, some of which `torch_programs` tries.
        trust: as for `load`.

    Raises:
        UserError: as `load`; if the target is taken, the run has no folder or is of a former format, or its programs
            cannot be exported by torch. Nothing is left half-written.
    """
    given = None
    if isinstance(run, Run):
        if run.folder is None:
            raise UserError("the run is in memory alone; give train a folder by out=, and export that.")
        given, run = run.given, run.folder
    if path is None and to is None:
        raise UserError("there is no place to export to; give a folder, a FILE.zip or --to hf:USER/NAME.")
    license = None if license is None else _expression(license)
    if to is not None:
        hub.parts(to)
        hub.check_installed()
    target = None if path is None else Path(path)
    if target is not None:
        _check_free(target)
        target = target if target.name not in ("", "..") else target.resolve()
    loaded = replace(load(run, "cpu", weights=weights, trust=trust), given=given)
    assert loaded.folder is not None
    with _aside(target) as part:
        name = "run" if target is None else target.stem if _packed(target) else target.absolute().name
        folder = part / (name or "run")
        folder.mkdir()
        made, left_out = graphs(loaded, loaded.data(data_root).test) if torch_programs else ({}, [])
        for file, content in made.items():
            (folder / file).write_bytes(content)
        notes = _write(loaded, folder, to, license, tuple(made))
        files = tuple(sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()))
        address = None if to is None else hub.upload(folder, to, private=private)
        if target is not None and _packed(target):
            _pack(folder, files, target)
        elif target is not None and target.is_dir():
            _fill(target, folder)
        elif target is not None:
            folder.rename(target)
    return Exported(target, address, files, (*loaded.notes, *notes, *left_out), loaded.config.data.program != "given")


def _expression(license: str) -> str:
    """A licence as SPDX writes it.

    Raises:
        UserError: if it is none.
    """
    try:
        return str(canonicalize_license_expression(license))
    except ValueError as error:
        raise UserError(
            f"{license!r} is no SPDX expression ({str(error).lower()}); write such as MIT, CC-BY-4.0 or "
            "LicenseRef-Mine (spdx.org/licenses)."
        ) from None


def _packed(target: Path) -> bool:
    return target.suffix.lower() == ".zip"


def _check_free(target: Path) -> None:
    """Refuses, before any work is done, a target that is taken or cannot be one."""
    hub.check_no_place(target, "--to")
    if target.suffix.lower() in (".gz", ".tgz", ".tar", ".xz", ".bz2", ".7z"):
        raise UserError(f"{target} is no archive that is written here; give FILE.zip or a folder.")
    if target.is_file():
        raise UserError(f"{target} is there already; give a new name.")
    if target.is_dir() and (_packed(target) or any(target.iterdir())):
        raise UserError(f"{target} is a folder that is not empty; give a new or an empty one.")
    if target.is_dir() and not os.access(target, os.W_OK):
        raise UserError(f"cannot write into {target}; give another path.")
    if not target.absolute().parent.is_dir():
        raise UserError(f"there is no folder {target.parent} for {target.name}; make it or give another.")


@contextmanager
def _aside(target: Path | None) -> Iterator[Path]:
    """A folder beside the target, on the same disk, that is gone in the end; anywhere if there is none."""
    if target is None:
        with tempfile.TemporaryDirectory() as elsewhere:
            yield Path(elsewhere)
        return
    target = target.absolute()
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir()
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror}); give another path.") from None
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fill(target: Path, folder: Path) -> None:
    """Moves the files of a folder into an empty one, which may be the current one; if that fails it is empty again."""
    names = sorted(path.name for path in folder.iterdir())
    try:
        for name in sorted(names, key=lambda name: name == manifests.MANIFEST):  # without which it is no run: last
            (folder / name).rename(target / name)
    except OSError:
        for name in names:
            if (target / name).is_dir():
                shutil.rmtree(target / name, ignore_errors=True)
            else:
                (target / name).unlink(missing_ok=True)
        raise


def _pack(folder: Path, files: tuple[str, ...], target: Path) -> None:
    with written_whole(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in files:
            archive.write(folder / name, f"{folder.name}/{name}")


# --- What is written ---


def _write(run: Run, folder: Path, to: str | None, license: str | None, made: tuple[str, ...]) -> list[str]:
    """Fills the folder, and reads it again; returns what is to be said of it."""
    source = run.folder
    assert source is not None
    if read_info(source).format != FORMAT:
        raise UserError(f"{source} was written by an older pyro-delta: it is read, but not exported; train it again.")
    state, _, _ = read_state(source)
    if (state["best"]["step"] if run.weights == "best" else state["step"]) != run.step:
        raise UserError(f"{source} is being written; wait until its training ends, or export it again.")
    sections = json.loads(manifests.verified(source, CONFIG))
    info = json.loads(manifests.verified(source, INFO))
    settings, notes = _travelling(sections, source), []
    digest = configuration.digest_of(settings)
    info = {key: info[key] for key in OF_INFO if key in info} | {"config_digest": digest, "exported": True}
    info["data"]["folder"] = None
    if license is not None:
        info["license"] = license
    elif (license := info.pop("license", None)) is not None:  # of a run that was exported before
        info["license"] = license = _expression(str(license))
    for record in info["programs"].values():
        record["name"] = _without_paths(record["name"])
    contents = {CONFIG: _json(settings), INFO: _json(info)}
    manifest = manifests.read(source)
    assert manifest is not None
    for name in manifest.files:
        if name.startswith(f"{PROGRAMS}/"):
            contents[name] = manifests.verified(source, name)
    numbers: dict[str, Any] | None = None
    if (found := kept(source)) is not None:
        if (found.numbers.get("weights"), found.numbers.get("step")) == (run.weights, run.step):
            numbers = found.numbers | {"config_digest": digest}
            contents |= {TERMS: manifests.verified(source, TERMS), CHECK: _json(numbers)}
        else:
            notes.append("The check that was kept is of other weights, and stays behind.")
    evaluated = [
        found | {"config_digest": digest}
        for found in evaluations(source)
        if (found["weights"], found["step"]) == (run.weights, run.step)
    ]
    if evaluated:
        contents[EVALUATIONS] = _json(evaluated)
    if (auxiliary := read_auxiliary(source)) is not None:
        if auxiliary["step"] == run.step:
            contents[AUXILIARY] = pack({**auxiliary, "optimizer": {}, "prior": {}})
        else:
            notes.append("The auxiliary prior was trained for other weights, and stays behind.")
    state = exported({**state, "config": _travelling(state["config"], source)}, run.weights)
    manifests.write(folder, manifests.Manifest())
    manifests.put(folder, contents)
    (folder / METRICS).write_bytes(manifests.verified_metrics(source))
    manifests.add_checkpoint(folder, state["step"], pack(state))
    again = load(folder, "cpu", weights=run.weights, trust=True)  # whose programs have run already
    before, after = run.vae.state_dict(), again.vae.state_dict()
    if before.keys() != after.keys() or not all(torch.equal(before[key], after[key]) for key in before):
        raise UserError(
            f"{source} changes its weights as it is read; make the constructors of its programs repeatable."
        )
    text = card(
        again,
        numbers,
        info,
        evaluated=evaluated,
        to=to,
        license=license,
        own=[record["name"] for record in info["programs"].values()],
        graphs=made,
    )
    (folder / CARD).write_text(text, encoding="utf-8")
    return notes


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _travelling(sections: dict[str, Any], source: Path) -> dict[str, Any]:
    """Settings without paths of this machine; data that are found without being told where have their default again."""
    found, data = _without_paths(sections), sections["data"]
    if "root" in data:
        root = options_model("data", find("data", data["program"], source / PROGRAMS)).model_fields["root"]
        if not root.is_required():
            found["data"]["root"] = root.default
    return found


def _without_paths(value: Any) -> Any:
    """Settings, in which of a path that leads through this machine the last name stays."""
    if isinstance(value, dict):
        return {key: _without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    return _bare(value) if isinstance(value, str) else value


def _bare(text: str) -> str:
    path = PurePath(text)
    leads = path.is_absolute() or text.startswith("~") or ".." in path.parts
    return (path.name.removeprefix("~") or "data") if leads else text
