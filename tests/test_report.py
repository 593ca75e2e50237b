"""The page of a run: it is whole, it needs nothing else, and what it says is what the run and its check say."""

import base64
import io
import itertools
import json
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forged import edit_json
from networks import SPECS, random_images, randomise
from PIL import Image
from test_cli import TINY, call
from test_condition import GATED, GUIDE
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

import pyro_delta
from pyro_delta.api.kept import evaluations, is_of
from pyro_delta.build import build
from pyro_delta.cli.options import settings_of
from pyro_delta.config import TrainingConfig, choose, validate
from pyro_delta.data import Spec, Split, load
from pyro_delta.data.audio import SoundSpec
from pyro_delta.data.images import ImageSpec
from pyro_delta.data.sequences import TextSpec, TokenSpec
from pyro_delta.diagnostics.bounds import Encoding, encode
from pyro_delta.diagnostics.drawing import continuations
from pyro_delta.diagnostics.steps import floor_of_steps, rate_of_steps
from pyro_delta.diagnostics.trace import decoder, evaluating, prior
from pyro_delta.distributions import GaussianAR1, GaussianSequence
from pyro_delta.inference import run as runs
from pyro_delta.inference.optim import learning_rate
from pyro_delta.rate import committed_rate
from pyro_delta.report.commands import command_of, command_of_check, stages
from pyro_delta.report.page_figures import training_figure
from pyro_delta.report.shown import FIGURE_BYTES, SOUND_BYTES, SOUNDS, figure, shown_data, shown_file
from pyro_delta.report.written import write_page_of_training

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


def test_data_have_no_rate_behind_their_end() -> None:
    """The shares of data with lengths are those of their prefixes; together they are the closed rate."""
    torch.manual_seed(0)
    alpha, n, lengths = torch.tensor([0.9, -0.4]), 5, torch.tensor([5, 1, 3])
    mean, scale = torch.randn(3, n, 2), torch.rand(3, n, 2) + 0.2
    ended = torch.arange(n)[:, None] >= lengths[:, None, None]
    mean, scale = mean.masked_fill(ended, 0.0), scale.masked_fill(ended, 1.0)
    nothing, sites = torch.zeros(3), ({"z": mean}, {"z": scale}, {})
    encoding = Encoding(nothing, True, nothing, *sites, mean_field=True, apart=True, scored=1.0)
    prior = GaussianAR1(alpha, n, lengths)
    found, floor = rate_of_steps(encoding, prior), floor_of_steps(prior)
    assert found is not None
    expected, least = torch.zeros(n, 2, dtype=torch.float64), torch.zeros(n, 2, dtype=torch.float64)
    for i, length in enumerate(lengths.tolist()):
        q = {"z": mean[i : i + 1, :length]}, {"z": scale[i : i + 1, :length]}, {}
        one = Encoding(nothing[:1], True, nothing[:1], *q, mean_field=True, apart=True, scored=1.0)
        expected[:length] += rate_of_steps(one, GaussianAR1(alpha, length)) / 3  # type: ignore[operator]
        least[:length] += floor_of_steps(GaussianAR1(alpha, length)) / 3
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(floor, least)
    closed = kl_divergence(Independent(Normal(mean, scale), 2), prior)
    assert found.sum().item() == pytest.approx(closed.mean().item(), rel=1e-6)
    assert floor.sum().item() == pytest.approx(committed_rate(prior).mean().item(), rel=1e-6)


TINY_PROGRAMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tokens": ({"program": "gru", "hidden": 4}, {"program": "gru", "hidden": 4}),
    "image": (GATED, {"program": "anti_causal", **GUIDE}),
}


@pytest.mark.parametrize(("name", "half"), [("tokens", 0), ("image", 2)])
def test_halves_go_on_as_exact_sums_say(name: str, half: int) -> None:
    """All that may follow a first half, with its probability given that, by whole data of many z."""
    torch.manual_seed(0)
    spec = TokenSpec(4, 2) if name == "tokens" else ImageSpec(1, 2, 2, 2)
    likelihood, guide = TINY_PROGRAMS[name]
    ar1 = {"program": "ar1", "dims": 2, "alpha": 0.8}
    sections = {"data": {}, "training": {"steps": 1}, "prior": ar1, "likelihood": likelihood, "guide": guide}
    vae, count = randomise(build(validate(sections), spec, check=False)).float(), 20_000
    with torch.no_grad():
        for weight in vae.model.likelihood.parameters():
            weight.mul_(2)  # for z to be heard
    every = torch.tensor(list(itertools.product((0, 1), repeat=4))).reshape(16, *spec.shape)
    with torch.no_grad(), evaluating(vae, 1):
        z = prior(vae, count).sample()
        p = torch.stack([decoder(vae, z).log_prob(x.expand(count, *x.shape)) for x in every]).double().exp()
    p_k = p.reshape(4, 4, count)[half]  # of what follows this first half, with it
    torch.testing.assert_close(p.sum(0), torch.ones(count, dtype=torch.float64), atol=1e-4, rtol=0)
    right, of_any_z = p_k.mean(1) / p_k.sum(0).mean(), (p_k / p_k.sum(0)).nanmean(1)
    assert (right - of_any_z).abs().max() > 0.08
    found = continuations(vae, Split(every[[4 * half]]), completions=4000, particles=count, batch=count)
    drawn = found.x[1:].flatten(1)
    assert (drawn[:, :2] == every.flatten(1)[4 * half, :2]).all()
    share = torch.bincount(drawn[:, 2] * 2 + drawn[:, 3], minlength=4) / 4000
    torch.testing.assert_close(share.double(), right, atol=0.04, rtol=0)
    size = (p_k.sum(0).sum() ** 2 / p_k.sum(0).square().sum()).item()
    assert found.effective_sample_sizes[0] == pytest.approx(size, rel=0.1)


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
    assert len(found.all("img")) == 10  # curves, steps, modes, confusion, six sheets
    assert all(len(values["alt"] or "") > 15 for values in found.all("img"))
    assert len(found.all("figcaption")) == 10
    assert len(found.all("figure")) == 11  # the commands have no caption


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
    assert "more: 360 of the 360 data of the test split" in two.replace("&#39;", "")
    assert re.findall(r"<td>([^<]*)</td>", one) == re.findall(r"<td>([^<]*)</td>", two)


def shown_by(run: Path, *options: object) -> tuple[str, dict[str, Any]]:
    """What a page says, blanks and quotes aside, and what `report` prints of it."""
    out = run.with_name("shown.html")
    code, printed, err = call("report", run, *options, "--out", out, "--json")
    assert code == 0, err
    text = re.sub(r"<[^>]+>", " ", out.read_text(encoding="utf-8"))
    return " ".join(unescape(text).replace("'", "").split()), json.loads(printed)


def test_a_kept_check_is_shown_as_what_it_is_and_only_of_the_same_weights_and_control(run: Path) -> None:
    """The command that a page prints makes its numbers; one of other weights, or of another control, is made anew."""
    control, other = run.with_name(f"{run.name}-control"), run.with_name("other control")
    shutil.copytree(control, other, dirs_exist_ok=True)
    edit_json(other, "config.json", lambda tree: {**tree, "data": {**tree["data"], "root": "elsewhere"}})
    kept = run / "check.json"
    told = ("--told-samples", 5, "--told-images", 20)
    given = ("--split", "validation", "--images", 30, *told, "--control", control, "--seed", 7)
    assert call("check", run, *given, "--keep")[0] in (0, 1)
    numbers = json.loads(kept.read_text())
    text, _ = shown_by(run, "--control", control)
    command = command_of_check(str(run), numbers, str(control))
    assert f"By {command}: 30 of the".replace("'", "") in text
    assert f"{command} --keep".replace("'", "") in text
    made = json.loads(call(*shlex.split(command)[1:], "--json")[1])
    assert {key: made[key] for key in numbers} == numbers
    assert f"{numbers['bought_nats']:.4f}" in text
    before = kept.read_bytes()
    text, _ = shown_by(run, "--control", other)  # of other settings
    assert "360 of the 360 data of the test split" in text
    assert kept.read_bytes() == before
    loaded = runs.load(run)
    assert is_of(numbers, loaded, runs.load(control))
    for key, value in (("weights", "last"), ("step", 3), ("data_as_trained", False)):
        assert not is_of({**numbers, key: value}, loaded)
    more = {**numbers, "weights": "last", "data_as_trained": False}
    assert shlex.split(command_of_check("r", more))[-5:] == ["--weights", "last", "--seed", "7", "--other-data"]
    kept.unlink()


def test_the_page_of_a_control_gives_no_advice_about_z(run: Path) -> None:
    text, printed = shown_by(run.with_name(f"{run.name}-control"), "--images", 40)
    assert "A control. A control: its decoder does not hear z" in text
    assert not re.search(r"start the guide|with one z|what z says|slowest modes of the prior, a row", text)
    assert printed["verdict"] in ("nothing told", "collapsed")
    assert printed["failure"].endswith("it has no latents to check.")


def test_a_training_that_was_cut_or_made_longer_is_said_to_be(tmp_path: Path) -> None:
    """Its check fails, and the commands are those that made it."""
    code, _, err = call("train", *TINY, "--steps", 6, "--out", tmp_path / "run")
    assert code == 0, err
    assert call("train", "--resume", "--out", tmp_path / "run", "--steps", 9)[0] == 0
    longer, printed = shown_by(tmp_path / "run", "--images", 12)
    commands = f"--out {tmp_path}/run pyro-delta train --out {tmp_path}/run --resume --steps 9 pyro-delta check"
    assert commands in longer
    assert re.search(r"training.steps=6( --set \S+)* --out", longer)
    # Its last checkpoint is that of a training that was to be longer.
    edit_json(tmp_path / "run", "config.json", lambda tree: {**tree, "training": {**tree["training"], "steps": 20}})
    cut, printed = shown_by(tmp_path / "run", "--images", 12)
    assert "and the check fails. Check failed: " in cut
    assert "the training has not come to its end: it has made 9 steps" in cut
    assert "the training has not come to its end" in printed["failure"]
    assert "the training has not come to its end" not in longer


def test_a_run_that_diverged_has_a_page(tmp_path: Path) -> None:
    small = ("--set", "likelihood.channels=[4]", "--set", "likelihood.row_blocks=[1]", "--set", "training.lr=1e18")
    assert (
        call("train", "--dataset", "digits", "--steps", 3, *small, "--device", "cpu", "--out", tmp_path / "run")[0] == 1
    )
    text, printed = shown_by(tmp_path / "run", "--images", 12)
    before = write_page_of_training(pyro_delta.load(tmp_path / "run"), "none", {"neg_elbo_bpd": None}).read_text()
    assert "Diverged.</strong>" in before
    assert "not checked yet" not in before
    assert "of the steps were skipped: not finite, or beyond training.skip." in before
    assert printed["verdict"] == "diverged"
    assert "Diverged, and the check fails." in text
    assert "What it draws" not in text
    # Its check stays with it as any other's: it can be read again, and stands in a table, with nothing known of it.
    assert call("check", tmp_path / "run", "--keep", "--images", 12)[0] == 1
    code, table, err = call("compare", tmp_path / "run", "--format", "markdown")
    assert code == 0, err
    assert "Diverged, and in no mean: run (1 of 1)." in table
    assert "nan" not in table
    _, printed = shown_by(tmp_path / "run")
    assert (printed["verdict"], printed["failure"]) == ("diverged", "check failed: the numbers are not finite.")
    code, _, err = call("check", tmp_path / "run", "--control", tmp_path / "run", "--images", 12)
    assert code == 2
    assert "the control's numbers are not finite: its training diverged" in err


def made_by(ends: Sequence[int], **settings: Any) -> list[dict[str, Any]]:
    """Lines of a training that was made longer at each of its ends, by the loop of `Training` in small."""
    lines, validated, step = [], 0, 0
    for steps in ends:
        config = TrainingConfig(steps=steps, **settings)
        validated = min(validated, math.floor(step / steps * config.validations + 1e-9))
        while step < steps:
            rate, step = learning_rate(config, step, step / steps), step + 1
            if step % config.log_every and step < steps:
                continue
            lines.append({"step": step, "split": "train", "lr": rate})
            if (due := math.floor(step / steps * config.validations + 1e-9)) > validated:
                validated = due
                lines.append({"step": step, "split": "validation", "lr": rate})
    return lines


@pytest.mark.parametrize("decay", ["cosine", "linear", "none"])
@pytest.mark.parametrize("ends", [[40], [20, 40], [100, 300, 1000], [150, 160], [1000, 2000]])
def test_lines_of_metrics_tell_when_a_training_was_made_longer(ends: list[int], decay: str) -> None:
    settings = {"decay": decay, "warmup": 5, "log_every": 10, "validations": 4}
    same = ends == [20, 40] and decay == "none"  # as one of 40 steps at once
    assert stages(TrainingConfig(steps=ends[-1], **settings), made_by(ends, **settings)) == (ends[1:] if same else ends)


def test_a_training_that_was_made_longer_before_its_end_has_no_known_command() -> None:
    settings = {"decay": "cosine", "warmup": 5, "log_every": 10}
    lines = [line for line in made_by([100], **settings) if line["step"] <= 50]
    lines += [line for line in made_by([200], **settings) if line["step"] > 50]
    assert stages(TrainingConfig(steps=200, **settings), lines) == []
    assert stages(TrainingConfig(steps=100, **settings), lines[:8]) == [100]  # not yet at its end


def test_a_training_ends_with_a_page_of_what_is_known(tmp_path: Path) -> None:
    """Nothing is checked for it; beside a control there are that one's curves, and commands that check against it."""
    run, control = tmp_path / "run", tmp_path / "run-control"
    code, out, err = call("train", *TINY[:-1], "--steps", 4, "--control", "--out", run)
    assert code == 0, err
    assert f"page: {run}/report.html" in out
    assert not (run / "check.json").exists()
    for folder, beside in ((run, f" --control {control}"), (control, "")):
        text = (folder / "report.html").read_text(encoding="utf-8")
        found = Page(text)
        assert found.open == []
        assert ("Trained, and not checked yet." if beside else "A control, trained.") in text
        assert f"{runs.read_metrics(folder)[-1]['neg_elbo_bpd']:.4f}" in text
        samples = base64.b64encode((folder / "samples" / "step_000004.png").read_bytes()).decode()
        assert [samples in str(image["src"]) for image in found.all("img")] == [False, True]
        assert f"pyro-delta check {folder}{beside}\npyro-delta report {folder}{beside}</pre>" in text
        assert ("Control: " in text) is bool(beside)


def test_a_training_ends_with_its_page_checked_where_that_is_asked_for(tmp_path: Path) -> None:
    """Checked and kept, as by commands of their own."""
    run = tmp_path / "run"
    code, out, err = call("train", *TINY, "--steps", 2, "--report", "--out", run)
    assert code == 0, err
    assert f"page: {run}/report.html" in out
    numbers = json.loads((run / "check.json").read_text())
    assert f"{numbers['neg_elbo_bpd']:.4f}" in (run / "report.html").read_text()
    assert call("train", *TINY, "--steps", 2, "--report", "--dry-run")[0] == 2
    (run / "report.html").unlink()  # of a run that is at its end already, too
    assert call("train", "--out", run, "--resume", "--report")[0] == 0
    assert f"{numbers['neg_elbo_bpd']:.4f}" in (run / "report.html").read_text()


def test_a_page_that_cannot_be_written_ends_no_training(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "report.html").unlink(missing_ok=True)
    (copy / "report.html").mkdir()
    code, out, err = call("train", "--out", copy, "--resume", "--steps", 14, "--json")
    assert code == 0, err
    assert (json.loads(out)["step"], json.loads(out)["report"]) == (14, None)
    assert f"what was found is not kept with {copy} ({copy}/report.html: Is a directory)." in err


def test_a_training_leaves_its_page_out_where_that_is_asked_for(tmp_path: Path) -> None:
    assert "page:" not in call("train", *TINY, "--steps", 2, "--out", tmp_path / "run")[1]
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_training_that_diverged_late_has_its_best_weights(run: Path, tmp_path: Path) -> None:
    loaded = pyro_delta.load(shutil.copytree(run, tmp_path / "run"))
    assert loaded.weights == "best"
    text = write_page_of_training(loaded, "none", {"neg_elbo_bpd": math.nan, "ended_early": True}).read_text()
    assert "<h2>What validation found" in text
    assert "<h2>The last batch" in write_page_of_training(loaded, "none", {"split": "train"}).read_text()
    for said in ("Trained, and not checked yet.", "the best weights are of before it diverged", "It ended early"):
        assert said in text


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
    assert len(found.all("pre")) == 7


def test_latents_of_a_run_are_where_the_rate_is(run: Path) -> None:
    loaded = runs.load(run)
    encoding = encode(loaded.vae, load("digits").test.take(slice(30)))
    found = rate_of_steps(encoding, loaded.vae.model.prior())
    assert found is not None
    assert found.sum().item() == pytest.approx(encoding.rate.mean().item(), rel=1e-5)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_it(page: str, width: int, tmp_path: Path) -> None:
    """No error on the console, nothing wider than the window, and every number on one line."""
    inside = f'<iframe id="page" style="width:{width}px;height:900px" srcdoc="{escape(page)}"></iframe>'
    probe = """onload = () => {
        const it = page.contentDocument, broken = [...it.querySelectorAll("table:not(details *) td")].filter(cell => {
            const range = it.createRange(); range.selectNodeContents(cell);
            return !/\\s/.test(cell.textContent) && range.getClientRects().length > 1 })
        document.title = it.documentElement.scrollWidth + " " + broken.length }"""
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
    ((shown, broken),) = re.findall(r"<title>(\d+) (\d+)</title>", done.stdout)
    assert int(shown) <= width
    assert int(broken) == 0


def test_a_run_shows_itself(run: Path) -> None:
    html = runs.load(run)._repr_html_()
    assert "a &lt;b&gt;run &amp; more</caption>" in html
    assert "<td>prior</td><td>ar1</td>" in html
    assert "<td>trained steps</td><td>12</td>" in html


# --- What is shown ---

STARTS = {"image/png": b"\x89PNG\r\n\x1a\n", "image/svg+xml": b"<?xml", "image/webp": b"RIFF", "audio/wav": b"RIFF"}
"""Of files, by their type."""
RIFF = {"image/webp": b"WEBP", "audio/wav": b"WAVE"}


def opened(uri: str) -> tuple[str, bytes]:
    """Type and content of a data URI, which must be of that type."""
    kind, content = re.fullmatch(r"data:([\w/+.-]+);base64,(.*)", uri).groups()  # type: ignore[union-attr]
    found = base64.b64decode(content)
    assert found.startswith(STARTS[kind])
    assert kind not in RIFF or found[8:12] == RIFF[kind]
    return kind, found


def data_of(spec: Spec, count: int) -> torch.Tensor:
    """Random data; of sounds all samples."""
    torch.manual_seed(0)
    return torch.randint(1, 256, (count, *spec.shape)) if spec.suffix == ".wav" else random_images(spec, (count,))


@pytest.mark.parametrize("name", [*SPECS, "large pictures", "long sounds", "one long sound", "long texts"])
def test_what_is_shown_is_of_its_type_and_no_larger_than_a_page_can_hold(name: str, tmp_path: Path) -> None:
    """Noise, which is the largest; a page has six of these and four figures. Of files that are there, alike."""
    large = {
        "large pictures": (ImageSpec(3, 128, 128, 256), 100), "long sounds": (SoundSpec(120), 16),
        "one long sound": (SoundSpec(700, rate=16000), 2), "long texts": (TextSpec(5000, 256), 24),
    }  # fmt: skip
    spec, count = large[name] if name in large else (SPECS[name], 16)
    x, columns = data_of(spec, count), 2 if count == 2 else 8
    found = list(shown_data(spec, x, columns, "Noise."))
    kinds = [opened(it.content)[0] for it in found if it.kind != "text"]
    sounds = [] if name == "one long sound" else ["audio/wav"]
    pictures = {
        "large pictures": ["image/webp"], "long sounds": ["image/webp"], "speech": ["image/webp"],
        "one long sound": ["image/webp"], "vowels": ["image/webp"],
    }  # fmt: skip
    texts = spec.suffix == ".txt"
    assert kinds == (sounds if spec.suffix == ".wav" else []) + ([] if texts else pictures.get(name, ["image/png"]))
    assert [it.kind for it in found] == (
        ["text"] if texts else ["sound"] * (len(kinds) > 1) + ["picture" if name == "vowels" else "drawing"]
    )
    assert all(it.alt.startswith("Noise.") and it.caption.startswith("Noise.") for it in found)
    size = sum(len(it.content.encode()) for it in found)
    assert 4 * 4 / 3 * FIGURE_BYTES + 6 * size < 2.9e6
    words = " ".join(it.caption for it in found)
    said = {"large pictures": "made smaller", "long sounds": "the first 4 of 16", "one long sound": "too long",
            "long texts": "Of each line, the first 1666 bytes."}  # fmt: skip
    assert said.get(name, "") in words
    spec.show(x, tmp_path / f"before{spec.suffix}", columns)
    again = list(shown_file(spec, tmp_path / f"before{spec.suffix}", "Noise."))
    if texts:
        lines, before = (it[0].content.split("\n") for it in (found, again))
        assert [line for line in lines if line] == [line for line in before if line]
    elif spec.suffix == ".wav":
        assert [it.kind for it in again] == ["sound", "drawing"]
        assert "seconds; all of it is test_what" in again[0].caption
        heard, whole = opened(again[0].content)[1], (tmp_path / "before.wav").read_bytes()
        assert 0.98 * SOUND_BYTES < len(heard) <= SOUND_BYTES
        assert heard[44:] == whole[44 : len(heard)]
    else:
        assert [(it.kind, it.content) for it in again] == [(it.kind, it.content) for it in found]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_of_a_short_training_is_seen(count: int) -> None:
    """Each point within its axes, and marked where there is no line to it."""
    bounds = [4.0, 3.0, 2.5, 2.4, 2.3][:count]
    lines = [
        {"split": split, "step": step, "neg_elbo_bpd": bound, "rate_nats_mean": 9.0 * bound, "delta_nats": 4.0}
        for step, bound in enumerate(bounds, 1)
        for split in ("train", "validation")
    ]
    bound, rate = training_figure({"run": lines}, "bits/dim", None).axes
    for axes in (bound, rate):
        for line in axes.lines:
            assert line.get_marker() != "None" or count > 1
            low, high = axes.get_ylim()
            assert all(low <= value <= high for value in line.get_ydata())
        assert all(float(tick).is_integer() for tick in axes.get_xticks())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".wav", ".ogg"])
def test_large_files_of_other_makes_are_shown_too(suffix: str, tmp_path: Path) -> None:
    """Grey pictures and those that are not PNG are made smaller; of sounds that cannot be cut, the file is named."""
    path, noise = tmp_path / f"it{suffix}", np.random.default_rng(0).integers(0, 256, (700, 900), np.uint8)
    if suffix in SOUNDS:
        path.write_bytes(b"OggS" + bytes(SOUND_BYTES))
    else:
        Image.fromarray(noise).save(path, quality=95)
    spec = ImageSpec(1, 700, 900, levels=256)
    object.__setattr__(spec, "suffix", suffix)
    (found,) = shown_file(spec, path, "Noise.")
    if suffix in SOUNDS:
        assert (found.kind, path.name in found.content) == ("text", True)
        return
    shown = Image.open(io.BytesIO(base64.b64decode(found.content.partition(",")[2])))
    assert shown.format == "WEBP"
    assert shown.width / shown.height == pytest.approx(900 / 700, rel=0.01)


def test_a_figure_of_many_lines_is_no_larger_either() -> None:
    torch.manual_seed(0)
    noise = torch.randn(20000).tolist()
    lines = [
        {"step": i, "split": "train", "neg_elbo_bpd": value, "rate_nats_mean": value} for i, value in enumerate(noise)
    ]
    shown = figure(training_figure({"run": lines}, "bits/dim", None), "Noise.")
    assert opened(shown.content)[0] == "image/png"
    assert len(shown.content) < 4 / 3 * FIGURE_BYTES
    assert shown.least > 700  # else its words could not be read on a narrow screen
