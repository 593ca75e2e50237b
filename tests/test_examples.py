"""The examples run, in this process, and show what they say they show."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, **arguments: Any) -> None:
    runpy.run_path(str(EXAMPLES / name))["main"](**arguments)


def test_every_example_has_a_test() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == [
        "cure_a_collapsed_vae.py",
        "independent_notes.py",  # see test_music.py
        "latent_free.py",
        "lattice_prior.py",
        "own_data.py",
        "own_guide.py",
        "own_prior.py",
        "plain_svi.py",
        "regression_on_latents.py",
        "two_backends.py",
    ]


def test_plain_svi(capsys: pytest.CaptureFixture[str]) -> None:
    run("plain_svi.py", steps=30, batch=16)
    pattern = r"-ELBO ([\d.]+) bits/dim   KL ([\d.]+) nats, smallest ([\d.]+)   δ ([\d.]+)"
    lines = [[float(number) for number in match] for match in re.findall(pattern, capsys.readouterr().out)]
    assert len(lines) == 10
    for _, rate, least, delta in lines:
        assert delta == 4.0
        assert rate >= least >= delta - 1e-3  # printed with three decimals
    first, last = lines[0][0], lines[-1][0]
    assert last < first - 0.3, "it does not learn"


def test_own_prior(capsys: pytest.CaptureFixture[str]) -> None:
    run("own_prior.py")
    numbers = [float(number) for number in re.findall(r"([\d.]+) nats", capsys.readouterr().out)]
    delta, of_ar1, attained, least = numbers
    assert attained == pytest.approx(delta, abs=1e-4)
    assert least > delta
    assert of_ar1 != pytest.approx(delta, rel=0.01)


def test_regression_on_latents(capsys: pytest.CaptureFixture[str]) -> None:
    run("regression_on_latents.py", steps=2, count=300)
    shown = capsys.readouterr().out
    assert "216 pictures to fit 48 means of z, 60 to judge" in shown
    (r2,) = re.findall(r"R² (-?[\d.]+)", shown)
    assert float(r2) > 0.3, "names and latents are not of one picture"


@pytest.mark.parametrize("name", ["own_guide", "lattice_prior", "latent_free", "two_backends"])
def test_examples_with_a_picture(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"{name}.py", steps=3, out=tmp_path / "a.png")
    shown = capsys.readouterr().out
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert "bits/dim" in shown
    for least, delta in re.findall(r"([\d.]+) at the least, δ ([\d.]+)", shown):
        assert float(least) >= float(delta) - 1e-4  # printed with four decimals


def test_own_data(capsys: pytest.CaptureFixture[str]) -> None:
    run("own_data.py", steps=3)
    shown = capsys.readouterr().out
    assert "δ = 4 nats by formula" in shown
    assert "anti-causal; z_1 sees 24 of 24 positions" in shown
    assert re.search(r"rate ≥ δ, as guaranteed +yes", shown)


def test_cure_a_collapsed_vae(capsys: pytest.CaptureFixture[str]) -> None:
    assert len((EXAMPLES / "cure_a_collapsed_vae.py").read_text().splitlines()) < 80
    run("cure_a_collapsed_vae.py", steps=3)
    shown = capsys.readouterr().out
    delta = re.search(r"committed rate δ +([\d.]+) +([\d.]+) nats", shown)
    least = re.search(r"smallest of any datum +([\d.]+) +([\d.]+) nats", shown)
    assert delta is not None
    assert least is not None
    assert (float(delta[1]), float(delta[2])) == (0.0, pytest.approx(3.9894, abs=1e-3))
    assert float(least[2]) >= float(delta[2])
