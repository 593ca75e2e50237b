"""What settings there are: of the programs, of training, each with its type, default and a line of words."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from pyro_delta import programs
from pyro_delta.config import Config

SECTIONS = tuple(name for name in Config.model_fields if name not in programs.KINDS)
"""Of settings, that are no program's."""
PLAIN = {int: "int", float: "number", str: "text", bool: "true | false"}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: dotted, as `--set` takes it.
        type: in words.
        default: as it is written; "–" where it must be given.
        words: what it is.
    """

    name: str
    type: str
    default: str
    words: str


def of_section(section: str) -> list[Setting]:
    """Settings of a section of `SECTIONS`."""
    fields = Config.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    return [_setting(section, name, field, field.description or "") for name, field in fields.items()]


def of_program(kind: str, name: str) -> list[Setting]:
    """Options of a program.

    Raises:
        UserError: as `programs.find`.
    """
    program = programs.find(kind, name)
    words = {option: words for option, (_, words) in programs.OF_ALL.get(kind, {}).items()}
    words |= dict(_arguments(program))
    fields = programs.options_model(kind, program).model_fields
    return [_setting(kind, option, field, words.get(option, "")) for option, field in fields.items()]


def flat(config: Config) -> Iterator[tuple[str, Any]]:
    """All settings of a configuration by dotted names, but for those that are none."""
    for section, fields in config.model_dump(mode="json").items():
        yield from ((f"{section}.{name}", value) for name, value in fields.items() if value is not None)


def kind_of(program: Callable[..., Any]) -> str:
    """Of which of `programs.KINDS` a program is, by what it is built from."""
    names = list(inspect.signature(program).parameters)
    if names[:2] == ["spec", "prior"]:
        return "guide" if hasattr(program, "posterior") else "likelihood"
    return "prior" if names[:1] == ["spec"] else "data" if "root" in names else "objective"


def about(program: Callable[..., Any]) -> str:
    """What a program says of itself, not what it is derived from, before its arguments and what comes with them."""
    text = inspect.cleandoc(program.__doc__ or "")
    return re.split(r"\n\s*\n?(?:Args|Attributes|Raises|References|Returns):\n", f"\n{text}")[0].strip()


def _arguments(program: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Name and words of each argument in the docstrings of a program, or of what it is derived from."""
    for part in reversed(getattr(program, "__mro__", (program,))):
        found = re.search(r"^Args:\n((?:[ ]{4}.*\n|\n)+)", f"{inspect.cleandoc(part.__doc__ or '')}\n", re.MULTILINE)
        for names, words in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", found[1] if found else "", re.MULTILINE):
            yield from ((name.strip(), " ".join(words.split())) for name in names.split(","))


def _setting(section: str, name: str, field: FieldInfo, words: str) -> Setting:
    default = "–" if field.is_required() else written(field.get_default(call_default_factory=True))
    return Setting(f"{section}.{name}", _type(field), default, " ".join(words.split()))


def written(value: Any) -> str:
    """A setting's value as `--set` takes it."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(written, value))}]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _type(field: FieldInfo) -> str:
    """An annotation with its bounds, in words; that it may be none is left to the default."""
    bounds = [
        f"{sign} {limit}"
        for attribute, sign in BOUNDS.items()
        for part in field.metadata
        if (limit := getattr(part, attribute, None)) is not None and abs(limit) < 2**31
    ]
    return " ".join([_annotated(field.annotation), *bounds])


def _annotated(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(map(str, parts))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_annotated(part) for part in parts if part is not type(None))
    if origin is typing.Annotated:
        return _annotated(parts[0])
    if origin in (tuple, list):
        inner = [_annotated(part) for part in parts if part is not ...]
        return f"[{', '.join(inner)}{', …' if ... in parts else ''}]"
    if annotation is Any:
        return "anything"
    return PLAIN.get(annotation) or str(getattr(annotation, "__name__", annotation))
