"""Sweeps: many runs of a preset, which differ in some settings and in their seeds. Importing it needs no torch.

A sweep is written as TOML::

    [sweep]
    name = "floors"
    title = "what a floor costs"
    preset = "digits"                # or none, and the data of the settings choose it
    control = "no-latents"           # an arm without latents, for `check --control`; may be left out
    seeds = [0, 1, 2]

    [settings]                       # of all arms, as `--set` takes them
    training.steps = 1000

    [[arms]]
    name = "delta"
    grid.prior.rate_nats = [2, 4, 8] # three arms: delta,rate_nats=2 and so on

    [[arms]]
    name = "no-latents"
    likelihood.use_latents = false

    [grid]                           # of all arms, all combinations; without arms, it makes them
    training.lr = [1e-3, 2e-3]

    [search]                         # for `sweep --search`: settings that are drawn
    training.lr = {low = 1e-4, high = 1e-2, log = true}
    training.optimizer = {choices = ["adam", "muon"]}

    [[cited]]                        # what others have published, below the table
    name = "PixelCNN++"
    neg_elbo_bpd = 2.92
    source = "Salimans et al., ICLR 2017"
"""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from pyro_delta import config as configuration
from pyro_delta.config import EXCLUSIVE, Config
from pyro_delta.errors import UserError, unknown_name
from pyro_delta.files import json_of, toml_of, written_whole
from pyro_delta.lock import LOCK, awaited
from pyro_delta.validation import Section, Seed, first_mistake

KEPT = "sweep.json"
"""In the folder of a sweep: the sweep arm by arm, with what the command line said."""
SECTIONS = ("sweep", "settings", "grid", "arms", "search", "cited")
SEED = "training.seed"
ROOT = "data.root"
STORAGE = "search.db"
"""In the folder of a sweep: what a search has tried."""
JOBS = "submitit"
"""In the folder of a sweep: submitit's own files."""
TAKEN = (KEPT, STORAGE, JOBS)
"""Names in the folder of a sweep that no arm can have."""
LONGEST_NAME = 200
"""Bytes of a name of a folder; file systems take 255, and files beside it have an ending."""

Settings = dict[str, Any]
Table = TypeVar("Table", bound=Section)


class Range(Section):
    """The values of a setting that a search draws from: whole numbers if both ends are, or one of some choices."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    """evenly in the logarithm"""
    choices: tuple[Any, ...] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_way(self) -> Range:
        ends = (self.low is not None) + (self.high is not None)
        if ends != (2 if self.choices is None else 0):
            raise ValueError("give low and high, or choices")
        if (
            self.low is not None
            and self.high is not None
            and not (self.low < self.high and (self.low > 0 or not self.log))
        ):
            raise ValueError(f"low={self.low:g} must lie below high={self.high:g}, and above 0 with log")
        return self

    @property
    def whole(self) -> bool:
        """Whether it is one of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class Arm(Section):
    """Runs that differ in their seeds alone.

    Attributes:
        name: also that of its folder.
        family: the arm of the file that it comes from; in figures a family is joined by a line.
        across: its place in the grid of all arms, in words; empty where there is none.
        settings: dotted keys and values.
    """

    name: str
    family: str
    across: str
    settings: Settings


class Cited(Section):
    """A bound that others have published.

    Attributes:
        name: of their model.
        neg_elbo_bpd: −log p(x) or a bound on it, in the unit of the sweep's.
        source: where it stands.
    """

    name: str
    neg_elbo_bpd: float
    source: str


class Sweep(Section):
    """A sweep with its grids multiplied out."""

    name: str
    title: str
    preset: str | None
    control: str | None
    seeds: tuple[Seed, ...]
    arms: tuple[Arm, ...]
    search: dict[str, Range]
    cited: tuple[Cited, ...] = ()

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def config(self, arm: Arm, seed: int) -> Config:
        """The configuration of a run.

        Raises:
            UserError: as `pyro_delta.config.choose`, with the arm's name.
        """
        try:
            return configuration.choose([*arm.settings.items(), (SEED, seed)], self.preset)[0]
        except UserError as error:
            raise UserError(f"sweep {self.name!r}, arm {arm.name!r}: {error}") from None


class _Head(Section):
    """The table [sweep] of a file."""

    name: str
    title: str = ""
    """the name, if there is none"""
    preset: str | None = None
    control: str | None = None
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)


def sweep_names() -> list[str]:
    """Names of the shipped sweeps."""
    files = resources.files("pyro_delta.sweeps").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def title_of(name: str) -> str:
    """What a shipped sweep is of."""
    return str(tomllib.loads(_shipped(name))["sweep"]["title"])


def _shipped(name: str) -> str:
    return (resources.files("pyro_delta.sweeps") / f"{name}.toml").read_text("utf-8")


def read(given: str, settings: Sequence[tuple[str, Any]] = (), seeds: int | None = None) -> Sweep:
    """A sweep from a file, or a shipped one.

    Args:
        given: path of a TOML file, or the name of a shipped sweep.
        settings: (dotted key, value) pairs for all arms, over whatever the file says but the values of its grids, by
            which arms are named.
        seeds: so many, 0, 1, …, in the place of the file's.

    Raises:
        UserError: for whatever is wrong in it, every arm's configuration included.
    """
    is_file = given.lower().endswith(".toml")
    if not is_file and given not in sweep_names():
        raise unknown_name("sweep", given, sweep_names(), listed="`pyro-delta list sweeps`")
    path = Path(given) if is_file else Path(given).with_suffix(".toml")
    try:
        tree = toml_of(path) if is_file else tomllib.loads(_shipped(given))
    except FileNotFoundError:
        raise UserError(
            f"there is no sweep file {given}; give the path of one, or a name of a shipped sweep."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not TOML: {error}; mend it.") from None
    if isinstance(head := tree.get("sweep", {}), dict):
        tree = {**tree, "sweep": {"name": path.stem, **head}}
    try:
        return parse(tree, settings, seeds)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse(tree: Mapping[str, Any], settings: Sequence[tuple[str, Any]] = (), seeds: int | None = None) -> Sweep:
    """A sweep from the tables of its file; arguments and errors as for `read`."""
    for key in tree:
        if key not in SECTIONS:
            raise unknown_name("table of a sweep", key, SECTIONS)
    head = _validated(_Head, tree.get("sweep", {}), "sweep.")
    given = head.seeds if seeds is None else tuple(range(seeds))
    if len(set(given)) < len(given):
        raise UserError(f"sweep.seeds={list(given)} names a seed twice; give each once.")
    searched = {
        key: _validated(Range, value, f"search.{key}.") for key, value in _ranges(_dotted(tree, "search")).items()
    }
    if SEED in searched:
        raise UserError(f"search.{SEED} is drawn, but seeds are the sweep's; a search takes the first of sweep.seeds.")
    arms = _arms(tree, dict(settings), bool(searched))
    found = Sweep(
        name=_name(head.name, "sweep.name"), title=head.title or head.name, preset=head.preset,
        control=head.control, seeds=given, arms=tuple(arms), search=searched, cited=_cited(tree.get("cited", [])),
    )  # fmt: skip
    _check(found)
    return found


def _cited(tables: Any) -> tuple[Cited, ...]:
    """What others have published, of a file."""
    if not isinstance(tables, list):
        raise UserError("cited: a list of tables is needed; begin each with [[cited]].")
    return tuple(_validated(Cited, table, f"cited, number {number}: ") for number, table in enumerate(tables, 1))


def _arms(tree: Mapping[str, Any], over: Settings, searched: bool) -> list[Arm]:
    """All arms of a file, their grids multiplied out."""
    common, grid = _dotted(tree, "settings"), _axes(_dotted(tree, "grid"), "grid")
    tables = tree.get("arms", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError("arms: a list of tables is needed; begin each with [[arms]].")
    if not tables and not grid and not searched:
        raise UserError("there is nothing to run; give [[arms]], a [grid] or a [search].")
    arms: list[Arm] = []
    for number, table in enumerate(tables or [{}], 1):
        family = ""
        if tables:
            if not isinstance(table.get("name"), str):
                raise UserError(f"arm {number} has no name; give it one, such as name = 'delta'.")
            family = _name(table["name"], f"arms, number {number}: name")
        own = _dotted({"arm": {key: value for key, value in table.items() if key not in ("name", "grid")}}, "arm")
        axes = _axes(_dotted(table, "grid"), f"arms.{family}.grid")
        for key in (own.keys() & axes.keys()) | ((own.keys() | axes.keys()) & grid.keys()):
            raise UserError(f"arm {family!r} has {key} twice, in itself and in a grid; give it in one place.")
        axes |= grid
        _check_over(over, axes, family)
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values))
            words = {key: _of(key, value, axes) for key, value in chosen.items()}
            across = ",".join(word for key, word in words.items() if tables and key in grid)
            name = ",".join(filter(None, (family, *words.values()))) or "base"
            settings = merged(common, own, chosen, over)
            arms.append(Arm(name=name, family=family or "grid", across=across, settings=settings))
    return arms


def _check_over(over: Settings, axes: Mapping[str, Any], family: str) -> None:
    """Refuses a setting of the command line in the place of a grid's: names of arms and folders would not be true."""
    for key, value in over.items():
        for axis in axes:
            if key == axis or {key, axis} in EXCLUSIVE:
                arms = f"the arms of {family!r}" if family else "arms"
                raise UserError(
                    f"{key}={value} would take the place of {axis}, by whose values a grid names {arms}; leave --set "
                    f"{key} out, or take {'it' if key == axis else axis} out of the grid."
                )


def _check(sweep: Sweep) -> None:
    """Refuses names that stand twice, arms with equal settings, and whatever any arm's configuration has wrong."""
    names = [arm.name for arm in sweep.arms]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"two arms are called {name!r}; give each a name of its own.")
        if name in TAKEN:
            raise UserError(f"the arm {name!r} would take the place of a file of the sweep; give it another name.")
        if len(name.encode()) > LONGEST_NAME:
            raise UserError(f"the arm {name[:40]}… needs a folder of too long a name; give fewer or shorter values.")
    seen: dict[str, str] = {}
    for arm in sweep.arms:
        if SEED in arm.settings:
            raise UserError(f"{SEED} is set, but seeds are the sweep's; give sweep.seeds, or --seeds.")
        digest = configuration.digest(sweep.config(arm, sweep.seeds[0]))
        if digest in seen:
            raise UserError(f"the arms {seen[digest]!r} and {arm.name!r} have equal settings; leave one of them out.")
        seen[digest] = arm.name
    if sweep.control is None:
        return
    if sweep.control not in names:
        raise unknown_name("arm as sweep.control", sweep.control, names, listed="the file")
    likelihood = sweep.config(sweep.arm(sweep.control), 0).likelihood
    if likelihood.options.get("use_latents") is True:
        raise UserError(f"the control {sweep.control!r} hears z; set likelihood.use_latents = false in it.")


def merged(*layers: Settings) -> Settings:
    """Settings laid over one another: of a pair that excludes each other the upper one's stays."""
    found: Settings = {}
    for layer in layers:
        for pair in EXCLUSIVE:
            for key in pair & layer.keys():
                for other in pair - {key}:
                    found.pop(other, None)
        found |= layer
    return found


def keep(sweep: Sweep, out: Path) -> None:
    """Writes a sweep into its folder, which may hold it already, with other seeds, fewer arms, or its data elsewhere.

    Seeds that the folder has had stay the kept sweep's: their runs are there, and belong into its table.

    Raises:
        UserError: if it holds another one, or anything else, or cannot be written.
    """
    path = out / KEPT
    # Another sweep of this folder may begin just now: it has its part of the file there, and then the file.
    names = [found.name for found in out.iterdir()] if out.is_dir() else []
    strangers = [name for name in names if name != LOCK and not name.startswith(f".{KEPT}.")]
    if not path.exists() and (strangers or out.is_file()):
        raise UserError(f"{out} is not empty and holds no sweep; give a new or an empty folder as --out.")
    if path.is_symlink():
        raise UserError(f"{path} is a link, through which a sweep is not written; put the file itself there.")
    out.mkdir(parents=True, exist_ok=True)
    with awaited(out):
        if path.exists():
            before = kept(out)
            if (apart := _apart(before, sweep)) is not None:
                raise UserError(f"{out} holds another sweep, {apart}; give another --out.")
            sweep = sweep.model_copy(update={"seeds": tuple(dict.fromkeys((*before.seeds, *sweep.seeds)))})
        with written_whole(path) as file:
            file.write((json.dumps(sweep.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode())


def kept(out: Path) -> Sweep:
    """The sweep of a folder.

    Raises:
        UserError: if it holds none.
    """
    path = out / KEPT
    try:
        found = Sweep.model_validate(json_of(path.read_bytes()))
        if any("/" in arm.name or arm.name in ("", ".", "..") for arm in found.arms):
            raise ValueError("the name of an arm leads out of the folder")
        return found
    except FileNotFoundError:
        raise UserError(
            f"{out} is not a sweep: it has no {KEPT}; give a folder that `pyro-delta sweep` wrote."
        ) from None
    except ValueError:
        raise UserError(f"{path} is damaged; restore it, or give the sweep another folder.") from None


def run_folder(out: Path, arm: Arm, seed: int) -> Path:
    """Where a run of a sweep lives."""
    return out / arm.name / f"seed-{seed}"


def _apart(before: Sweep, now: Sweep) -> str | None:
    """The first thing for which a folder of one sweep does not take another, in words."""
    for what in ("name", "preset", "control"):
        if getattr(before, what) != getattr(now, what):
            return f"whose {what} is {getattr(before, what)!r}, not {getattr(now, what)!r}"
    new = {arm.name: arm.settings for arm in now.arms}
    for name, old in ((arm.name, arm.settings) for arm in before.arms):
        if name not in new:
            return f"with the arm {name!r}"
        for key in (new[name].keys() | old.keys()) - {ROOT}:
            if new[name].get(key) != old.get(key):
                return f"whose arm {name!r} has {key}={old.get(key)!r}, not {new[name].get(key)!r}"
    return None if before.search == now.search else "with another [search]"


def _validated(table: type[Table], values: Any, prefix: str) -> Table:
    """A table of a file; the first thing wrong becomes one sentence."""
    try:
        return table.model_validate(values)
    except ValidationError as error:
        key, mistake = first_mistake(error, prefix)
        if not error.errors()[0]["loc"]:  # of the table as a whole
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            mistake = UserError(f"{prefix.rstrip('.')}={values!r}: {message}.")
        known = [f"{prefix}{field}" for field in table.model_fields]
        raise (mistake or unknown_name("setting of a sweep", key, known)) from None


def _dotted(tree: Mapping[str, Any], name: str) -> Settings:
    """A table of tables as dotted keys: prior.dims = 2."""
    table = tree.get(name, {})
    if not isinstance(table, dict):
        raise UserError(f"{name}: a table of settings is needed, got {table!r}.")
    found: Settings = {}
    for section, fields in table.items():
        if isinstance(fields, dict):
            found |= {f"{section}.{field}": value for field, value in fields.items()}
        else:
            found[section] = fields
    return found


def _axes(values: Settings, where: str) -> dict[str, list[Any]]:
    """The axes of a grid."""
    for key, some in values.items():
        if not isinstance(some, list) or not some:
            raise UserError(f"{where}.{key}={some!r} is not a list of values; give some, such as [1, 2].")
    return values


def _ranges(values: Settings) -> Settings:
    """The ranges of a search, which are tables."""
    for key, some in values.items():
        if not isinstance(some, dict):
            raise UserError(f"search.{key}={some!r} is not a range; give {{low = …, high = …}} or {{choices = […]}}.")
    return values


def _of(key: str, value: Any, axes: Mapping[str, Any]) -> str:
    """A value of a grid in the name of its arm."""
    last = key.rpartition(".")[2]
    if last == "program":
        return _text(value)
    short = last if sum(other.rpartition(".")[2] == last for other in axes) == 1 else key
    return f"{short}={_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(map(_text, value))
    plain = f"{value:g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, bool) else str(value)
    return re.sub(r"[^\w.+-]+", "-", plain)


def _name(name: str, where: str) -> str:
    """A name that a folder can have."""
    if not re.fullmatch(r"\w[\w.,=+-]*", name):
        raise UserError(f"{where}={name!r} names a folder; take letters, digits and . , = + - _ alone.")
    return name
