"""What pages show works: Python runs, names exist, links lead somewhere, the site builds. See test_commands.py, too."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest
from pages import PAGES, ROOT, anchors, blocks, cells, links
from test_bad_inputs import BAD, HELD
from test_bad_inputs import rows as mistyped
from test_cli import call
from test_integrity import WRONG

from pyro_delta.cli import COMMANDS
from pyro_delta.data import load
from pyro_delta.guides import AntiCausalGuide
from pyro_delta.models import AR1Prior, DeltaVAE, GatedPixelCNNLikelihood

SNIPPETS = {snippet: page for page, text in PAGES.items() for snippet in blocks("python", text)}
NOTEBOOKS = sorted(page for page, text in PAGES.items() if cells(text))
LINKS = sorted({(page, link) for page, text in PAGES.items() for link in links(text)})
NAMES = sorted({name for text in PAGES.values() for name in re.findall(r"`(pyro_delta(?:\.\w+)+)`", text)})
FEWER = (
    (r"(--steps |training.steps\": |steps=)\d+", r"\g<1>2"),
    (r"(images=|--images |--num )\d+", r"\g<1>8"),
    (r"test\.x\[:\d{2,}\]", "test.x[:24]"),
)
"""By which what is shown takes seconds here."""
TARGETS = sorted(
    {target for text in PAGES.values() for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)}
)
ENTRY_POINTS = {"pyro_delta.priors", "pyro_delta.likelihoods", "pyro_delta.objectives"}
RUN = {"train", "sample"}
"""Commands of notebooks that later cells need; test_commands.py runs all."""


def fewer(code: str) -> str:
    for pattern, replacement in FEWER:
        code = re.sub(pattern, replacement, code)
    return code


def a_readers_own() -> dict[str, object]:
    """A small VAE, and digits with labels: what pages call `model`, `guide`, `x` and `y`."""
    test = load("digits").test.take(slice(60))
    spec = load("digits").spec
    prior = AR1Prior(spec, dims=1, rate_nats=2.0)
    net = {"channels": (4,), "row_blocks": (1,), "pixel_blocks": 1}
    model = DeltaVAE(prior, GatedPixelCNNLikelihood(spec, prior, mixtures=1, **net))
    return {"model": model, "guide": AntiCausalGuide(spec, prior, features=4, **net), "x": test.x, "y": test.labels}


@pytest.mark.parametrize("table", sorted((ROOT / "reference" / "sweeps").glob("*.md")), ids=lambda path: path.stem)
def test_the_page_of_sweeps_has_every_recorded_table(table: Path) -> None:
    part = f"## {table.stem}\n\n```{{include}} ../reference/sweeps/{table.name}\n```\n"
    assert part in PAGES["docs/sweeps.md"]


@pytest.mark.parametrize("code", SNIPPETS, ids=SNIPPETS.get)
def test_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, but for the number of steps."""
    monkeypatch.chdir(tmp_path)
    exec(compile(fewer(code), SNIPPETS[code], "exec"), a_readers_own())


def test_programs_are_certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prior of the README with the guide of its page."""
    monkeypatch.chdir(tmp_path)
    for page, name, file in (("README.md", "Mine", "prior.py"), ("docs/howto/own_guide.md", "SuffixGuide", "guide.py")):
        (code,) = [code for code in blocks("python", PAGES[page]) if f"class {name}(" in code]
        (tmp_path / file).write_text(code)
    code, out, err = call(
        "verify", "--dataset", "digits", "--prior", "prior.py:Mine", "--guide", "guide.py:SuffixGuide"
    )
    assert code == 0, err
    assert "by formula" in out


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # pictures, which a notebook shows
@pytest.mark.parametrize("page", NOTEBOOKS)
def test_notebooks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell, with fewer steps and data."""
    if page.endswith("witness.md"):
        pytest.importorskip("numpyro", reason="needs pyro-delta[twin]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, object] = {}
    for cell in map(fewer, cells(PAGES[page])):
        magic, _, rest = cell.partition("\n")
        if magic.startswith("%%writefile "):
            Path(magic.split()[1]).write_text(rest)
        elif magic == "%%sh":
            for _, name, *args in map(shlex.split, rest.splitlines()):
                code, _, err = call(name, *args) if name in RUN else (0, "", "")
                assert code == 0, err
        else:
            exec(compile(cell, page, "exec"), names)


def test_every_notebook_is_found() -> None:
    assert [Path(page).stem for page in NOTEBOOKS] == [
        "collapse",
        "first_run",
        "music",
        "own_prior",
        "rate_distortion",
        "witness",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_names_exist(name: str) -> None:
    """But for groups of entry points, which are called like the rooms of the package."""
    assert name in ENTRY_POINTS or resolve_name(name) is not None


def test_makefile_has_what_pages_ask_for() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(TARGETS) <= set(phony.split())


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_somewhere(page: str, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    assert target.exists()
    assert not anchor or anchor in anchors(PAGES[str(target.relative_to(ROOT))])


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = set()
    for page, text in PAGES.items():
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL):
            entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {(Path(page).parent / entry).as_posix() + ".md" for entry in entries}
    assert listed == {page for page in PAGES if page.startswith("docs/")} - {"docs/index.md"}


def test_the_site_builds(tmp_path: Path) -> None:
    """All references and links of it, with no notebook run."""
    for module in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(module, reason="needs pyro-delta[docs]")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "dummy", ROOT / "docs", tmp_path]
    done = subprocess.run(command, env={**os.environ, "DOCS_EXECUTE": "off"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_attempts_against_runs_are_counted() -> None:
    """What was tried says how many rows the tables of tests have, and the page of received runs its sum."""
    table = PAGES["docs/results.md"].partition("## What was tried against runs")[2]
    attempts = {by: int(count) for count, by in re.findall(r"\| (\d+) \| 0 \| (`[^|]*) \|", table)}
    assert len(attempts) == table.count("| 0 |") == 9
    assert attempts["`tests/test_integrity.py`: `WRONG`"] == len(WRONG)
    assert attempts["`tests/test_bad_inputs.py`"] == len(mistyped()) + len(BAD) + len(HELD)
    assert f"over all {len(COMMANDS)} commands" in table
    assert f"{sum(attempts.values())} attempts" in PAGES["docs/howto/runs_from_others.md"]
