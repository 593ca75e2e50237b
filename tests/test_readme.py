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
    assert len(re.findall(r"^\|[-|]+\|$", README, re.MULTILINE)) == 2
    assert {"make demo", "make test"} <= set(re.findall(r"^make \w+", README, re.MULTILINE))


def test_it_leads_on() -> None:
    assert {"docs/index.md", "docs/theory.md", "docs/results.md", "docs/architecture.md", "CITATION.cff"} <= set(
        links(README)
    )
    assert commands(README)


DIGITS, CIFAR10 = (README[: README.index("CIFAR-10, all")], README[README.index("CIFAR-10, all") :])
COLUMNS = {
    "60 000 images, as two fast cores see in half an hour; three seeds": (
        "15 000 steps of 4: N(0, 1), `contour`, 3 seeds",
    ),
    "the same decoder without latents, as many steps": ("the same without latents",),
    "half an hour on two slow cores": ("30 minutes by the clock, batches of 4",),
    "51 200 images, seeds 0 and 1": ("6400 steps of 8: N(0, 1), `contour`, seed 0", "seed 1"),
    "the same, with the paper's own prior and guide (`--preset cifar10-pixelsnail`)": ("AR(1), `anti_causal`, seed 0",),
    "the same decoder without latents": ("without latents, seed 0",),
}
"""Those of the results of which a row of CIFAR-10 is."""


def section(title: str) -> list[list[str]]:
    """The rows of the tables of a part of the results."""
    return rows(RESULTS.partition(f"### {title}\n")[2].partition("###")[0])


@pytest.mark.parametrize("row", rows(DIGITS)[1:], ids=lambda row: row[0])
def test_its_numbers_of_digits_are_those_of_the_results(row: list[str]) -> None:
    name, *numbers = row
    table = section("Does the posterior collapse, and does δ prevent it?")
    (found,) = [cells[1:] for cells in table if cells[0] == name.removesuffix(" (nats)") or cells[0] == name]
    columns = [found[0], found[1], found[4], found[5]]  # of the ELBO of Trace, and what has one form alone
    assert [{"–": columns[3], "0": "0.000 ± 0.000"}.get(number, number) for number in numbers] == columns


@pytest.mark.parametrize("row", rows(CIFAR10)[1:], ids=lambda row: row[0])
def test_its_numbers_of_cifar10_are_those_of_the_results(row: list[str]) -> None:
    head, *table = section("PixelSNAIL, half an hour")
    bound, least, told, probe = [
        [cells[head.index(column)].replace("*", "") for column in COLUMNS[row[0]]]
        for name in ("−ELBO;", "rate,", "told,", "linear probe")
        for cells in table
        if cells[0].startswith(name)
    ]
    for given, wanted in ((row[1], bound), (row[3], [value.partition(", ")[0] for value in told]), (row[4], probe)):
        assert all(w.startswith(g) for g, w in zip(given.split(", "), wanted, strict=True)) or given in ("–", "0"), (
            given
        )
    assert {row[2]} == {value.partition(", ")[2] or value for value in least}


def test_delta_is_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = [line for line in commands(PAGES["docs/howto/commands.md"]) if " --shape 3x32x32" in line]
    with pytest.raises(SystemExit):
        main(shlex.split(line)[1:])
    assert "79.447" in PAGES["docs/howto/commands.md"]
    assert "79.447" in capsys.readouterr().out
