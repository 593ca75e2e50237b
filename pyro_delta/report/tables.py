"""Numbers as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from pyro_delta.diagnostics.table import rows


def print_table(title: str, numbers: Mapping[str, Any], unit: str = "bits/dim") -> None:
    """Prints what is known of `numbers` on stdout, with standard errors where there are some."""
    table = Table(title=title, title_justify="left", show_header=False)
    for row in rows(numbers, unit):
        table.add_row(*row)
    _print(table)


def print_rows(title: str, texts: Sequence[Sequence[str]]) -> None:
    """Prints texts on stdout as a table, of which the first row is the head."""
    _print(_table(title, texts))


def table_text(title: str, texts: Sequence[Sequence[str]], width: int = 1000) -> str:
    """The same as plain text, as wide as it needs."""
    console = Console(width=width, file=StringIO(), color_system=None)
    with console.capture() as captured:
        console.print(_table(title, texts), highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _table(title: str, texts: Sequence[Sequence[str]]) -> Table:
    table = Table(*texts[0], title=title, title_justify="left")
    for row in texts[1:]:
        table.add_row(*row)
    return table


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a long path must not be cut in a file or a pipe
    console.print(table, highlight=False, markup=False)
