"""`pyro-delta list`."""

from __future__ import annotations

import json
import re
from typing import Any

import click

from pyro_delta.errors import UserError, unknown_name

KINDS = ("datasets", "presets", "priors", "likelihoods", "guides", "objectives", "sweeps")


@click.command(name="list")
@click.argument("kind", required=False, metavar=f"[{'|'.join(KINDS)}]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(kind: str | None, as_json: bool) -> None:
    """What there is to choose from, a line each."""
    if kind is not None and kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    tables = {name: _entries(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        click.echo(json.dumps(tables, ensure_ascii=False))
        return
    for name, entries in tables.items():
        click.echo(name)
        width = max(len(entry["name"]) for entry in entries)
        for entry in entries:
            click.echo(f"  {entry['name']:{width}}  {entry['description']}{_mark(entry)}")


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
