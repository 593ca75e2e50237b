"""`pyro-delta list`."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pyro_delta.errors import UserError, unknown_name

if TYPE_CHECKING:
    from pyro_delta.describe import Setting

KINDS = ("datasets", "presets", "priors", "likelihoods", "guides", "objectives", "sweeps")


def _known(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """Names that begin so; behind `settings`, sections."""
    from pyro_delta.config import DEFAULT_PROGRAMS, preset_names
    from pyro_delta.programs import names

    known = {*_sections(), *DEFAULT_PROGRAMS}
    if parameter.name == "name":
        known |= {*KINDS, "settings", *preset_names()}.union(*map(names, DEFAULT_PROGRAMS)) - {"given"}
    return sorted(name for name in known if name.startswith(typed))


@click.command(name="list")
@click.argument("name", required=False, metavar="[NAME]", shell_complete=_known)
@click.argument("section", required=False, metavar="[SECTION]", shell_complete=_known)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(name: str | None, section: str | None, as_json: bool) -> None:
    """What there is to choose from, a line each; or what NAME is, and its settings.

    NAME is a kind (datasets, presets, priors, likelihoods, guides, objectives, sweeps), settings, maybe with the
    SECTION of them (training, auxiliary), which may stand alone, a program, a preset, or a program of your own:
    my.py:Prior.

    \b
    pyro-delta list priors
    pyro-delta list training
    pyro-delta list contour
    """  # noqa: D301 (click wants the backspace itself)
    if section is not None:
        if name != "settings":
            raise UserError(f"what {section!r} is of {name!r} is not clear; give one name, or settings and a section.")
        name = section
    if name is None or name in KINDS:
        _list_kinds([name] if name else KINDS, as_json)
        return
    found = _settings(name) if name in ("settings", *_sections()) else _of_program(name) or _named(name)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for number, part in enumerate(found):
        if number:
            click.echo()
        click.echo(part["title"])
        if part["text"]:
            click.echo(part["text"])
        if part["settings"]:
            _print_settings(part["settings"])


def _list_kinds(kinds: Sequence[str], as_json: bool) -> None:
    tables = {name: _entries(name) for name in kinds}
    if as_json:
        click.echo(json.dumps(tables, ensure_ascii=False))
        return
    for name, entries in tables.items():
        click.echo(name)
        width = max(len(entry["name"]) for entry in entries)
        for entry in entries:
            click.echo(f"  {entry['name']:{width}}  {entry['description']}{_mark(entry)}")


def _sections() -> tuple[str, ...]:
    from pyro_delta.describe import SECTIONS

    return SECTIONS


def _settings(name: str) -> list[dict[str, Any]]:
    """Settings of a section or of all, and where those of programs are said."""
    from pyro_delta.describe import of_section

    sections = _sections() if name == "settings" else [name]
    parts = [_part(section, "", of_section(section)) for section in sections]
    if name == "settings":
        text = (
            "Those of a program: pyro-delta list PROGRAM, such as pyro-delta list ar1. All of a run: its config.json."
        )
        parts.append(_part("data, prior, likelihood, guide, objective", text, []))
    return parts


def _of_program(section: str) -> list[dict[str, Any]]:
    """Of a section that is a program's, where its settings are said; nothing of others."""
    from pyro_delta.config import DEFAULT_PROGRAMS

    if section not in DEFAULT_PROGRAMS:
        return []
    kinds = "datasets" if section == "data" else f"{section}s"
    text = (
        f"{section}.program names a program (pyro-delta list {kinds}); other settings are those of that program, such "
        f"as pyro-delta list {DEFAULT_PROGRAMS[section]}."
    )
    return [_part(section, text, [])]


def _named(name: str) -> list[dict[str, Any]]:
    """Programs and presets of a name.

    Raises:
        UserError: if there are none; the nearest is given.
    """
    from pyro_delta import programs
    from pyro_delta.config import preset_names, preset_text
    from pyro_delta.describe import about, kind_of, of_program

    if ":" in name:
        program = programs.object_at(name)
        kind = kind_of(program)
        return [_part(f"{kind} {name}", about(program), of_program(kind, name))]
    found, known = [], [*KINDS, "settings", *_sections(), *preset_names()]
    for kind in programs.KINDS:
        known += programs.names(kind)
        if name in programs.names(kind):
            found.append(_part(f"{kind} {name}", about(programs.find(kind, name)), of_program(kind, name)))
    if name in preset_names():
        found.append(_part(f"preset {name}", preset_text(name).rstrip(), []))
    if not found:
        raise unknown_name("name", name, known)
    return found


def _part(title: str, text: str, settings: Sequence[Setting]) -> dict[str, Any]:
    return {"title": title, "text": text, "settings": [asdict(setting) for setting in settings]}


def _print_settings(settings: Sequence[dict[str, str]]) -> None:
    """In columns; the words below where a terminal is too narrow for them."""
    widths = [max(len(setting[key]) for setting in settings) for key in ("name", "type", "default")]
    first = "  ".join(f"{{:{width}}}" for width in widths)
    indent = sum(widths) + 8
    room = max(shutil.get_terminal_size((120, 24)).columns - indent, 40)
    for setting in settings:
        words = textwrap.wrap(setting["words"], room) or [""]
        click.echo(f"  {first.format(setting['name'], setting['type'], setting['default'])}  {words[0]}".rstrip())
        for line in words[1:]:
            click.echo(" " * indent + line)


def _mark(entry: dict[str, Any]) -> str:
    if "preset" in entry:
        return f" [preset {entry['preset']}]"
    return " [NumPyro twin]" if entry.get("twin") else ""


def _entries(kind: str) -> list[dict[str, Any]]:
    if kind == "presets":
        from pyro_delta.config import preset_names, preset_text

        return [{"name": name, "description": _first_line(preset_text(name)).lstrip("# ")} for name in preset_names()]
    if kind == "sweeps":
        from pyro_delta.sweep.file import sweep_names, title_of

        return [{"name": name, "description": title_of(name)} for name in sweep_names()]
    from pyro_delta.programs import find, names, twin_of

    entries: list[dict[str, Any]] = []
    of = "data" if kind == "datasets" else kind.removesuffix("s")
    for name, place in names(of).items():
        more: dict[str, Any] = {}
        try:
            program = find(of, name)
            description = _first_line(program.__doc__ or "")
            if of == "data":
                more["preset"] = getattr(program, "preset", "default")
            elif of != "objective":
                twin = twin_of(program)
                more["twin"] = twin and str(twin)
        except UserError as error:  # somebody's installed program must not take the list away
            description = f"({place}: {error})"
        if name != "given":
            entries.append({"name": name, "description": description, **more})
    return entries


def _first_line(text: str) -> str:
    """Without marks of references, such as [1], which stand elsewhere in the text."""
    return re.sub(r" \[\d+(, [a-z][^]]*)?\]", "", text.strip().partition("\n")[0])
