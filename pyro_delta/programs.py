"""Programs by name, and their options, read off their constructors. Importing it does not import torch.

A program is named by a shipped or installed name (`ar1`), by `package.module:Object`, or by `path/to/file.py:Object`.
It is built as

    data        Object(root=…, validation=…, seed=…, **options)
    prior       Object(spec, **options)
    likelihood  Object(spec, prior, **options)
    guide       Object(spec, prior, **options)
    objective   Object(**options)

and offers what `pyro_delta.protocol` says, where `spec` is that of the data. The keyword arguments of the constructor,
with their annotations and defaults, are the program's settings: `--set prior.alpha=0.9` reaches the argument `alpha` of
the prior. A constructor's `**options` stand for the keyword-only arguments of its base class.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import inspect
import sys
import sysconfig
import traceback
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points, packages_distributions
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from pyro_delta.errors import MANY, UserError, in_a_line, is_out_of_memory, nearest, unknown_name
from pyro_delta.validation import Section, first_mistake

SHIPPED: dict[str, dict[str, str]] = {
    "data": {
        "digits": "pyro_delta.data.images.datasets:Digits",
        "photos": "pyro_delta.data.images.datasets:Photos",
        "cifar10": "pyro_delta.data.images.datasets:CIFAR10",
        "mnist": "pyro_delta.data.images.datasets:MNIST",
        "fashion_mnist": "pyro_delta.data.images.datasets:FashionMNIST",
        "binarised_mnist": "pyro_delta.data.images.datasets:BinarisedMNIST",
        "imagenet32": "pyro_delta.data.images.imagenet:ImageNet32",
        "folder": "pyro_delta.data.images.datasets:Folder",
        "descriptions": "pyro_delta.data.sequences.text:Descriptions",
        "text": "pyro_delta.data.sequences.documents:TextFile",
        "brown": "pyro_delta.data.sequences.brown:Brown",
        "chorales": "pyro_delta.data.music.chorales:Chorales",
        "vowels": "pyro_delta.data.series.vowels:Vowels",
        "series": "pyro_delta.data.series.own:Series",
        "speech": "pyro_delta.data.audio.speech:Speech",
        "audio": "pyro_delta.data.audio.speech:Audio",
        "given": "pyro_delta.data.splits:Given",
    },
    "prior": {
        "ar1": "pyro_delta.models:AR1Prior",
        "ar1_learned": "pyro_delta.models:LearnedAR1Prior",
        "standard_normal": "pyro_delta.models:StandardNormalPrior",
        "ar": "pyro_delta.models:ARPrior",
        "lattice": "pyro_delta.models:LatticePrior",
        "matern": "pyro_delta.models:MaternPrior",
    },
    "likelihood": {
        "gated_pixelcnn": "pyro_delta.models:GatedPixelCNNLikelihood",
        "pixelsnail": "pyro_delta.models:PixelSNAILLikelihood",
        "gru": "pyro_delta.models:GRULikelihood",
        "transformer": "pyro_delta.models:TransformerLikelihood",
        "wavenet": "pyro_delta.models:WaveNetLikelihood",
    },
    "guide": {
        "anti_causal": "pyro_delta.guides:AntiCausalGuide",
        "bidirectional": "pyro_delta.guides:BidirectionalGuide",
        "contour": "pyro_delta.guides:ContourGuide",
        "structured": "pyro_delta.guides:StructuredGuide",
        "gru": "pyro_delta.guides:GRUGuide",
        "transformer": "pyro_delta.guides:TransformerGuide",
        "spectral": "pyro_delta.guides:SpectralGuide",
    },
    "objective": {
        "elbo": "pyro_delta.inference.objectives:NegativeELBO",
        "beta": "pyro_delta.inference.objectives:Beta",
        "annealed": "pyro_delta.inference.objectives:Annealed",
        "free_bits": "pyro_delta.inference.objectives:FreeBits",
        "free_bits_per_dim": "pyro_delta.inference.objectives:FreeBitsPerDimension",
        "target_rate": "pyro_delta.inference.objectives:TargetRate",
    },
}
"""Kind → name → place."""
KINDS = tuple(SHIPPED)
_FILES: dict[str, str] = {}
"""File → name of the program that came from it, for those that are not shipped."""
GIVEN = {"data": 0, "prior": 1, "likelihood": 2, "guide": 2, "objective": 0}
"""Leading arguments of a constructor that are no options."""
DATA_OPTIONS = {"root", "validation", "seed"}
"""That data take, of those that they have."""
GROUPS = {"data": "pyro_delta.data"} | {kind: f"pyro_delta.{kind}s" for kind in KINDS if kind != "data"}
"""Entry points by which installed packages add names."""


def names(kind: str) -> dict[str, str]:
    """Shipped programs of a kind, then installed ones (entry points `GROUPS`), each with its place."""
    installed = {entry.name: entry.value for entry in entry_points(group=GROUPS[kind])}
    return SHIPPED[kind] | {name: place for name, place in installed.items() if name not in SHIPPED[kind]}


def data_name(name: str) -> tuple[str, str | None]:
    """A name of data and the root in it: `folder:PATH` is the program `folder` with root PATH, other names have none.

    A path belongs into the name of data that cannot be made without a root; the others are found without it.

    Raises:
        UserError: if nothing follows the colon, or the data take nothing there.
    """
    program, colon, root = name.partition(":")
    if not colon or program not in names("data"):
        return name, None
    option = options_model("data", find("data", program)).model_fields.get("root")
    if option is None or not option.is_required():
        raise UserError(
            f"the data {program!r} take nothing after a colon, as in {name!r}; write {program} (--data-root says where "
            "data sets live)."
        )
    if not root:
        raise UserError(f"the data {name!r} lack what follows the colon; write {program}:PATH.")
    return program, root


def find(kind: str, name: str, folder: Path | None = None) -> Callable[..., Any]:
    """The class (or function) that makes a program.

    Args:
        kind: of `KINDS`.
        name: as the module's text has it.
        folder: of a run; its copy of a file serves in place of the file.

    Raises:
        UserError: if there is no such name, file, module or object, or if importing it fails.
    """
    shipped = name in SHIPPED[kind]
    place = SHIPPED[kind][name] if shipped else names(kind).get(name, name)  # to ask what is installed takes a while
    source, colon, attribute = place.rpartition(":")
    if not colon or not source or not attribute:
        raise unknown_name(kind, name, names(kind))
    known = source.partition(":")[0]
    # A module of that name, if there is one, is what is meant.
    if not shipped and known in names(kind) and find_spec(known) is None:
        raise UserError(
            f"the {kind} {known!r} takes nothing after a colon, as in {name!r}; write {known}, and its options as "
            f"--set {kind}.NAME=VALUE."
        )
    module = _module_at(source, f"{kind} {name!r}", folder)
    if place not in SHIPPED[kind].values() and module.__file__:
        _FILES[module.__file__] = name
    found = getattr(module, attribute, None)
    if not callable(found):
        serve = [key for key, value in vars(module).items() if _serves(kind, value, module)]
        raise unknown_name(f"{kind} of {source}", attribute, serve, listed=source)
    return found


def _serves(kind: str, value: Any, module: ModuleType) -> bool:
    """Whether an object of a module looks like a program of a kind: by its members, or what it is built from."""
    if not str(getattr(value, "__module__", "")).startswith(module.__name__):
        return False
    if inspect.isfunction(value):
        built_from = list(inspect.signature(value).parameters)
        if kind == "data":
            return not DATA_OPTIONS.isdisjoint(built_from)
        first = [name for name in built_from[:2] if name in ("spec", "prior")]
        return kind != "objective" and first == ["spec", "prior"][: GIVEN[kind]]
    if not isinstance(value, type):
        return False
    forward = getattr(value, "forward", None)
    if kind == "data":
        options = {name for made in _constructors(value) for name in inspect.signature(made).parameters}
        known = {*dir(value), *getattr(value, "__dataclass_fields__", ()), *options}
        return forward is None and not known.isdisjoint({"spec", "train", *DATA_OPTIONS})
    if kind == "objective":
        return forward is None and "__call__" in dir(value) and _needed(value.__call__) >= len(("rate", "distortion"))
    is_guide = hasattr(value, "posterior") or hasattr(value, "causality")
    if kind == "guide" or is_guide or forward is None:
        return kind == "guide" and is_guide
    return (_needed(forward) > 0) == (kind == "likelihood")


def _needed(method: Callable[..., Any]) -> int:
    """Arguments after self that a method cannot be called without."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    return sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)


def object_at(place: str) -> Callable[..., Any]:
    """The callable of a place, `path/to/file.py:object` or `package.module:object`, that is no program.

    Raises:
        UserError: if there is none, or importing it fails.
    """
    source, colon, attribute = place.rpartition(":")
    if not colon or not source or not attribute:
        raise UserError(f"{place!r} is not a place; write path/to/file.py:make or package.module:make.")
    module = _module_at(source, f"function {place!r}", None)
    if module.__file__:
        _FILES[module.__file__] = place
    found = getattr(module, attribute, None)
    if found is not None and not callable(found):
        raise UserError(f"{place} is not a function, but of type {type(found).__name__}; name a function.")
    if found is None:
        raise unknown_name(
            f"function of {source}", attribute, [k for k, v in vars(module).items() if callable(v)], source
        )
    return found


def _module_at(source: str, what: str, folder: Path | None) -> ModuleType:
    """The module of a file, or of a name."""
    if source.endswith(".py"):
        return _module_of_file(Path(source).expanduser() if folder is None else folder / Path(source).name)
    with blamed(source):
        imported = module_named(source)
    if imported is None:
        raise UserError(f"there is no module {source} for the {what}; check its spelling.")
    return imported


def module_named(source: str) -> ModuleType | None:
    """The module of a name, imported; None if there is none, but not if what it imports is missing."""
    try:
        return import_module(source)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{source}.".startswith(f"{error.name}."):
            raise
        return None


def twin_of(program: Callable[..., Any]) -> str | Callable[..., Any] | None:
    """The NumPyro twin that a program names in its attribute `twin`: a place `package.module:Object`, or the object.

    None if it names none. What a base class names is the twin of the base class.
    """
    return getattr(program, "__dict__", {}).get("twin")


def _module_of_file(path: Path) -> ModuleType:
    """A file as a module, made once for each content, so that its classes are the same classes each time.

    Files beside it that it imports are modules of the same kind, known to nobody else: another folder, such as that of
    another run, has its own.
    """
    files = {path.stem: path} | _beside(path)
    return _module_of(path.stem, {name: (file, _bytes_of(file)) for name, file in files.items()})


def _module_of(stem: str, sources: Mapping[str, tuple[Path, bytes]]) -> ModuleType:
    """The module of a source, whose imports are looked for among the others, as they were read, before elsewhere."""
    path, source = sources[stem]
    reached, waiting = set[str](), [stem]
    while waiting:
        new = (_imports(sources[waiting.pop()][1]) & sources.keys()) - reached
        reached |= new
        waiting += new
    found = hashlib.sha256(source)
    for other in sorted(reached - {stem}):
        found.update(f"{other} {hashlib.sha256(sources[other][1]).hexdigest()}".encode())
    name = f"pyro_delta_program_{found.hexdigest()[:16]}"

    def imported(what: str, *given: Any, **named: Any) -> Any:
        return _module_of(what, sources) if what in reached else builtins.__import__(what, *given, **named)

    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(path)
        if reached:
            module.__dict__["__builtins__"] = {**vars(builtins), "__import__": imported}
        sys.modules[name] = module  # before it runs: dataclasses and pickles look themselves up
        try:
            with blamed(str(path)):
                exec(compile(source, str(path), "exec"), module.__dict__)
        except UserError:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _beside(path: Path) -> dict[str, Path]:
    """Module → file, of those beside a program that it imports, or that these import.

    Raises:
        UserError: if it imports a package from there.
    """
    found: dict[str, Path] = {}
    waiting = [path]
    while waiting:
        for name in _imports(_bytes_of(waiting.pop())):
            file, package = path.with_name(f"{name}.py"), path.with_name(name) / "__init__.py"
            if file.is_file() and name not in found:
                found[name] = file
                waiting.append(file)
            elif (package.is_file() or any(package.parent.glob("*.py"))) and not _is_installed(name):
                raise UserError(
                    f"the program {path} imports {name}, a package beside it, of which a run would keep no copy; "
                    "install the package, or put what it needs into files beside the program."
                )
    return found


def _is_installed(name: str) -> bool:
    """Whether a top-level module is this package's, Python's own, or one that was installed."""
    return _is_own(name) or name in sys.stdlib_module_names or name in packages_distributions()


def _is_own(name: str) -> bool:
    return name.partition(".")[0] == __name__.partition(".")[0]


def _below(module: str, path: Path) -> dict[str, Path]:
    """Name → file, of those that a module imports, or that these import, and that lie in its package, or beside that.

    Beside a package that was installed everything else was, too, and is not looked at. Nothing is imported.
    """
    parts = module.split(".")
    root = path.parents[len(parts) - (path.name != "__init__.py")]
    installed = str(root.resolve()).startswith(LIBRARIES)
    found: dict[str, Path] = {}
    waiting = [(module, path)]
    while waiting:
        name, file = waiting.pop()
        package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
        for steps in ([*package], *(wanted.split(".") for wanted in _dotted(_bytes_of(file), tuple(package)))):
            if steps and steps[0] != parts[0] and (installed or _is_installed(steps[0])):
                continue
            for length in range(1, len(steps) + 1):
                place = root.joinpath(*steps[:length])
                for one in (place / "__init__.py", place.with_name(f"{place.name}.py")):
                    key = one.relative_to(root).as_posix()
                    if key not in found and one != path and one.is_file():
                        found[key] = one
                        waiting.append((".".join(steps[:length]), one))
    return found


@lru_cache(maxsize=64)
def _dotted(source: bytes, package: tuple[str, ...]) -> frozenset[str]:
    """Modules, or what is taken from them, that a text in a package imports, by their whole names."""
    names = set[str]()
    for node in _nodes(source):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names.update(f"{base}.{alias.name}" for alias in node.names if base)
    return frozenset(names)


def _nodes(source: bytes) -> list[ast.AST]:
    try:
        return list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):  # who runs it will say so
        return []


@lru_cache(maxsize=64)
def _imports(source: bytes) -> frozenset[str]:
    """Modules that a text imports, anywhere in it."""
    nodes = _nodes(source)
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return frozenset(name.partition(".")[0] for name in names)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        where = "" if path.is_absolute() else f" from the current folder, {Path.cwd()}"
        raise UserError(f"cannot read the program {path} ({error.strerror}); give the path of a file{where}.") from None


@contextmanager
def blamed(name: str) -> Iterator[None]:
    """Turns whatever a program raises into one sentence that names file and line: the deepest of the user's files.

    Args:
        name: of the program.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"{name} does not fit into memory with these options; ask for smaller ones.") from error
        if isinstance(error, SyntaxError) and error.filename:
            raise _sentence(name, error.filename, error.lineno, error) from error
        frames = traceback.extract_tb(error.__traceback__)
        if theirs := [frame for frame in frames if _is_users(frame.filename)]:
            raise _sentence(name, theirs[-1].filename, theirs[-1].lineno, error) from error
        by_torch = Path(frames[-1].filename).parts[-3:-1] == ("nn", "modules")
        if by_torch or len(frames) == 2:  # it was called wrongly, here below the `yield` for one
            raise UserError(f"{name} fails: {in_a_line(error)}; mend the program.") from error
        if any(name in shipped for shipped in SHIPPED.values()):
            raise _sentence(name, frames[-1].filename, frames[-1].lineno, error) from error
        raise UserError(
            f"{name} runs into an error outside its own files, at {frames[-1].filename}, line {frames[-1].lineno}: "
            f"{in_a_line(error)}; mend what it hands over, or report this if that is right."
        ) from error


def blame(error: Exception) -> UserError | None:
    """The sentence of `blamed` for an error that came out of a user's program while it ran; None for any other."""
    frames = traceback.extract_tb(error.__traceback__)
    if not (own := [frame for frame in frames if frame.filename in _FILES]):
        return None
    deepest = [frame for frame in frames if _is_users(frame.filename)][-1]
    return _sentence(_FILES[own[-1].filename], deepest.filename, deepest.lineno, error)


LIBRARIES = tuple(
    str(Path(place).resolve())
    for place in (str(Path(__file__).parent), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
)
"""Folders of files that a user does not write."""


def _is_users(file: str) -> bool:
    """Whether a file is a program's, or one that it imports: of no library, unless it was named."""
    return file in _FILES or not (file.startswith("<") or str(Path(file).resolve()).startswith(LIBRARIES))


def _sentence(name: str, file: str, line: int | None, error: Exception) -> UserError:
    return UserError(f"{name} fails at {file}, line {line}: {in_a_line(error)}; mend the program.")


# --- Options ---


OF_ALL: dict[str, dict[str, tuple[Any, str]]] = {
    "data": {
        "condition": (
            Annotated[str | None, BeforeValidator(lambda name: None if name == "none" else name)],
            "what data are conditioned on, a batch's key `condition`: labels, or the name of what goes with x",
        )
    }
}
"""Settings of every program of a kind, which may be left out: name → type and words."""


class _Options(Section):
    """Settings of a program, which may be of any type."""

    model_config = ConfigDict(arbitrary_types_allowed=True, use_attribute_docstrings=False)


def options_model(kind: str, program: Callable[..., Any]) -> type[BaseModel]:
    """The settings of a program as a model: the constructor's keyword arguments, their annotations and defaults."""
    make = _options_model if isinstance(program, Hashable) else _options_model.__wrapped__
    return make(kind, program)


@lru_cache(maxsize=128)  # to make one takes 20 ms
def _options_model(kind: str, program: Callable[..., Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for number, made in enumerate(_constructors(program)):
        parameters = list(inspect.signature(made).parameters.values())
        try:
            hints = typing.get_type_hints(made, include_extras=True)
        except (NameError, TypeError):  # annotations that exist for type checkers alone
            hints = {}
        if number == 0:  # after self, if there is one, and what a program is built from
            parameters = parameters[GIVEN[kind] + isinstance(program, type) :]
        named = [
            p for p in parameters if p.kind is p.KEYWORD_ONLY or (number == 0 and p.kind is p.POSITIONAL_OR_KEYWORD)
        ]
        for p in named:
            fields.setdefault(p.name, (hints.get(p.name, Any), ... if p.default is p.empty else p.default))
    for name, (annotation, _) in OF_ALL.get(kind, {}).items():
        fields.setdefault(name, (annotation, None))
    return create_model(f"{kind}_options", __base__=_Options, **fields)


def _constructors(program: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """The constructor, and as long as one takes `**options` that of its base class."""
    if not isinstance(program, type):
        yield program
        return
    for cls in program.__mro__:
        if "__init__" in vars(cls):
            if cls.__module__.partition(".")[0] in ("torch", "pyro", "builtins"):
                return
            made = vars(cls)["__init__"]
            yield made
            if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(made).parameters.values()):
                return


def has_option(program: Callable[..., Any], name: str) -> bool:
    """Whether a program itself takes an option, in the place of what `OF_ALL` means by it."""
    return any(name in inspect.signature(made).parameters for made in _constructors(program))


def option_names(kind: str, name: str, folder: Path | None = None) -> list[str]:
    """Names of a program's options."""
    return list(options_model(kind, find(kind, name, folder)).model_fields)


def options_in_common(kind: str, one: str, other: str, folder: Path | None = None) -> set[str]:
    """Options that mean the same to two programs: of one name and one type."""
    first, second = (options_model(kind, find(kind, name, folder)).model_fields for name in (one, other))
    return {name for name in first.keys() & second.keys() if first[name].annotation == second[name].annotation}


def _unknown_option(kind: str, name: str, key: str, model: type[BaseModel]) -> UserError:
    """The error for an option that a program lacks, with the nearest name and those shipped that take it."""
    option = key.removeprefix(f"{kind}.")
    what, known = f"setting of the {kind} {name!r}", ["program", *model.model_fields]
    having = [other for other in SHIPPED[kind] if other != "given" and option in option_names(kind, other)]
    if not 0 < len(having) <= MANY:
        return unknown_name(what, key, [f"{kind}.{option}" for option in known])
    near = nearest(option, known)
    hint = f"did you mean '{kind}.{near[0]}'? Of" if near else "of"
    take = "takes" if len(having) == 1 else "take"
    return UserError(f"unknown {what} {key!r}; {hint} those shipped {', '.join(having)} {take} it.")


def checked_options(kind: str, name: str, options: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """All options of a program, checked, with the defaults of those that are not given.

    Raises:
        UserError: for an option that the program does not have (with the nearest name), lacks, or cannot be.
    """
    program = find(kind, name, folder)
    model = options_model(kind, program)
    try:
        checked = model.model_validate(dict(options))
    except ValidationError as error:
        lacking = [str(first["loc"][0]) for first in error.errors() if first["type"] == "missing"]
        if kind == "objective" and len(lacking) >= 3:  # rate, distortion, data: what a call takes, not what makes it
            raise UserError(
                f"the objective {name!r} asks for {', '.join(lacking)} to be made; name what makes it of its options: "
                "a class, or a function that returns the function of rate, distortion and data."
            ) from None
        key, mistake = first_mistake(error, f"{kind}.")
        raise (mistake or _unknown_option(kind, name, key, model)) from None
    found = {field: getattr(checked, field) for field in model.model_fields}
    left_out = {option for option in OF_ALL.get(kind, {}) if not has_option(program, option)}
    return {field: value for field, value in found.items() if value is not None or field not in left_out}


# --- What a run keeps of programs that are not shipped ---


def is_foreign(kind: str, name: str) -> bool:
    """Whether a program is neither shipped nor one that an installed package adds. Nothing is imported."""
    return name not in SHIPPED[kind] and name not in names(kind)


class Record(Section):
    """What a run says of a program that is not shipped."""

    model_config = ConfigDict(strict=True)

    name: str
    digest: str
    """SHA-256 of its file"""
    beside: dict[str, str] = Field(default={})
    """file → SHA-256, of those beside it that it imports; of a module of its package, which a run keeps no copy of"""


def copies(chosen: Mapping[str, str]) -> tuple[dict[str, Record], dict[str, bytes]]:
    """Of programs that are not shipped, the records, and the files that a run keeps, by name.

    Raises:
        UserError: if two different files have the same name.
    """
    records: dict[str, Record] = {}
    contents: dict[str, bytes] = {}
    for kind, name in chosen.items():
        if (source := _source(kind, name)) is None:
            continue
        records[kind] = _record(name, source)
        if not _is_file(name):
            continue
        for path in {source, *_beside(source).values()}:
            if contents.setdefault(path.name, content := _bytes_of(path)) != content:
                raise UserError(f"two programs are in files called {path.name}; rename one of them.")
    return records, contents


def check_copies(records: Mapping[str, Record], folder: Path) -> None:
    """Refuses programs that are no longer those of the run, or import something else beside them.

    Raises:
        UserError: if a program's file is missing or has changed.
    """
    for kind, record in records.items():
        source = _source(kind, record.name, folder)
        if source is None or not source.is_file():
            where = record.name if source is None else str(source)
            raise UserError(f"the run's {kind} {record.name!r} is missing: there is no {where}; restore it.")
        now = _record(record.name, source)
        if not _is_file(record.name) and not record.beside:  # as former versions left it
            now = now.model_copy(update={"beside": {}})
        if now != record:
            apart = sorted(file for file, _ in now.beside.items() ^ record.beside.items())
            folder_of = source.parent if _is_file(record.name) else Path()
            changed = source if now.digest != record.digest else folder_of / apart[0]
            raise UserError(
                f"the run's {kind} {record.name!r} has changed: {changed} is not what the run was made with; restore "
                "it."
            )


def _record(name: str, source: Path) -> Record:
    module = name.rpartition(":")[0]
    if _is_file(name):
        files = {path.name: path for path in _beside(source).values() if path != source}
    elif module and source.suffix == ".py" and not _is_own(module):
        files = _below(module, source)
    else:
        files = {}
    return Record(name=name, digest=_digest(source), beside={key: _digest(path) for key, path in sorted(files.items())})


def _is_file(name: str) -> bool:
    return name.rpartition(":")[0].endswith(".py")


def _source(kind: str, name: str, folder: Path | None = None) -> Path | None:
    """The file of a program, None for a shipped one; in a run's folder that is its copy."""
    if name in SHIPPED.get(kind, ()):
        return None
    place = name if kind not in KINDS else names(kind).get(name, name)
    source = place.rpartition(":")[0]
    if source.endswith(".py"):
        return Path(source).expanduser() if folder is None else folder / Path(source).name
    if kind not in KINDS and (module := sys.modules.get(source)) is not None and module.__file__:
        return Path(module.__file__)  # of a spec that is there already, perhaps in a script
    with blamed(name):
        found = find_spec(source)
    return Path(found.origin) if found is not None and found.origin else Path(f"{source}.py")


def _digest(path: Path) -> str:
    return hashlib.sha256(_bytes_of(path)).hexdigest()
