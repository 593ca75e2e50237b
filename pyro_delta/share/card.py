"""The model card of an exported run: README.md, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_delta.diagnostics import table
from pyro_delta.errors import UserError
from pyro_delta.inference.run import Run
from pyro_delta.report.commands import command_of, command_of_check
from pyro_delta.report.page import in_words

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
    name = run.folder.name if to is None else to.rpartition("/")[2]
    parts = [
        _front_matter(run, license),
        f"# {name}",
        f"A variational autoencoder, made with pyro-delta {info.get('version')}, a library of δ-VAEs in Pyro: their "
        "posterior cannot collapse, because the KL divergence from their prior is at least δ by construction.",
        *([] if run.caveat is None else [f"**{run.caveat.partition('; ')[0].rstrip('.')}.**"]),
        "## What it is",
        *in_words(run, caveat=False),
        _of_data(run, info),
        _of_delta(run, numbers),
        "## What was measured",
        *_measured(run, numbers),
        *_evaluated(run, evaluated),
        "## How to use it",
        *_used(run, to or name, own, graphs),
        "## How it was made",
        *_made(run, info, numbers),
        "## Licence",
        "The licence of these weights is unknown: whoever made them has not said it."
        if license is None
        else f"{license} (SPDX), as said by whoever exported it.",
        "## How to cite",
        f"The method is that of the paper below; of pyro-delta, CITATION.cff says how.\n\n```bibtex\n{PAPER}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(run: Run, license: str | None) -> str:
    """What the hub reads: JSON strings are YAML as well."""
    if license is None:
        lines = ["license: unknown"]
    elif license.lower() in KNOWN_LICENCES:
        lines = [f"license: {license.lower()}"]
    else:
        lines = ["license: other", f"license_name: {json.dumps(license.lower())}"]
    config = run.config
    programs = [str(part.program) for part in (config.data, config.prior, config.likelihood, config.guide)]
    tags = ["pyro", "vae", "delta-vae", *dict.fromkeys(name for name in programs if ":" not in name)]
    return "\n".join(["---", *lines, "library_name: pyro-delta", "tags:", *(f"- {tag}" for tag in tags), "---"])


def _of_data(run: Run, info: Mapping[str, Any]) -> str:
    splits = info["data"]["splits"]
    counts = ", ".join(f"{name} {split['count']}" for name, split in splits.items())
    shape = "×".join(map(str, run.spec.shape))
    return (
        f"Trained on {run.config.data.program} ({counts}), each of shape {shape}: {run.spec.positions} "
        f"{getattr(run.spec, 'place', 'position')}s. Fingerprints of the data are in run.json; the data themselves are "
        "not here."
    )


def _of_delta(run: Run, numbers: Mapping[str, Any] | None) -> str:
    if numbers is not None:
        delta = numbers.get("delta_nats")
        if not delta:
            return "Nothing is committed (δ = 0): this posterior may collapse."
        return (
            f"Committed rate: δ = {delta:.4g} nats, known by {numbers['delta_known_by']}; it bounds the rate of "
            f"{numbers['delta_guarantee']}. No training can take the rate below it."
        )
    logged = [line["delta_nats"] for line in run.metrics if line.get("delta_nats") is not None]
    if not logged or not logged[-1]:
        return "No committed rate δ was logged in its training: this posterior may collapse."
    return (
        f"Committed rate: δ = {logged[-1]:.4g} nats, which the training logged; `pyro-delta check` says how it is "
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
    yield (
        "No check was kept with this run, so nothing here says whether its latents are used; `pyro-delta check` looks."
    )
    found = [line for line in run.metrics if line["split"] == "validation" and line["step"] == run.step]
    if found:
        line = found[-1]
        yield (
            f"In training, at step {run.step}, on the validation split: −ELBO {line['neg_elbo_bpd']:.4f} "
            f"{run.spec.unit}, of which the rate is {line['rate_bpd']:.4f} ({line['rate_nats_mean']:.4g} nats)."
        )


def _evaluated(run: Run, evaluated: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if evaluated:
        head, *rows = table.evaluations(evaluated, run.spec.unit)
        yield "Bounds, by `pyro-delta evaluate`:"
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
    commands = [
        f"pyro-delta check {quoted}{flag}",
        f"pyro-delta sample {quoted} --num 16 --out samples{run.spec.suffix}{flag}",
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
            f"{' and '.join(graphs)} are `torch.export` programs, which need torch alone: guide(x, extras) gives mean "
            "and standard deviation of q(z | x), decoder(x, z, extras) the likelihood's parameters at all positions; "
            "extras holds lengths, mask and condition where the data have them, else {}."
        )
        yield '```python\nimport torch\nguide = torch.export.load("guide.pt2").module()\n```'
    yield "Training cannot go on from here: the state of the optimiser is left out."


def _made(run: Run, info: Mapping[str, Any], numbers: Mapping[str, Any] | None) -> Iterator[str]:
    try:
        train = command_of(run.config, str(info["preset"]), Path("RUN"))
    except UserError:  # data of a program of its own, say, of which only the copy is here
        train = "pyro-delta train --config config.json --out RUN"
    lines = [train]
    if numbers is not None:
        lines.append(f"{command_of_check('RUN', numbers)} --keep")
    lines.append("pyro-delta export RUN DIR" + ("" if run.weights == "best" else " --weights last"))
    yield "```sh\n" + "\n".join(lines) + "\n```"
    versions = ", ".join(f"{name} {value}" for name, value in info.get("versions", {}).items())
    yield f"All settings are in config.json. Trained with {versions}; commit {info.get('commit') or 'unknown'}."
