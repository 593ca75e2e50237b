"""What the README shows works: its Python runs, its commands are understood, its pictures are there."""

import re
import shlex
from pathlib import Path

import pytest

from pyro_delta.cli import cli, main
from pyro_delta.data import load
from pyro_delta.guides import AntiCausalGuide
from pyro_delta.models import AR1Prior, DeltaVAE, GatedPixelCNNLikelihood

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("pyro-delta ")
]


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
    (line,) = [line for line in COMMANDS if " delta " in line]
    with pytest.raises(SystemExit):
        main(shlex.split(line)[1:])
    assert "79.447" in README
    assert "79.447" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_links_lead_somewhere(path: str) -> None:
    assert (ROOT / path).exists()
