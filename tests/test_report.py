"""The page of a run: it is whole, it needs nothing else, and what it says is what the run and its check say."""

import json
import re
import shlex
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from test_cli import TINY, call
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from pyro_delta.api.kept import evaluations
from pyro_delta.cli.options import settings_of
from pyro_delta.config import choose
from pyro_delta.data import load
from pyro_delta.diagnostics.bounds import Encoding, encode
from pyro_delta.diagnostics.steps import floor_of_steps, rate_of_steps
from pyro_delta.distributions import GaussianAR1, GaussianSequence
from pyro_delta.inference import run as runs
from pyro_delta.rate import committed_rate
from pyro_delta.report.page import command_of

VOID = {"meta", "link", "img", "br", "hr", "input"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Elements with their attributes, and whether they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all elements of a kind."""
        return [found for name, found in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "a <b>run & more"
    code, _, err = call("train", *TINY, "--steps", 12, "--control", "--out", folder)
    assert code == 0, err
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    control = run.with_name(f"{run.name}-control")
    for images in (5, 5, 6):
        assert call("evaluate", run, "--images", images, "--particles", 2)[0] == 0
    code, out, err = call("report", run, "--control", control, "--images", 40)
    assert code == 0, err
    assert out.strip() == str(run / "report.html")
    return (run / "report.html").read_text(encoding="utf-8")


def test_shares_of_steps_are_differences_of_prefixes() -> None:
    torch.manual_seed(0)
    alpha, n, d, count = torch.tensor([0.9, -0.4]), 5, 2, 3
    prior = GaussianAR1(alpha, n)
    mean, scale = torch.randn(count, n, d), torch.rand(count, n, d) + 0.2
    encoding = Encoding(
        rate=torch.zeros(count), closed_form=True, distortion=torch.zeros(count), mean={"z": mean}, scale={"z": scale},
        z={"z": mean}, mean_field=True, apart=True, scored=1.0,
    )  # fmt: skip
    found = rate_of_steps(encoding, prior.expand((1,)))
    assert found is not None
    steps = torch.arange(n)
    for k in range(d):
        covariance = alpha[k].double() ** (steps[:, None] - steps).abs()
        prefixes = [torch.zeros(count, dtype=torch.float64)]
        for t in range(1, n + 1):
            q = MultivariateNormal(
                mean[:, :t, k].double(), covariance_matrix=torch.diag_embed(scale[:, :t, k].double() ** 2)
            )
            p = MultivariateNormal(torch.zeros(t, dtype=torch.float64), covariance_matrix=covariance[:t, :t])
            prefixes.append(kl_divergence(q, p))
        assert torch.allclose(found[:, k], torch.stack(prefixes).diff(dim=0).mean(1))
    closed = kl_divergence(Independent(Normal(mean, scale), 2), prior)
    assert found.sum().item() == pytest.approx(closed.mean().item(), rel=1e-6)
    assert floor_of_steps(prior).sum().item() == pytest.approx(float(committed_rate(prior)), rel=1e-6)
    assert rate_of_steps(encoding, GaussianSequence(torch.zeros(n, d), torch.eye(n).expand(d, n, n))) is None


def test_data_with_priors_of_their_own_are_each_beside_their_own() -> None:
    """The mean over three data, two of which have one prior, is that of the means of the two groups."""
    torch.manual_seed(0)
    alpha, n = torch.tensor([[0.9, -0.4], [0.2, 0.7], [0.9, -0.4]]), 5
    mean, scale = torch.randn(3, n, 2), torch.rand(3, n, 2) + 0.2

    def encoding(which: torch.Tensor) -> Encoding:
        nothing = torch.zeros(len(which))
        return Encoding(
            nothing, True, nothing, {"z": mean[which]}, {"z": scale[which]}, {}, mean_field=True, apart=True, scored=1.0
        )

    found = rate_of_steps(encoding(torch.arange(3)), GaussianAR1(alpha, n))
    alike = rate_of_steps(encoding(torch.tensor([0, 2])), GaussianAR1(alpha[0], n))
    other = rate_of_steps(encoding(torch.tensor([1])), GaussianAR1(alpha[1], n))
    assert found is not None
    assert alike is not None
    assert other is not None
    torch.testing.assert_close(found, (2 * alike + other) / 3)
    floor = floor_of_steps(GaussianAR1(alpha, n))
    one, two = (floor_of_steps(GaussianAR1(alpha[i], n)) for i in (0, 1))
    torch.testing.assert_close(floor, (2 * one + two) / 3)
    assert floor.sum().item() == pytest.approx(committed_rate(GaussianAR1(alpha, n)).mean().item(), rel=1e-6)


def test_the_page_is_whole_and_needs_nothing_else(page: str) -> None:
    found = Page(page)
    assert found.open == []
    assert len(page.encode()) < 3e6
    sources = [values.get("src") or values.get("href") for _, values in found.elements]
    assert all(source is None or source.startswith(("#", "data:")) for source in sources)
    ids = {values["id"] for _, values in found.elements if "id" in values}
    links = [values["href"] for values in found.all("a")]
    assert {f"#{name}" for name in ids} == set(links)
    assert not found.all("script")


def test_every_picture_has_words(page: str) -> None:
    found = Page(page)
    assert len(found.all("img")) == 9  # curves, steps, modes, confusion, five sheets
    assert all(len(values["alt"] or "") > 15 for values in found.all("img"))
    assert len(found.all("figcaption")) == 9
    assert len(found.all("figure")) == 10  # the commands have no caption


def test_the_page_says_what_the_run_is(run: Path, page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", page)
    assert "a &lt;b&gt;run &amp; more" in text
    assert "40 of the 360 data of the test split, seed 0" in " ".join(text.split())
    assert "latents buy" in text
    assert len(evaluations(run)) == 2  # a second one of the same settings takes the place of the first
    for found in evaluations(run):
        assert found["prior"] == "model"
        assert f"{found['iw_bpd']:.4f} ± {found['iw_bpd_se']:.2g}" in text
    config = runs.load(run).config
    for section in ("training.lr", "prior.program", "guide.channels"):
        assert section in text
    assert f"steps of batch {config.training.batch}" in " ".join(text.split())


@pytest.mark.parametrize("name", ["digits", "tuned"])
def test_the_command_makes_the_settings_again(name: str, tmp_path: Path) -> None:
    tuned = [("training.seed", 3), ("prior.program", "standard_normal"), ("guide.program", "contour"),
             ("guide.rate_nats", 3.5), ("training.minutes", 2.5)]  # fmt: skip
    config, preset = choose(tuned if name == "tuned" else [], "digits")
    words = shlex.split(command_of(config, preset, tmp_path / "x y"))
    pairs = tuple(words[i + 1] for i, word in enumerate(words) if word == "--set")
    assert words[:6] == ["pyro-delta", "train", "--dataset", "digits", "--preset", "digits"]
    assert words[-2:] == ["--out", str(tmp_path / "x y")]
    assert bool(pairs) == (name == "tuned")
    assert choose(settings_of(pairs, {"data.program": "digits"}), "digits")[0] == config


def test_a_kept_check_is_shown_and_not_made_again(run: Path, tmp_path: Path) -> None:
    assert call("report", run, "--out", tmp_path / "one.html")[0] == 0
    kept = (run / "check.json").read_bytes()
    (run / "check.json").touch()
    code, out, _ = call("report", run, "--out", tmp_path / "two.html", "--json")
    assert code == 0
    assert json.loads(out)["verdict"] == json.loads(kept)["verdict"]
    assert (run / "check.json").read_bytes() == kept
    one, two = ((tmp_path / f"{name}.html").read_text() for name in ("one", "two"))
    assert "--keep: 360 of the 360 data" in two
    assert re.findall(r"<td>([^<]*)</td>", one) == re.findall(r"<td>([^<]*)</td>", two)


def test_a_training_ends_with_its_page(tmp_path: Path) -> None:
    """Checked and kept, as by commands of their own."""
    run = tmp_path / "run"
    code, out, err = call("train", *TINY, "--steps", 2, "--report", "--out", run)
    assert code == 0, err
    assert f"page: {run}/report.html" in out
    numbers = json.loads((run / "check.json").read_text())
    assert f"{numbers['neg_elbo_bpd']:.4f}" in (run / "report.html").read_text()
    assert call("train", *TINY, "--steps", 2, "--report", "--dry-run")[0] == 2


def test_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    other = run.with_name(f"{run.name}-control")
    code, _, err = call("report", run, other, "--out", tmp_path / "both.html")
    assert code == 0, err
    found = Page((tmp_path / "both.html").read_text(encoding="utf-8"))
    assert found.open == []
    assert len(found.all("thead")) == 1
    assert len(found.all("img")) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{run}", "{run}"], "of 2 runs --out FILE is missing"),
        (["{run}", "{run}", "--out", "{out}", "--images", "5"], "--control and --images go with one run"),
        (["{run}", "--out", "{out}/none/x.html"], "there is no folder"),
        (["{out}"], "is not a run"),
        (["{out}/none"], "is not a run"),
    ],
)
def test_mistakes_are_said(arguments: list[str], said: str, run: Path, tmp_path: Path) -> None:
    code, _, err = call("report", *(word.format(run=run, out=tmp_path) for word in arguments))
    assert code == 2
    assert said in err
    assert not list(tmp_path.iterdir())


def test_data_that_are_no_pictures_are_text(tmp_path: Path) -> None:
    small = ["--set", "likelihood.hidden=8", "--set", "guide.hidden=8", "--set", "training.validation_images=20"]
    assert call("train", "--dataset", "descriptions", "--steps", 4, *small, "--out", tmp_path / "run")[0] == 0
    code, _, err = call("report", tmp_path / "run", "--images", 12)
    assert code == 0, err
    found = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert len(found.all("pre")) == 6


def test_latents_of_a_run_are_where_the_rate_is(run: Path) -> None:
    loaded = runs.load(run)
    encoding = encode(loaded.vae, load("digits").test.take(slice(30)))
    found = rate_of_steps(encoding, loaded.vae.model.prior())
    assert found is not None
    assert found.sum().item() == pytest.approx(encoding.rate.mean().item(), rel=1e-5)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_it(page: str, width: int, tmp_path: Path) -> None:
    """No error on the console, and nothing wider than the window."""
    inside = f'<iframe id="page" style="width:{width}px;height:900px" srcdoc="{escape(page)}"></iframe>'
    probe = "onload = () => { document.title = page.contentDocument.documentElement.scrollWidth }"
    (tmp_path / "page.html").write_text(f"<title></title>{inside}<script>{probe}</script>", encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1600,1000",
            "--enable-logging=stderr", "--dump-dom", (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    (shown,) = re.findall(r"<title>(\d+)</title>", done.stdout)
    assert int(shown) <= width


def test_a_run_shows_itself(run: Path) -> None:
    html = runs.load(run)._repr_html_()
    assert "a &lt;b&gt;run &amp; more</caption>" in html
    assert "<td>prior</td><td>ar1</td>" in html
    assert "<td>trained steps</td><td>12</td>" in html
