"""A run as one page: what was trained, what came of it, and what it draws. One file, which needs no network."""

from __future__ import annotations

import base64
import io
import json
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Distribution

from pyro_delta.config import Config, load_preset
from pyro_delta.data.condition import condition_of
from pyro_delta.data.splits import Split, subset
from pyro_delta.describe import flat as flat_settings
from pyro_delta.describe import written
from pyro_delta.diagnostics import table
from pyro_delta.diagnostics.bounds import Encoding, encode, flat
from pyro_delta.diagnostics.drawing import decode, draw, extras_of, is_told, paths, reconstructions
from pyro_delta.diagnostics.steps import floor_of_steps, rate_of_steps
from pyro_delta.diagnostics.trace import device_of
from pyro_delta.diagnostics.trace import prior as prior_of
from pyro_delta.diagnostics.usage import PROBE_DATA, sample_latents, taken_for
from pyro_delta.errors import UserError
from pyro_delta.inference.run import Run, read_info
from pyro_delta.programs import find, options_model
from pyro_delta.protocol import Data, Spec
from pyro_delta.rate import Modes, committed_rate, modes
from pyro_delta.report.comparison import Comparison
from pyro_delta.report.comparison_figure import comparison_figure
from pyro_delta.report.delta_figure import modes_figure
from pyro_delta.report.formats import cells
from pyro_delta.report.page_figures import confusion_figure, steps_figure, training_figure
from pyro_delta.report.track import recorded

LOOKED_AT = 1000
"""Test data, at most, of which steps, dimensions and classes are shown."""
SHIFTS = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Of a latent dimension, in standard deviations of the prior."""
TRAVERSED = 4
"""Dimensions, at most, that are shifted."""
CLASSES = 40
"""Of a confusion, at most: more are not read."""
PICTURES = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg"}
WITH_PICTURE = (".mid", ".csv")
"""Beside which `show` writes a picture."""
SOUNDS = {".wav": "audio/wav", ".ogg": "audio/ogg", ".mp3": "audio/mpeg"}


@dataclass(frozen=True)
class Shown:
    """Something to look at, to read or to hear.

    Attributes:
        kind: picture, drawing (data, whose pixels are to be seen), text or sound.
        content: a data URI, or the text.
        caption: what it is, and of what.
        alt: the same in the place of a picture.
    """

    kind: str
    content: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: of it.
        words: paragraphs.
        rows: of a table, head first where `head`.
        shown: pictures and the like, below.
        folded: whether the table opens at a click.
        head: whether the first row names the columns.
    """

    title: str
    words: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    shown: Sequence[Shown] = ()
    folded: bool = False
    head: bool = False

    @property
    def anchor(self) -> str:
        """By which links find it."""
        return self.title.lower().replace(" ", "-")


def page(
    run: Run,
    data: Data,
    numbers: Mapping[str, Any],
    *,
    evaluated: Sequence[Mapping[str, Any]] = (),
    control: Run | None = None,
    checked: str,
    seed: int = 0,
) -> str:
    """The HTML of a run.

    Args:
        run: with its folder.
        data: that it was trained on.
        numbers: of a check, as `Diagnosis.asdict` gives them.
        evaluated: what evaluations found, as they were kept.
        control: the run without latents whose training is drawn beside it.
        checked: the command of that check.
        seed: of what is drawn.

    Raises:
        UserError: as `pyro_delta.load` for what the run's programs cannot do.
    """
    test: Any = data.test
    part = subset(test, min(LOOKED_AT, len(test)), seed)
    encoding = encode(run.vae, part, seed=seed)
    sections = [
        _what_was_trained(run, data, numbers, encoding),
        _what_was_measured(run, numbers, checked),
        *_evaluations(run, evaluated),
        _how_it_came(run, control),
        *_latents(run, data, part, encoding, seed),
        *_drawn(run, data, encoding, part, seed),
        *_made_by(run),
    ]
    verdict, advice = str(numbers["verdict"]), str(numbers["advice"])
    return rendered(title=str(run.folder), verdict=verdict, advice=advice, sections=sections)


def page_of_runs(found: Comparison, runs: Mapping[str, Run]) -> str:
    """The HTML of several runs side by side.

    Args:
        found: their comparison.
        runs: by their names in it.
    """
    metrics = {name: run.metrics for name, run in runs.items()}
    unit = next(iter(runs.values())).spec.unit
    caption = "Bounds and distortions along the trainings (left), rate and δ of the first (right)."
    plane = "Distortion, and what z tells, against the rate; errors are over seeds, or over the data of one run."
    sections = [
        Section("Side by side", found.notes, cells(found), [_figure(comparison_figure(found), plane)], head=True),
        Section("How the trainings went", shown=[_figure(training_figure(metrics, unit, None), caption)]),
        *(Section(f"What {name} is", in_words(run)) for name, run in runs.items()),
    ]
    return rendered(title="Runs side by side", verdict=f"{len(runs)} runs", advice="", sections=sections)


def rendered(*, title: str, verdict: str, advice: str, sections: Sequence[Section]) -> str:
    """The page of sections."""
    from jinja2 import Environment

    template = resources.files("pyro_delta.report").joinpath("page.html.jinja").read_text("utf-8")
    made = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    return made.render(title=title, verdict=verdict, advice=advice, sections=sections)


# --- What was trained, and what came of it ---


def in_words(run: Run, *, caveat: bool = True) -> list[str]:
    """Programs, objective and steps; and, unless it is said elsewhere, that the training has not come to its end."""
    config = run.config
    data = "given in Python" if config.data.program == "given" else config.data.program
    return [
        f"Data {data}, prior {config.prior.program}, likelihood {config.likelihood.program}, guide "
        f"{config.guide.program}. {_count(run.vae.model)} weights in the model, {_count(run.vae.guide)} in the guide.",
        f"Objective {config.objective.program}, {run.trained_steps} steps of batch {config.training.batch}, seed "
        f"{config.training.seed}; here are the {run.weights} weights, of step {run.step}."
        + ("" if run.caveat is None or not caveat else f" {run.caveat}"),
    ]


def _what_was_trained(run: Run, data: Data, numbers: Mapping[str, Any], encoding: Encoding) -> Section:
    delta = numbers.get("delta_nats")
    floor = (
        f"δ = {delta:.4g} nats, known by {numbers['delta_known_by']}, bounds the rate of {numbers['delta_guarantee']}"
        if delta
        else "nothing is committed: the posterior may collapse"
    )
    known = (len(data.train), len(data.validation), len(data.test))
    z = " and ".join(str(tuple(value.shape[1:])) for value in encoding.z.values())
    words = [
        f"{known[0]} data for training, {known[1]} for validation, {known[2]} for the test; each of shape "
        f"{tuple(run.spec.shape)}, {run.spec.positions} {getattr(run.spec, 'place', 'position')}s. Latents of shape "
        f"{z}.",
        f"Committed rate: {floor}.",
    ]
    return Section("What was trained", [*in_words(run), *words])


def _count(program: torch.nn.Module) -> str:
    return f"{sum(weight.numel() for weight in program.parameters()):,}".replace(",", " ")


def _what_was_measured(run: Run, numbers: Mapping[str, Any], checked: str) -> Section:
    words = (
        f"By {checked}: {numbers['n_images']} of the {numbers['split_images']} data of the {numbers['split']} split, "
        f"seed {numbers['seed']}. ± is a standard error over the data.",
    )
    return Section("What was measured", words, [list(row) for row in table.rows(numbers, run.spec.unit)])


def _evaluations(run: Run, evaluated: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    if evaluated:
        words = "By pyro-delta evaluate, as kept with the run; ± is a standard error over the data."
        yield Section("Bounds", [words], table.evaluations(evaluated, run.spec.unit), head=True)


def _how_it_came(run: Run, control: Run | None) -> Section:
    curve = recorded(run.config)
    runs = {"run": run.metrics} | ({} if control is None else {"control": control.metrics})
    known = None if curve is None else (list(curve.steps), [curve.at(step)[0] for step in curve.steps])  # type: ignore[index]
    figure = training_figure(runs, run.spec.unit, known)
    beside = "" if control is None else f" Control: {control.folder}, without latents."
    caption = f"Bound and distortion (left), rate and δ (right) along the training.{beside}"
    return Section("How the training went", shown=(_figure(figure, caption),))


# --- Its latents ---


def _latents(run: Run, data: Data, part: Split, encoding: Encoding, seed: int) -> Iterator[Section]:
    shown, priors = [], prior_of(run.vae, len(part), part.extras)
    own = _are_own(priors, encoding, device_of(run.vae))
    rate_nd = rate_of_steps(encoding, priors)
    if rate_nd is not None:
        each = ", and δ is the mean of what their own priors commit" if own else ""
        caption = (
            f"Rate of each latent step and dimension, mean over {len(part)} test data, beside the share of δ: a step's "
            f"is that of z_t given the step before it{each}."
        )
        shown.append(_figure(steps_figure(rate_nd, floor_of_steps(priors)), caption))  # type: ignore[arg-type]
    prior = prior_of(run.vae, 1, part.take(slice(1)).extras)
    if (spectrum := _spectrum(getattr(prior, "whole", prior))) is not None:
        of = "the prior of the first of the data, which have priors of their own" if own else "the prior"
        caption = f"Modes of {of}: in which directions a posterior can speak, and at what price."
        shown.append(_figure(spectrum, caption))
    if (confusion := _confusion(run, data, part, encoding, seed)) is not None:
        counts, classes = confusion
        right = counts.diagonal().sum() / counts.sum()
        caption = f"A linear probe on samples of z takes {100 * right:.0f} % of {len(part)} data for what they are."
        shown.append(_figure(confusion_figure(counts.numpy(), classes), caption))
    if shown:
        yield Section("What the latents hold", shown=shown)


def _are_own(priors: Distribution, encoding: Encoding, device: torch.device) -> bool:
    """Whether the priors of N data differ in more than their lengths: at the z of the first, to be seen."""
    if len(encoding.z) != 1 or not priors.batch_shape:
        return False
    (z,) = encoding.z.values()
    log_p: Tensor = getattr(priors, "whole", priors).log_prob(z[:1].to(device))
    return not torch.allclose(log_p, log_p[:1], equal_nan=True)


def _spectrum(prior: Any) -> Figure | None:
    """Of a Gaussian prior that commits something."""
    try:
        delta = float(committed_rate(prior).sum())
        found = Modes(modes(prior).values.flatten(0, -2)[0]) if prior.batch_shape else modes(prior)
        return modes_figure(found, delta) if delta > 0 else None
    except UserError:
        return None


def _confusion(run: Run, data: Data, part: Split, encoding: Encoding, seed: int) -> tuple[Tensor, list[str]] | None:
    """Counts (K, K) of what a probe takes data for, true classes in rows, and their names; None without classes."""
    fit = data.train.take(slice(PROBE_DATA))
    if part.labels is None or fit.labels is None:
        return None
    count = max(int(max(part.labels.max(), fit.labels.max())) + 1, len(data.classes or ()))
    if count > CLASSES:
        return None
    found = taken_for(sample_latents(run.vae, fit, seed=seed + 1), fit.labels, flat(encoding.z))
    if found is None:
        return None
    names = [str(name) for name in (data.classes or range(count))]
    return torch.bincount(part.labels * count + found, minlength=count * count).reshape(count, count), names


# --- What it draws ---


def _drawn(run: Run, data: Data, encoding: Encoding, part: Split, seed: int) -> Iterator[Section]:
    """Samples, decodings, paths and shifts, where the programs can be asked for them."""
    if len(encoding.z) > 1 or not hasattr(run.vae.model, "likelihood"):
        return
    vae, spec = run.vae, run.spec
    told = is_told(vae, spec) or condition_of(spec) is not None

    def extras(count: int) -> Mapping[str, Tensor] | None:
        return extras_of(data.test, count) if told else None

    few = data.test.take(slice(8))
    column = "column" if _is_sheet(spec) else "group"
    shown = [
        _data(spec, draw(vae, 16, seed=seed, extras=extras(16)), 8, "Drawn from the prior."),
        _data(
            spec,
            draw(vae, 8, decodings=3, seed=seed, extras=extras(8)),
            8,
            f"Drawn from the prior, each {column} with one z.",
            down=True,
        ),
        _data(
            spec,
            reconstructions(vae, few, 3, seed=seed),
            len(few),
            f"Test data, first in each {column}, and what the decoder makes of a sample of their latents: what z says "
            "comes again and again.",
            down=True,
        ),
        _data(
            spec,
            paths(vae, data.test.take(slice(6)), 6, seed=seed),
            8,
            "From the latents of one test datum to another's; at the ends the data themselves.",
        ),
    ]
    if (shifted := _shifted(run, encoding, part, seed)) is not None:
        drawn, dimensions = shifted
        caption = (
            "One test datum's latents with all steps of a dimension shifted by −2 … 2 standard deviations of the "
            f"prior; dimensions {', '.join(str(k + 1) for k in dimensions)}, the decoder's noise the same."
        )
        shown.append(_data(spec, drawn, len(SHIFTS), caption))
    yield Section("What it draws", shown=shown)


def _shifted(run: Run, encoding: Encoding, part: Split, seed: int) -> tuple[Tensor, list[int]] | None:
    """Decodings along the dimensions with the largest rate, and which these are; None where latents have none."""
    mean = next(iter(encoding.mean.values()), None)
    if mean is None or mean.dim() != 3:
        return None
    rate_d = encoding.rate_per_dimension
    order = range(mean.shape[-1]) if rate_d is None else rate_d.argsort(descending=True).tolist()
    chosen = sorted(list(order)[:TRAVERSED])
    z_bnd = mean[:1].repeat(len(chosen) * len(SHIFTS), 1, 1)
    for row, dimension in enumerate(chosen):
        for column, shift in enumerate(SHIFTS):
            z_bnd[row * len(SHIFTS) + column, :, dimension] += shift
    extras = part.take(torch.zeros(len(z_bnd), dtype=torch.int64)).extras
    return decode(run.vae, z_bnd, same_noise=True, seed=seed, extras=extras), chosen


# --- Settings, versions, commands ---


def _made_by(run: Run) -> Iterator[Section]:
    assert run.folder is not None
    preset = read_info(run.folder).preset
    commands = [command_of(run.config, preset, run.folder), f"pyro-delta check {shlex.quote(str(run.folder))} --keep"]
    words = ["The training, from its settings; and the check:"]
    facts = [[name, str(value)] for name, value in run.facts.items() if value is not None]
    yield Section("How to make it again", words, shown=[Shown("text", "\n".join(commands), "", "")])
    yield Section("All settings", rows=[[key, written(value)] for key, value in flat_settings(run.config)], folded=True)
    yield Section("Versions", rows=facts + _versions(run.folder), folded=True)


def _versions(folder: Path) -> list[list[str]]:
    known = json.loads((folder / "run.json").read_text("utf-8"))
    rows = [[f"trained with {name}", str(value)] for name, value in known.get("versions", {}).items()]
    return [["trained by version", str(known.get("version"))], ["trained by commit", str(known.get("commit"))], *rows]


def command_of(config: Config, preset: str, folder: Path) -> str:
    """The command line that trains with the same settings, as far as they differ from those of the preset."""
    data = config.data.program
    root = config.data.options.get("root")
    given = [("data.program", data)]
    if root is not None and options_model("data", find("data", data)).model_fields["root"].is_required():
        given.append(("data.root", root))
    before = dict(flat_settings(load_preset(preset, given)))
    changed = {key: value for key, value in flat_settings(config) if before.get(key) != value}
    words = ["pyro-delta", "train", "--dataset", ":".join(value for _, value in given), "--preset", preset]
    if root is not None and changed.get("data.root") == root:
        words += ["--data-root", str(root)]
    for key, value in changed.items():
        if key not in ("data.root", "data.program"):
            words += ["--set", f"{key}={written(value)}"]
    return shlex.join([*words, "--out", str(folder)])


# --- Things to look at ---


def _figure(figure: Figure, caption: str) -> Shown:
    """A matplotlib figure as a drawing of vectors."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return Shown("picture", _uri(file.getvalue(), PICTURES[".svg"]), caption, caption)


def _data(spec: Spec, x: Tensor, columns: int, caption: str, *, down: bool = False) -> Shown:
    """Data as their spec shows them: pictures, sounds, or text.

    Args:
        spec: of the data.
        x: row after row of a sheet.
        columns: of it.
        caption: of all.
        down: whether what belongs together stands in a column; where there is no sheet, it comes one after the other.
    """
    sheet = _is_sheet(spec)
    group = len(x) // columns if down else columns
    if down and not sheet:
        x = x.unflatten(0, (-1, columns)).transpose(0, 1).flatten(0, 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"shown{spec.suffix}"
        spec.show(x, file, columns)
        picture = file.with_suffix(".png")  # such as a piano roll beside its notes
        content = (picture if picture.exists() else file).read_bytes()
    if sheet:
        return Shown("drawing", _uri(content, PICTURES[picture.suffix]), caption, caption)
    if spec.suffix in SOUNDS:
        return Shown("sound", _uri(content, SOUNDS[spec.suffix]), caption, caption)
    lines = content.decode("utf-8", errors="replace").splitlines()
    if len(lines) == len(x):
        lines = "\n\n".join("\n".join(lines[at : at + group]) for at in range(0, len(lines), group)).splitlines()
    return Shown("text", "\n".join(lines), caption, caption)


def _is_sheet(spec: Spec) -> bool:
    """Whether data of a kind are shown as one picture."""
    return spec.suffix in (*PICTURES, *WITH_PICTURE)


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
