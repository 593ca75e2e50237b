"""The model card of an exported run: README.md, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_delta.data.spec import in_words as in_words_of
from pyro_delta.diagnostics import table
from pyro_delta.errors import UserError
from pyro_delta.inference.run import Run, is_control
from pyro_delta.report.commands import GIVEN, command_of_check, commands_of_training, python_of_training
from pyro_delta.report.page import in_words
from pyro_delta.share.steps import START

KNOWN_LICENCES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "ecl-2.0", "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "gpl-2.0",
    "gpl-3.0", "isc", "lgpl-2.1", "lgpl-3.0", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "ofl-1.1", "osl-3.0",
    "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
"""Names of licences on the hub; they are those of SPDX in small letters."""
PAPER = """\
@inproceedings{razavi2019delta,
  title = {Preventing Posterior Collapse with delta-VAEs},
  author = {Razavi, Ali and van den Oord, A{\\"a}ron and Poole, Ben and Vinyals, Oriol},
  booktitle = {International Conference on Learning Representations},
  year = {2019},
  url = {https://arxiv.org/abs/1901.03416},
}"""


def card(
    run: Run,
    numbers: Mapping[str, Any] | None,
    info: Mapping[str, Any],
    *,
    evaluated: Sequence[Mapping[str, Any]],
    to: str | None,
    license: str | None,
    own: Sequence[str],
    graphs: Sequence[str] = (),
) -> str:
    """The text of README.md.

    Args:
        run: as it was exported, read from its new folder.
        numbers: of the check that goes with it, as `Diagnosis.asdict` gives them.
        info: what its run.json says.
        evaluated: what evaluations found that go with it.
        to: hf:USER/NAME, where it will be.
        license: SPDX expression.
        own: names of programs that go with it as copies.
        graphs: names of its torch programs.
    """
    assert run.folder is not None
    numbers, info, evaluated = (_escaped(values) for values in (numbers, info, evaluated))
    name = run.folder.name if to is None else to.rpartition("/")[2]
    version = info.get("version")
    parts = [
        _front_matter(run, license, _delta(run, numbers)),
        f"# {name}",
        _deaf(version) if is_control(run.config) else _what(run, numbers, version),
        *([] if run.caveat is None else [f"**{run.caveat.partition('; ')[0].rstrip('.')}.**"]),
        "## What it is",
        *in_words(run, caveat=False),
        _of_data(run, info),
        *([] if is_control(run.config) else [_of_delta(run, numbers)]),
        "## What was measured",
        *_measured(run, numbers),
        *_evaluated(run, evaluated),
        "## How to use it",
        *_used(run, to or name, own, graphs),
        "## How it was made",
        *_made(run, info, numbers, to, own),
        "## Licence",
        "The licence of these weights is unknown: whoever made them has not said it."
        if license is None
        else f"{license} (SPDX), as said by whoever exported it.",
        "## How to cite",
        f"The method is that of the paper below; of pyro-delta, CITATION.cff says how.\n\n```bibtex\n{PAPER}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _escaped(values: Any) -> Any:
    """Plain values whose texts, which may be a stranger's, are no HTML."""
    if isinstance(values, Mapping):
        return {str(_escaped(key)): _escaped(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_escaped(value) for value in values]
    return html.escape(values, quote=False) if isinstance(values, str) else values


def _deaf(version: Any) -> str:
    """What a control is."""
    return (
        "**This model does not hear its latents** (likelihood.use_latents is false): it is a control, an "
        "autoregressive model of x alone, which a VAE of the same data is compared with. Its latents say nothing of x, "
        f"whatever rate they have. Made with pyro-delta {version}, a library of δ-VAEs in Pyro."
    )


def _what(run: Run, numbers: Mapping[str, Any] | None, version: Any) -> str:
    """What the model is, as far as it is known of this one."""
    delta = _delta(run, numbers)
    made = f"made with pyro-delta {version}, a library of δ-VAEs in Pyro"
    if not delta:
        known = "No rate is committed (δ = 0)" if delta == 0 else "What rate it commits is not known"
        return (
            f"A variational autoencoder, {made}. {known}: nothing but its training keeps its posterior from collapsing."
        )
    if numbers is not None and numbers.get("floor_holds") is False:
        return (
            f"A variational autoencoder, {made}. It is to keep its rate above δ, but its check found that it does not."
        )
    return (
        f"A δ-VAE, {made}: its posterior cannot collapse onto its prior, because the KL divergence between them is at "
        f"least δ = {delta:.4g} nats by construction."
    )


def _delta(run: Run, numbers: Mapping[str, Any] | None) -> float | None:
    """The committed rate in nats: of the check, or else as the training logged it last; None where it is not known."""
    if numbers is not None:
        return numbers.get("delta_nats")
    return next((line["delta_nats"] for line in reversed(run.metrics) if line.get("delta_nats") is not None), None)


def _front_matter(run: Run, license: str | None, delta: float | None) -> str:
    """What the hub reads: JSON strings are YAML as well."""
    if license is None:
        lines = ["license: unknown"]
    elif license.lower() in KNOWN_LICENCES:
        lines = [f"license: {license.lower()}"]
    else:
        lines = ["license: other", f"license_name: {json.dumps(license.lower())}"]
    config = run.config
    programs = [str(part.program) for part in (config.data, config.prior, config.likelihood, config.guide)]
    named = dict.fromkeys(name for name in programs if ":" not in name and name != GIVEN)
    tags = ["pyro", "vae", *(["delta-vae"] if delta and not is_control(run.config) else []), *named]
    return "\n".join(["---", *lines, "library_name: pyro-delta", "tags:", *(f"- {tag}" for tag in tags), "---"])


def _of_data(run: Run, info: Mapping[str, Any]) -> str:
    splits = info["data"]["splits"]
    counts = ", ".join(f"{name} {split['count']}" for name, split in splits.items())
    shape = "×".join(map(str, run.spec.shape))
    data = "data that were given in Python" if run.config.data.program == GIVEN else run.config.data.program
    return (
        f"Trained on {data} ({counts}), each of shape {shape}: {run.spec.positions} "
        f"{getattr(run.spec, 'place', 'position')}s. Fingerprints of the data are in run.json; the data themselves are "
        "not here."
    )


def _of_delta(run: Run, numbers: Mapping[str, Any] | None) -> str:
    delta = _delta(run, numbers)
    if delta is None:
        return "No committed rate δ is known: this posterior may collapse."
    if delta == 0:
        return "Nothing is committed (δ = 0): this posterior may collapse."
    if numbers is not None:
        if numbers.get("floor_holds") is False:
            return f"Committed rate: δ = {delta:.4g} nats, which the rate does not keep: its check has failed."
        return (
            f"Committed rate: δ = {delta:.4g} nats, known by {numbers['delta_known_by']}; it bounds the rate of "
            f"{numbers['delta_guarantee']}. No training can take the rate below it."
        )
    return (
        f"Committed rate: δ = {delta:.4g} nats, which the training logged; a check would say how it is "
        "known, and what it bounds."
    )


def _measured(run: Run, numbers: Mapping[str, Any] | None) -> Iterator[str]:
    if numbers is not None:
        yield f"{str(numbers['verdict']).rstrip('.')}. {numbers['advice']}"
        yield (
            f"On {numbers['n_images']} of the {numbers['split_images']} data of the {numbers['split']} split, seed "
            f"{numbers['seed']}; ± is a standard error over the data."
        )
        yield _markdown(("", "", ""), table.rows(numbers, run.spec.unit))
        return
    yield ("No check was kept with this run, so nothing here says whether its latents are used.")
    found = [line for line in run.metrics if line["split"] == "validation" and line["step"] == run.step]
    if found:
        line = found[-1]
        yield (
            f"In training, at step {run.step}, on the validation split: −ELBO {line['neg_elbo_bpd']:.4f} "
            f"{run.spec.unit}, of which the rate is {line['rate_bpd']:.4f} ({line['rate_nats_mean']:.4g} nats)."
        )


def _evaluated(run: Run, evaluated: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if evaluated:
        head, *rows = table.evaluations(evaluated)
        yield f"By `pyro-delta evaluate`, bounds and distortion in {run.spec.unit}, rates in nats:"
        yield _markdown(head, rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _used(run: Run, place: str, own: Sequence[str], graphs: Sequence[str]) -> Iterator[str]:
    trust = ", trust=True" if own else ""
    yield f'```python\nimport pyro_delta\nrun = pyro_delta.load("{place}"{trust})\n```'
    flag = " --trust" if own else ""
    quoted = shlex.quote(place)
    yield (
        "`pip install 'pyro-delta[hub]'` for a place on the hub, `pip install pyro-delta` for a folder. Then "
        "`run.vae` holds model and guide as Pyro programs. From the command line:"
    )
    sample = f"pyro-delta sample {quoted} --num 16 --out samples{run.spec.suffix}{flag}"
    if run.config.data.program == GIVEN:
        yield f"```sh\n{sample}\n```"
        yield (
            "Its data have no name by which a command could find them; they, or others of their kind, are handed over "
            "in Python:"
        )
        yield (
            "```python\nprint(pyro_delta.check(run, data=x))\nprint(pyro_delta.evaluate(run, data=x))\n```\n\n"
            f"x: {in_words_of(run.spec)}, in an array, or what it was trained on."
        )
    else:
        commands = [
            f"pyro-delta check {quoted}{flag}",
            sample,
            f"pyro-delta encode {quoted} test --out latents.nc{flag}",
        ]
        yield "```sh\n" + "\n".join(commands) + "\n```"
    if own:
        yield (
            f"It runs programs of its maker's own ({', '.join(own)}): look at them in `programs/` before you say that "
            "you trust them."
        )
    if graphs:
        yield (
            f"{', '.join(graphs[:-1])} and {graphs[-1]} are `torch.export` programs, which need torch alone: guide(x, "
            "extras) gives mean and standard deviation of q(z | x), decoder(x, z, extras) the likelihood's parameters "
            "at all positions; extras holds lengths, mask and condition where the data have them, else {}."
        )
        yield '```python\nimport torch\nguide = torch.export.load("guide.pt2").module()\n```'
    if START in graphs:
        yield (
            "Drawn number by number, `decoder_start(z, extras)` gives the parameters of the first pixel or number and "
            "the state, a dict of tensors, which each next call takes and gives back: `decoder_row(row, row_before, "
            "state)` those of the first pixel of a row, `decoder_step(row, column, pixel_before, state)` those of any "
            "other; `decoder_step(place, before, state)` those of a token or a sample of sound, or of the first voice "
            "of a position, whose others `decoder_voice(voice, before, state)` gives; places are tensors without axes."
        )
    yield "Training cannot go on from here: the state of the optimiser is left out."


def _made(
    run: Run, info: Mapping[str, Any], numbers: Mapping[str, Any] | None, to: str | None, own: Sequence[str]
) -> Iterator[str]:
    """The commands that make it again, where this folder is here: it is fetched first if it is on the hub."""
    assert run.folder is not None
    here = run.folder.name if to is None else to.rpartition("/")[2]
    lines = []
    if to is not None and own:
        lines.append(f"hf download {to.partition(':')[2]} --local-dir {shlex.quote(here)}")
    if run.config.data.program == GIVEN:
        yield from ["```sh\n" + "\n".join(lines) + "\n```"] if lines else []
        yield _made_in_python(run, str(info["preset"]), here, own)
        yield _versions(info)
        return
    try:
        if own:  # of which only the copies are here
            raise UserError("programs of its maker's own")
        commands, words = commands_of_training(run.config, str(info["preset"]), Path("RUN"), run.metrics)
        yield words
        lines += commands
    except UserError:  # or of no preset
        config, trust = shlex.quote(f"{here}/config.json"), " --trust" if own else ""
        lines.append(f"pyro-delta train --config {config}{trust} --out RUN")
    if numbers is not None:
        lines.append(f"{command_of_check('RUN', numbers)} --keep")
    lines.append("pyro-delta export RUN DIR" + ("" if run.weights == "best" else " --weights last"))
    yield "```sh\n" + "\n".join(lines) + "\n```"
    yield _versions(info)


def _made_in_python(run: Run, preset: str, here: str, own: Sequence[str]) -> str:
    """What makes a run again whose data have no name."""
    training = python_of_training(run.config, preset, "RUN", {name: f"{here}/programs/{name}" for name in own})
    weights = "" if run.weights == "best" else ', weights="last"'
    return (
        f"```python\nimport pyro_delta\n{training}\n"
        f'pyro_delta.write_report(run, data=x)  # which keeps the check\npyro_delta.export(run, "DIR"{weights})\n```'
    )


def _versions(info: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in info.get("versions", {}).items())
    return f"All settings are in config.json. Trained with {versions}; commit {info.get('commit') or 'unknown'}."
