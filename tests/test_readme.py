"""What README and docs show works: Python runs, commands are understood, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from pyro_delta.cli import cli, main
from pyro_delta.data import load
from pyro_delta.guides import AntiCausalGuide
from pyro_delta.models import AR1Prior, DeltaVAE, GatedPixelCNNLikelihood

ROOT = Path(__file__).parents[1]
PAGES = {
    page: (ROOT / page).read_text(encoding="utf-8")
    for page in ("README.md", "CONTRIBUTING.md", "docs/results.md", "docs/architecture.md")
}
README = PAGES["README.md"]


def commands(text: str) -> list[str]:
    """`pyro-delta` with arguments, in blocks and in running text, where nothing is left out."""
    blocks = "".join(re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [line.split("#")[0] for line in blocks.splitlines()]
    inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = (" ".join(line.split()).removeprefix("OMP_NUM_THREADS=1 ") for line in (*lines, *inline))
    return [line for line in found if re.match(r"pyro-delta \S+ \S", line) and not re.search("…|[A-Z]{3}|--help", line)]


COMMANDS = sorted({command for text in PAGES.values() for command in commands(text)})


def a_readers_own() -> dict[str, object]:
    """A small VAE, and digits with labels: what the README calls `model`, `guide`, `x` and `y`."""
    test = load("digits").test.take(slice(60))
    spec = load("digits").spec
    prior = AR1Prior(spec, dims=1, rate_nats=2.0)
    net = {"channels": (4,), "row_blocks": (1,), "pixel_blocks": 1}
    model = DeltaVAE(prior, GatedPixelCNNLikelihood(spec, prior, mixtures=1, **net))
    return {"model": model, "guide": AntiCausalGuide(spec, prior, features=4, **net), "x": test.x, "y": test.labels}


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, but for the number of steps."""
    monkeypatch.chdir(tmp_path)
    code = re.sub(r'("training.steps": )\d+', r"\g<1>2", code)
    exec(compile(code, "README.md", "exec"), a_readers_own())


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    """Parsed with all their options; not run."""
    _, name, *args = shlex.split(command)
    assert cli.commands == {}
    found = cli.get_command(None, name)  # type: ignore[arg-type]
    assert found is not None
    found.make_context(name, args)


def test_delta_is_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = [line for line in COMMANDS if " --shape 3x32x32" in line]
    with pytest.raises(SystemExit):
        main(shlex.split(line)[1:])
    assert "79.447" in README
    assert "79.447" in capsys.readouterr().out


def anchors(text: str) -> set[str]:
    """What a page's headings are called in links, as GitHub has it."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = sorted({(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(((?!http)[^)]+)\)", text)})


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_somewhere(page: str, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    assert target.exists()
    assert not anchor or anchor in anchors(PAGES[str(target.relative_to(ROOT))])
