"""The run folder: configuration, metrics, TensorBoard events, checkpoints and sample grids of one training.

::

    config.json      the whole configuration
    run.json         format, preset, spec of the data, versions of packages, commit, threads, digests of the
                     configuration, of each split of the data and of programs that are not shipped
    programs/        copies of programs that came from files, and of what they import from beside them
    checkpoint-STEP.safetensors
                     the newest two states, each with the best weights on the validation split so far
    auxiliary.safetensors
                     an auxiliary prior, trained afterwards
    metrics.jsonl    one line of numbers per logging step and validation
    check.json       numbers of `check --keep`
    terms.npz        rate and distortion of each datum of that check
    report.html      the page that training ends with, or that of `report`
    manifest.json    checksums of all these, see `pyro_delta.inference.manifest`
    events/          the metrics for TensorBoard
    samples/         what the model drew in training
    .lock            held by the one who writes, see `pyro_delta.lock`

One that was exported (`pyro_delta.share`) has one checkpoint, of averaged weights alone, and a model card, README.md.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import nn

from pyro_delta import config as configuration
from pyro_delta import hub
from pyro_delta import trust as trusting
from pyro_delta.build import build, load_data
from pyro_delta.config import AuxiliaryConfig, Config
from pyro_delta.data.condition import KEY, condition_of, conditioned, told_alike
from pyro_delta.data.named import data_of, spec_before_data
from pyro_delta.data.spec import spec_as_dict, spec_of_dict, told_apart
from pyro_delta.data.splits import fingerprints
from pyro_delta.data.tensors import Given
from pyro_delta.diagnostics import table
from pyro_delta.diagnostics.table import unfinished
from pyro_delta.errors import UserError, unknown_name
from pyro_delta.files import json_of, sweep_parts
from pyro_delta.inference import manifest as manifests
from pyro_delta.inference.auxiliary import AuxiliaryTraining
from pyro_delta.inference.checkpoint import (
    AuxiliaryState,
    TrainingState,
    check_types,
    load_former,
    load_weights,
    pack,
    required,
    unpack,
    unpack_run,
)
from pyro_delta.inference.manifest import MANIFEST, METRICS, Typed
from pyro_delta.inference.optim import MAX_STREAK, calmer
from pyro_delta.inference.provenance import provenance
from pyro_delta.lock import LOCK, Lock
from pyro_delta.programs import KINDS, Record, check_copies, copies, find, is_foreign, names
from pyro_delta.protocol import Data, Prior, Spec
from pyro_delta.vae import VAE, with_prior

CONFIG, INFO, EVENTS, SAMPLES, PROGRAMS, AUXILIARY, CHECK, TERMS, EVALUATIONS = (
    "config.json",
    "run.json",
    "events",
    "samples",
    "programs",
    "auxiliary.safetensors",
    "check.json",
    "terms.npz",
    "evaluations.json",
)
FORMER_CHECKPOINT, FORMER_AUXILIARY = "checkpoint.pt", "auxiliary.pt"
PACKAGES = {
    "pyro": ("torch", "pyro-ppl", "numpy"),
    "numpyro": ("torch", "pyro-ppl", "numpy", "jax", "numpyro", "flax", "optax"),
}
"""Backend → those whose versions may change numbers."""
EXTENSIBLE = {"training.steps", "training.minutes", "training.patience", "training.accumulate", "data.root"}
"""Settings that may change when a run is resumed; how many parts a step has in all may not, see `PyroTraining`."""


FORMAT = 3
"""Of a run folder."""
FORMER = 2
"""Without a manifest; read as it is, but not gone on with."""
PRIORS = ("model", "auxiliary")
"""Of a run, that can be asked for."""
WEIGHTS = ("best", "last")
"""Of a run, that can be asked for."""
DEAF = (
    "A control: its decoder does not hear z, so that nothing can be told, and its distortion is its −log p(x), which "
    "the −ELBO of a run with latents is compared with."
)
"""Said of a run without latents, whose −ELBO has the rate of a z that nobody hears."""


@dataclass(frozen=True)
class Run:
    """A trained model and its guide, with averaged weights, in float32 and evaluation mode.

    Attributes:
        config: all settings.
        spec: of the data.
        vae: model and guide.
        weights: best, of the validation with the least −ELBO, or last.
        step: that these weights are of.
        trained_steps: that its training has made, as far as is known: by its metrics where it has not come to its end.
        finished: whether that came to its end.
        folder: that it was read from; None if it was trained without one.
        given: the data, where they were handed over rather than named.
        lines: of metrics, where there is no folder.
        data_record: fingerprints of its data and where they lay, where that was kept.
        skipped_steps: of those that it has made, because they were not finite, or beyond `training.skip`.
        diverged: whether the newest steps were skipped, as many as end a training.
        notes: what a person should know of how it was read, in sentences.
        digest: of its settings as its folder has them, where it has one.
    """

    config: Config
    spec: Spec
    vae: VAE
    weights: str
    step: int
    trained_steps: int
    finished: bool
    folder: Path | None = None
    given: Data | None = None
    lines: tuple[dict[str, Any], ...] = ()
    data_record: DataRecord | None = None
    skipped_steps: int = 0
    diverged: bool = False
    notes: tuple[str, ...] = ()
    digest: str | None = None

    def __repr__(self) -> str:
        """In a line."""
        names = ", ".join(f"{kind} {getattr(self.config, kind).program}" for kind in KINDS[:4])
        return f"<Run {self.folder or 'in memory'}: {names}>"

    def _repr_html_(self) -> str:
        programs = [(kind, str(getattr(self.config, kind).program), "") for kind in KINDS]
        facts = [(name.replace("_", " "), table.text(value), "") for name, value in self.facts.items()]
        return table.html(str(self.folder or "a run in memory"), programs + facts, self.caveat or "")

    @property
    def facts(self) -> dict[str, Any]:
        """What goes with every number that is measured of it: which weights, of what training, and by which code."""
        return {
            "weights": self.weights,
            "step": self.step,
            "trained_steps": self.trained_steps,
            "skipped_steps": self.skipped_steps,
            "finished": self.finished,
            "config_digest": self.digest or configuration.digest(self.config),
            **provenance(),
        }

    @property
    def caveat(self) -> str | None:
        """In a sentence, that it is not what its training was to give; None if it is."""
        if self.finished:
            return None
        mend = (
            f"it diverged: train again with {calmer(self.config.training)}" if self.diverged else "go on with --resume"
        )
        return f"The training has not come to its end: {unfinished(self.facts)}; {mend}."

    @property
    def metrics(self) -> tuple[dict[str, Any], ...]:
        """The lines of metrics of its training."""
        if self.folder is None:
            return self.lines
        return tuple(read_metrics(self.folder))

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the labels of its data, where they have some, and that was kept."""
        known = None if self.data_record is None else self.data_record.classes
        return None if known is None else tuple(known)

    def trained_on(self, data: Data) -> bool | None:
        """Whether its data are these, all splits of them; None if that was not kept."""
        return None if self.data_record is None else self.data_record.first_other(data) is None

    def data(self, root: str | None = None, *, other: bool = False) -> Data:
        """The data that it was trained on, read again.

        Args:
            root: where they live now; by default where they were, whatever the current folder is.
            other: whether they may be others, as `trained_on` says.

        Raises:
            UserError: if they are not there, not of the kind that the run was made for, or others.
        """
        if self.given is not None:
            return self.given
        data = data_of_run(self.config, self.data_record, root, self.folder)
        data = in_terms_of(self.spec, self.config, data, self.config.data.program)
        if not other:
            check_same(data, self.data_record, self.folder or Path("the run"))
        return data

    def in_its_terms(self, given: str | Path | Data | Given, root: str | None = None) -> Data:
        """Data that are given, or named, in the terms of the run; arrays are read as those of the run were.

        Raises:
            UserError: as `pyro_delta.data.named.data_of`, or if they are not of the kind that the run was made for.
        """
        return in_terms_of(self.spec, self.config, data_of(given, root, like=self.spec), "what is given")


def in_terms_of(spec: Spec, config: Config, data: Data, name: str) -> Data:
    """Data as the programs of a run are told of them: conditioned on the same, by its classes, and in its units.

    Args:
        spec: of the run.
        config: of the run, which says on what its data are conditioned.
        data: that are to be used, perhaps others than it was trained on.
        name: of the data.

    Raises:
        UserError: with both specs, if the data are of another.
    """
    on = config.data.options.get(KEY)
    if on is not None and condition_of(data.spec) is None:
        data = conditioned(data, str(on))
    data = told_alike(data, spec)
    if data.spec != spec:
        now, then = told_apart(data.spec, spec)
        raise UserError(f"{name} holds {now}, but the run was made for {then}; give data of that kind.")
    return data


def names_of_classes(data: Data) -> list[str] | None:
    """What the labels of data are called, as a run keeps it."""
    classes = getattr(data, "classes", None)
    return None if classes is None else [*map(str, classes)]


def check_same(data: Data, record: DataRecord | None, folder: Path) -> None:
    """Refuses other data than a run was made with; those of a former format kept no fingerprints that can be compared.

    Raises:
        UserError: naming the split.
    """
    if record is not None and (name := record.first_other(data)) is not None:
        now, then = len(getattr(data, name)), record.splits[name].count
        raise UserError(
            f"the {now} {name} data are not the {then} that {folder} was made with, though of the same spec; give "
            "those (--data-root, where they live), or say --other-data (in Python other_data=True) to take these."
        )


def data_of_run(config: Config, record: DataRecord | None, root: str | None, folder: Path | None) -> Data:
    """The data of a run, from where they live now, or else from where they were, wherever it was started.

    Raises:
        UserError: if they have moved, there is no `root`, or as `load_data`.
    """
    if config.data.program == "given":
        place = "the run" if folder is None else str(folder)
        raise UserError(
            f"the data of {place} were given in Python and are not kept with it; give them again there, as in "
            f"pyro_delta.check({place!r}, data=…), and likewise evaluate, resume, train_control, and write_report, "
            "which keeps the check for compare and for the model card."
        )
    was = None if record is None or record.folder is None else Path(record.folder)
    if root is None and was is not None and was.exists():
        root = str(was)
    try:
        data = load_data(config, root, None if folder is None else folder / PROGRAMS)
    except UserError as error:
        exported = record is not None and was is None and config.data.options.get("root") is not None
        if root is None and exported:
            raise UserError(
                f"the data of {folder} are not here ({str(error).rstrip('.')}); say where they are by --data-root."
            ) from None
        if root is not None or was is None:
            raise
        raise UserError(
            f"the data of {folder} were in {was}, which is not there any more ({str(error).rstrip('.')}); say where "
            "they are now by --data-root."
        ) from None
    if root is not None and not Path(root).expanduser().exists():  # data that need no folder do not notice
        raise UserError(f"--data-root {root} does not exist; say where the data of the run live.")
    return data


def default_folder(config: Config, preset: str) -> Path:
    """`runs/<dataset>-<preset>-<seed>`, with the first free number behind it if that is taken."""
    name, root = config.data.program, config.data.options.get("root")
    if spec_before_data(name) is None and root is not None:
        name = f"{name}-{Path(str(root)).name}"
    dataset = re.sub(r"[^\w.-]+", "-", name.removeprefix("/")).strip("-") or "data"
    first = Path("runs") / f"{dataset}-{preset}-{config.training.seed}"
    folder, number = first, 2
    while folder.exists():
        folder, number = first.with_name(f"{first.name}-{number}"), number + 1
    return folder


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something in a folder that a training can go on from, or could in its time.

    Raises:
        UserError: if its manifest is damaged.
    """
    manifest = manifests.read(folder)
    return (folder / FORMER_CHECKPOINT).exists() if manifest is None else bool(manifest.checkpoints)


def check_free(folder: Path) -> None:
    """Refuses, before any work is done, a folder that a new run must not or cannot use.

    Raises:
        UserError: if it holds another run or anything else, or cannot be written.
    """
    hub.check_no_place(folder)
    if has_checkpoint(folder):
        raise UserError(f"{folder} holds another run; give another --out, or --resume to go on with it.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder as --out.")
    if (folder / METRICS).exists() and (folder / METRICS).stat().st_size:
        raise UserError(f"{folder} holds the metrics of a run, but no checkpoint; restore that, or give another --out.")
    # A run that died before its first checkpoint has nothing to lose, and may be begun again.
    begun = any((folder / name).exists() for name in (INFO, MANIFEST))
    if folder.is_dir() and not begun and any(path.name != LOCK for path in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run; give a new or an empty folder as --out.")
    parent = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"cannot write {folder}: no permission in {parent}; give another --out.")


def check_kept(spec: Spec) -> None:
    """Refuses a spec that could not be read back from a run.

    Raises:
        UserError: if it is not a dataclass of plain values, or its class is not found by its name.
    """
    try:
        back = spec_of_dict(json.loads(json.dumps(spec_as_dict(spec))))
        same = bool(back == spec)
    except (ValueError, KeyError, TypeError, AttributeError, ImportError):
        same = False
    if not same:
        raise UserError(
            f"the spec {type(spec).__qualname__} of the data cannot be kept with a run; make its class a frozen "
            "dataclass of plain values, at the top of a module."
        )


def create(folder: Path, config: Config, data: Data, preset: str) -> Lock:
    """Makes the folder of a new run, with copies of the files that its programs came from; it is this user's own.

    Returns:
        The lock on it.

    Raises:
        UserError: as `check_free` and `check_kept`, or if another process writes there.
    """
    check_free(folder)
    check_kept(data.spec)
    sections, spec = _fixed(config.model_dump(mode="json")), spec_as_dict(data.spec)
    foreign = trusting.foreign(sections, spec["kind"])
    chosen = {kind: getattr(config, kind).program for kind in KINDS}
    records, contents = copies(chosen | ({"spec": foreign["spec"]} if "spec" in foreign else {}))
    root = None if config.data.program == "given" else config.data.options.get("root")
    info = {
        "format": FORMAT,
        "preset": preset,
        "spec": spec,
        "data": {
            "folder": None if root is None else str(Path(str(root)).expanduser().absolute()),
            "splits": fingerprints(data),
            "classes": names_of_classes(data),
        },
        **provenance(),
        "config_digest": configuration.digest(config),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES[config.training.backend]},
        },
        "threads": torch.get_num_threads(),
        "programs": {kind: record.model_dump() for kind, record in records.items()},
    }
    texts = {CONFIG: configuration.as_text(config), INFO: _as_text(info)}
    for name, text in texts.items():
        try:
            json_of(text)
        except ValueError as error:
            raise UserError(
                f"{name} of the run could not be read back: {error}; give settings and classes other names."
            ) from None
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder)
        check_free(folder)  # somebody may have been here meanwhile
        sweep_parts(folder)
        shutil.rmtree(folder / PROGRAMS, ignore_errors=True)  # of a run that died before its first checkpoint
        (folder / SAMPLES).mkdir(exist_ok=True)
        manifests.write(folder, manifests.Manifest())
        programs = {f"{PROGRAMS}/{name}": content for name, content in contents.items()}
        manifests.put(folder, {**programs, **texts})
        check_copies(records, folder / PROGRAMS)
    except BaseException as error:
        if lock is not None:
            lock.release()
        if isinstance(error, OSError):
            raise UserError(f"cannot write {folder} ({error.strerror}); give another --out.") from None
        raise
    if foreign:
        trusting.remember(trusting.digest(sections, spec["kind"], records), folder)
    return lock


def _as_text(info: dict[str, Any]) -> bytes:
    return (json.dumps(info, indent=2) + "\n").encode()


def _fixed(sections: dict[str, Any]) -> dict[str, Any]:
    """Sections of settings without those that may change when a run is resumed."""
    return {
        section: {field: value for field, value in fields.items() if f"{section}.{field}" not in EXTENSIBLE}
        if isinstance(fields, dict)
        else fields
        for section, fields in sections.items()
    }


class Fingerprint(Typed):
    """Of a split."""

    count: int = Field(ge=0)
    names: list[str]
    digest: str


class DataRecord(Typed):
    """The data of a run: where they lay, if in a folder, the fingerprint of each split, and names of classes."""

    folder: str | None
    splits: dict[str, Fingerprint]
    classes: list[str] | None = None
    """names of their labels, where they have some, and that was kept"""

    def first_other(self, data: Data) -> str | None:
        """The first split whose fingerprint is another, if there is one."""
        found = fingerprints(data)
        return next((name for name, mine in self.splits.items() if mine.model_dump() != found.get(name)), None)


class Info(Typed, extra="ignore"):
    """What run.json says."""

    format: int
    preset: str
    spec: dict[str, Any]
    programs: dict[str, Record]
    data: DataRecord | None = None
    """None in the former format"""
    version: str | None = None
    commit: str | None = None
    """of pyro-delta; the commit where it is a checkout"""
    exported: bool = False
    """whether there is nothing to go on from, see `pyro_delta.share`"""


def read_info(folder: Path) -> Info:
    """What run.json says.

    Raises:
        UserError: if it is missing, damaged or of another version.
    """
    path = folder / INFO
    try:
        found = manifests.parsed(manifests.verified(folder, INFO), path)
    except FileNotFoundError:
        found = None
    first = 1 if manifests.read(folder) is None else None  # the first one did not say
    written = found.get("format", first) if isinstance(found, dict) else None
    if type(written) is not int:
        raise UserError(f"{path} is missing or damaged; give a folder that `train` wrote.")
    if written not in (FORMER, FORMAT):
        raise UserError(
            f"{folder} was written by {'an older' if written < FORMAT else 'a newer'} pyro-delta (format {written}, "
            f"this one reads {FORMER} and {FORMAT}); train the run again."
        )
    if written == FORMAT and manifests.read(folder) is None:
        raise UserError(f"{folder / MANIFEST} is missing, and with it the checksums of the run; restore it.")
    try:
        info = Info.model_validate(found)
    except ValidationError as error:
        mistake = error.errors()[0]
        place = ".".join(map(str, mistake["loc"]))
        raise UserError(f"{path} is missing or damaged: {place}: {mistake['msg'].lower()}; restore it.") from None
    except RecursionError:
        raise UserError(f"{path} is missing or damaged: it is nested too deep; restore it.") from None
    if not isinstance(info.spec.get("kind"), str) or (written == FORMAT and info.data is None):
        raise UserError(f"{path} is missing or damaged: it lacks the kind of the spec or the data; restore it.")
    return info


def read_spec(folder: Path, config: Config) -> Spec:
    """The spec of a run's data.

    Raises:
        UserError: if run.json does not hold one.
    """
    values = read_info(folder).spec
    find("data", config.data.program, folder / PROGRAMS)  # a spec of a program's own is known from then on
    try:
        spec = spec_of_dict(values)
    except (ValueError, KeyError, TypeError, AttributeError, ImportError, RecursionError):
        spec = None
    if not isinstance(spec, Spec):
        raise UserError(f"{folder / INFO} is damaged: {str(values)[:200]} is not a spec of data; restore it.")
    return spec


def read_config(folder: Path, trust: bool = False) -> Config:
    """The configuration of a run, whose programs are still what they were, and may run.

    Raises:
        UserError: if the folder is not a run, a program is missing or has changed, or it is a stranger's.
    """
    hub.check_here(folder, "this command")  # those that only read have fetched it
    if folder.is_file():
        if folder.suffix.lower() == ".zip":
            raise UserError(f"{folder} is packed; unpack it, and give the folder that comes out.")
        raise UserError(f"{folder} is a file, not a run; give a folder that `pyro-delta train` wrote.")
    path = folder / CONFIG
    if not path.exists():
        raise UserError(f"{folder} is not a run: it has no {path.name}; give a folder that `pyro-delta train` wrote.")
    info = read_info(folder)  # which knows runs of other versions
    tree = written_sections(folder)
    _check_trust(folder, info, tree, trust)
    check_copies(info.programs, folder / PROGRAMS)
    return configuration.of_tree(tree, path, folder / PROGRAMS)


def _check_trust(folder: Path, info: Info, tree: dict[str, Any], trust: bool) -> None:
    """Refuses a run of programs that are a stranger's, as `pyro_delta.trust.check`."""
    trusting.check(folder, _fixed(tree), info.spec["kind"], info.programs, trust)


def with_copies(settings: list[tuple[str, Any]], file: Path, trust: bool) -> list[tuple[str, Any]]:
    """Settings of a run's config.json, which name the run's copies of programs that are not where they were.

    Of an exported run they never were where its settings say.

    Args:
        settings: of the file.
        file: of settings, perhaps of a run.
        trust: as for `load`.

    Raises:
        UserError: if the copies are not what they were, or whatever program it names is a stranger's.
    """
    folder = file.parent
    foreign = [str(value) for key, value in settings if key.endswith(".program") and _is_foreign(key, str(value))]
    if not foreign or file.name != CONFIG:
        return settings
    if not (folder / INFO).exists():
        if not trust:
            raise UserError(
                f"{file} would run {', '.join(foreign)}, and is of a run without its {INFO}, which would say whose "
                "that is; look at it and say --trust if you trust it, or give a file of another name."
            )
        return settings
    info = read_info(folder)
    _check_trust(folder, info, written_sections(folder), trust)
    exported, found = info.exported, []
    for key, value in settings:
        source, _, name = str(value).rpartition(":")
        copy = folder / PROGRAMS / Path(source).name
        own = key.endswith(".program") and source.endswith(".py") and copy.is_file()
        found.append((key, f"{copy}:{name}" if own and (exported or not Path(source).expanduser().exists()) else value))
    if found != settings:
        read_config(folder, trust)
    return found


def preset_beside(file: Path) -> str | None:
    """The shipped preset of the run whose config.json a file is, if it has one; None of other files and damaged runs.

    Folders are named by it, so that no other name of a received run is taken.
    """
    if file.name != CONFIG or not (file.parent / INFO).exists():
        return None
    try:
        preset = read_info(file.parent).preset
    except UserError:  # settings can be read without it
        return None
    return preset if preset in configuration.preset_names() else None


def _is_foreign(key: str, name: str) -> bool:
    """Whether the setting of a program names one that is neither shipped nor installed; of data, `folder:PATH` is."""
    kind = key.partition(".")[0]
    return kind in KINDS and is_foreign(kind, name) and not (kind == "data" and name.partition(":")[0] in names("data"))


def config_digest(folder: Path) -> str:
    """A fingerprint of the settings of a run as they were written down: it stays what it is when options are added.

    Raises:
        FileNotFoundError: if there are none.
        UserError: if they are damaged.
    """
    return configuration.digest_of(written_sections(folder))


def written_sections(folder: Path) -> dict[str, Any]:
    """The settings of a run as they were written down."""
    return configuration.tree_of(manifests.verified(folder, CONFIG), folder / CONFIG)


def read_state(folder: Path) -> tuple[dict[str, Any], Path, tuple[str, ...]]:
    """The newest state of a run that is whole, its file, and what is to be said of how it was read.

    Raises:
        UserError: if there is none.
    """
    manifest = manifests.read(folder)
    if manifest is None:
        path, keys = folder / FORMER_CHECKPOINT, required(TrainingState)
        note = f"{folder} was written by an older pyro-delta, without checksums: damage may go unseen."
        return check_types(load_former(path, keys=keys), TrainingState, path), path, (note,)
    manifest, saved, content = manifests.whole_checkpoint(folder, manifest)
    path = folder / manifests.checkpoint_name(saved.step)
    damaged = [other.step for other in manifest.checkpoints if other.step > saved.step]
    notes = tuple(
        f"{folder / manifests.checkpoint_name(step)} is damaged or missing and is passed over: what follows is of the "
        f"checkpoint before, of step {saved.step}."
        for step in damaged
    )
    return unpack_run(content, path), path, notes


def load(
    folder: Path | str,
    device: torch.device | str = "cpu",
    prior: str = "model",
    weights: str = "best",
    *,
    trust: bool = False,
) -> Run:
    """Reads a run: its averaged weights in its programs. Torch's random state stays as it is.

    Args:
        folder: of the run; or a place on the Hugging Face hub, hf:USER/NAME or hf:USER/NAME@REVISION.
        device: where the programs go: auto, cpu or cuda.
        prior: model, or auxiliary to put the auxiliary prior in the place of the model's own.
        weights: best, those of the validation with the least −ELBO, or last; where there was no validation, best are
            the last ones. `Run.weights` says which they are.
        trust: whether programs that come with it may run, where it was not made here, see `pyro_delta.trust`; in this
            process they may from then on.

    Raises:
        UserError: if the folder is not a run, it has no such prior, there is no such device, its checkpoints are
            missing, damaged or of another configuration, or a program is missing, has changed or is not trusted.
    """
    if weights not in WEIGHTS:
        raise unknown_name("weights", weights, WEIGHTS)
    if prior not in PRIORS:
        raise unknown_name("prior of a run", prior, PRIORS)
    device = choose_device(device)
    folder = hub.here(folder)
    config = read_config(folder, trust)
    spec = read_spec(folder, config)
    state, path, notes = read_state(folder)
    check_made_with(state, config, folder)
    with torch.random.fork_rng(devices=[]):
        vae = build(config, spec, folder / PROGRAMS, check=False).to(device)
    kept = state["best"] if weights == "best" else None
    if state.get("exported") and weights == "last" and state["best"]:
        raise UserError(
            f"{folder} was exported with its best weights alone; ask for those, or export the run with --weights last."
        )
    chosen = kept or last_weights(state)
    load_weights(vae, chosen["vae"], path)
    if config.training.channels_last:  # as it was trained: up to three times as fast
        vae.to(memory_format=torch.channels_last)
    if prior == "auxiliary":
        vae = with_prior(vae, _auxiliary(folder, config, vae.model.prior, chosen, path))
    finished = is_finished(config, state)
    made, skipped, before = state["step"], int(state["skipped"]), 0
    if not finished:  # what it made after its last checkpoint is lost, but it made it
        counts = {line["step"]: line["skipped"] for line in read_metrics(folder) if "skipped" in line}
        made, skipped = max([made, *counts]), max([skipped, *counts.values()])
        before = max((count for step, count in counts.items() if step <= made - MAX_STREAK), default=0)
    return Run(
        config,
        spec,
        vae.eval(),
        "best" if kept else "last",
        chosen["step"],
        made,
        finished,
        folder,
        data_record=read_info(folder).data,
        skipped_steps=skipped,
        diverged=not finished and skipped - before >= MAX_STREAK,
        notes=notes,
        digest=config_digest(folder),
    )


def is_control(config: Config) -> bool:
    """Whether the decoder of a run is built without latents."""
    return config.likelihood.options.get("use_latents") is False


def choose_device(name: str | torch.device) -> torch.device:
    """The device of `auto`, `cpu` or `cuda`.

    Raises:
        UserError: if it has another name, or CUDA is asked for and absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"the device {str(name)!r} is not known; give auto, cpu or cuda.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch finds no CUDA device here; use --device cpu.")
    return device


def run_of(given: Run | str | Path) -> Run:
    """A run, read if its folder is given.

    Raises:
        UserError: if it is neither, or as `load`.
    """
    if not isinstance(given, Run | str | Path):
        raise UserError(f"{type(given).__name__} is not a run; give what `train` or `load` returned, or its folder.")
    return given if isinstance(given, Run) else load(given)


def last_weights(state: dict[str, Any]) -> dict[str, Any]:
    """The newest averaged weights in a state, and those of an auxiliary prior, as `Training.best` holds them."""
    auxiliary = state.get("auxiliary")
    return {
        "step": state["step"],
        "vae": averaged_weights(state),
        "auxiliary": averaged_weights(auxiliary) if auxiliary else None,
    }


def is_finished(config: Config, state: Mapping[str, Any]) -> bool:
    """Whether a training came to its end: its steps or minutes, or that of its patience.

    Args:
        config: as it is now.
        state: of its checkpoint.
    """
    settings = config.training
    if settings.out_of_patience(state.get("stale", 0)):
        return True
    if settings.steps is not None:
        return state["step"] >= settings.steps
    return state["train_s"] >= 60 * (settings.minutes or 0)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics of a run; a last one cut short by a crash is left out.

    Raises:
        UserError: if another line is damaged, naming it.
    """
    return parse_metrics(manifests.verified_metrics(folder), folder / METRICS)


def parse_metrics(content: bytes, path: Path) -> list[dict[str, Any]]:
    """The same of what the file holds."""
    texts, lines = content.splitlines(), []
    for number, text in enumerate(texts, 1):
        try:
            line = json_of(text)
        except ValueError:
            if number == len(texts) and not content.endswith(b"\n"):
                break
            line = None
        if not _is_line(line):
            raise UserError(f"{path} is damaged: line {number} is not a line of metrics; mend it or take it out.")
        lines.append(line)
    return lines


def _is_line(line: Any) -> bool:
    """Whether a line of metrics is a step, a split, and numbers or null."""
    if not isinstance(line, dict) or type(line.get("step")) is not int or not isinstance(line.get("split"), str):
        return False
    return all(value is None or key == "split" or isinstance(value, int | float) for key, value in line.items())


def save_auxiliary(run: Run, settings: AuxiliaryConfig, training: AuxiliaryTraining) -> None:
    """Writes an auxiliary prior that was trained for the weights of a run that was read from its folder."""
    assert run.folder is not None
    made = {"settings": settings.model_dump(), "step": run.step, **training.state()}
    manifests.put(run.folder, {AUXILIARY: pack(made)})


def auxiliary_file(folder: Path) -> Path | None:
    """The file of an auxiliary prior that was trained for a run afterwards, if there is one."""
    return next((path for name in (AUXILIARY, FORMER_AUXILIARY) if (path := folder / name).exists()), None)


def read_auxiliary(folder: Path) -> dict[str, Any] | None:
    """The state of an auxiliary prior that was trained for a run afterwards; None if there is none.

    Raises:
        UserError: if it is damaged.
    """
    if (path := auxiliary_file(folder)) is None:
        return None
    keys, former = AuxiliaryState.model_fields, path.name == FORMER_AUXILIARY
    state = load_former(path, keys=keys) if former else unpack(manifests.verified(folder, AUXILIARY), path, keys)
    return check_types(state, AuxiliaryState, path)


def _auxiliary(folder: Path, config: Config, prior: Prior, chosen: dict[str, Any], path: Path) -> nn.Module:
    """The auxiliary prior of a run for the weights chosen: one trained afterwards, or else beside the model."""
    settings, weights, state = config.auxiliary, chosen["auxiliary"], read_auxiliary(folder)
    if state is not None:
        path = auxiliary_file(folder) or path
        if state["step"] != chosen["step"]:
            raise UserError(
                f"{path} was trained for the weights of step {state['step']}, not for those of step {chosen['step']}; "
                f"train it again with pyro-delta train-prior {folder}, or choose --weights best or last."
            )
        settings, weights = AuxiliaryConfig(**state["settings"]), averaged_weights(state)
    if not weights:
        raise UserError(f"{folder} has no auxiliary prior; train one with pyro-delta train-prior {folder}.")
    auxiliary = AuxiliaryTraining.of(settings, prior).prior
    load_weights(auxiliary, weights, path)
    return auxiliary


def averaged_weights(state: dict[str, Any]) -> dict[str, Any]:
    """The averaged weights in a state, under the names of what is averaged."""
    return {name.removeprefix("module."): value for name, value in state["average"].items() if name != "n_averaged"}


def resumed_config(folder: Path, settings: list[tuple[str, Any]], trust: bool = False) -> Config:
    """The configuration of a run to be resumed, longer if `settings` say so.

    Raises:
        UserError: if the folder is not a run, or a setting other than `EXTENSIBLE` contradicts the run's.
    """
    saved = read_config(folder, trust)
    config = configuration.overlaid(saved.model_dump(), settings, folder / PROGRAMS)
    if found := _first_change(saved.model_dump(mode="json"), config):
        key, before, now = found
        raise UserError(
            f"{folder} was made with {key}={before}, not {now}; leave that out to resume it, or start a new run."
        )
    return config


def check_made_with(state: dict[str, Any], config: Config, folder: Path) -> None:
    """Refuses a configuration other than the one that a run's checkpoint was made with: config.json was edited.

    Raises:
        UserError: naming the first setting that differs, `EXTENSIBLE` ones aside, and both values.
    """
    if found := _first_change(state["config"], config):
        key, before, now = found
        raise UserError(
            f"{folder / CONFIG} has {key}={now}, but the run was made with {before}; put that back, or start a new run."
        )


def _first_change(before: dict[str, Any], config: Config) -> tuple[str, Any, Any] | None:
    """The first setting, of those that may not change, that differs from the sections `before`, and both its values."""
    after = config.model_dump(mode="json")
    for section, fields in before.items():
        for field, value in fields.items():
            key, now = f"{section}.{field}", after.get(section, {}).get(field)
            if key not in EXTENSIBLE and now != value:
                return key, value, now
    return None


def note_configuration(folder: Path, config: Config) -> None:
    """Writes the configuration of a run that was made longer or whose data have moved, and its digest."""
    info = json.loads(manifests.verified(folder, INFO)) | {"config_digest": configuration.digest(config)}
    if (root := config.data.options.get("root")) != read_config(folder).data.options.get("root"):
        info["data"]["folder"] = str(Path(str(root)).expanduser().absolute())
    manifests.put(folder, {CONFIG: configuration.as_text(config), INFO: _as_text(info)})
