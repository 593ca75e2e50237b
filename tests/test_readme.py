"""The README is a front page: short, with numbers of the results. test_commands.py and test_docs.py run it."""

import re
import shlex

import pytest
from pages import PAGES, commands, links

from pyro_delta.cli import main

README, RESULTS = PAGES["README.md"], PAGES["docs/results.md"]


def rows(text: str) -> list[list[str]]:
    """Cells of the tables of a page."""
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines if not set(line) <= set("|- ")]


def test_it_is_a_front_page() -> None:
    assert len(README.splitlines()) <= 120
    assert README.count("![") == 1
    assert len(re.findall(r"^\|[-|]+\|$", README, re.MULTILINE)) == 1
    assert {"make demo", "make test"} <= set(re.findall(r"^make \w+", README, re.MULTILINE))


def test_it_leads_on() -> None:
    assert {"docs/index.md", "docs/theory.md", "docs/results.md", "docs/architecture.md", "CITATION.cff"} <= set(
        links(README)
    )
    assert commands(README)


@pytest.mark.parametrize("row", rows(README)[1:], ids=lambda row: row[0])
def test_its_numbers_are_those_of_the_results(row: list[str]) -> None:
    name, *numbers = row
    section = RESULTS.partition("### Does the posterior collapse, and does δ prevent it?")[2].partition("###")[0]
    (found,) = [cells[1:] for cells in rows(section) if cells[0] == name.removesuffix(" (nats)") or cells[0] == name]
    columns = [found[0], found[1], found[4], found[5]]  # of the ELBO of Trace, and what has one form alone
    assert [{"–": columns[3], "0": "0.000 ± 0.000"}.get(number, number) for number in numbers] == columns


def test_delta_is_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = [line for line in commands(PAGES["docs/howto/commands.md"]) if " --shape 3x32x32" in line]
    with pytest.raises(SystemExit):
        main(shlex.split(line)[1:])
    assert "79.447" in PAGES["docs/howto/commands.md"]
    assert "79.447" in capsys.readouterr().out
