"""Does training in NumPyro go as training in Pyro does? The digits, both backends, several seeds.

Preset `digits`, in float32 on both sides. Each run is the code of `pyro-delta train`; the validation split is evaluated
along the way, the test split at the end, with the weights that were best on the validation split. The backends share
nothing but the settings and the order of the images: initial weights and noise differ from run to run, so their
difference is held against that of the seeds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import FOLDER, add_common_arguments, add_jobs_argument, in_parallel, write

import pyro_delta
from pyro_delta.config import parse_settings
from pyro_delta.report.comparison import mean_and_error

COLUMNS = {
    "neg_elbo_bpd": "−ELBO bits/dim",
    "distortion_bpd": "distortion bits/dim",
    "rate_nats_mean": "KL",
    "rate_nats_min": "least KL",
    "mutual_information_nats": "MI",
    "told_calibrated_nats": "told, calibrated",
    "shuffled_gap_nats": "cost of another's z",
}
BACKENDS = {"pyro": "Pyro", "numpyro": "NumPyro"}


def run(job: tuple[str, int, list[tuple[str, Any]]]) -> dict[str, Any]:
    """Trains with one backend and one seed."""
    backend, seed, settings = job
    fixed = {"training.backend": backend, "training.seed": seed, "training.validations": 20, "training.bf16": False}
    trained = pyro_delta.train(fixed | dict(settings), data="digits")
    numbers = pyro_delta.check(trained).numbers
    curve = [(line["step"], line["neg_elbo_bpd"]) for line in trained.metrics if line["split"] == "validation"]
    print(f"{backend}, seed {seed}: " + ", ".join(f"{COLUMNS[key]} {numbers[key]:.4g}" for key in COLUMNS), flush=True)
    return {"backend": backend, "curve": curve, **numbers, "seed": seed}


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each number: both means over the seeds, and their difference in its own standard errors."""
    rows = []
    for key, name in COLUMNS.items():
        found = {backend: [run[key] for run in runs if run["backend"] == backend] for backend in BACKENDS}
        (ours, our_error), (theirs, their_error) = (mean_and_error(values) for values in found.values())
        rows.append(
            {
                "number": name,
                "Pyro": f"{ours:.4f} ± {our_error:.4f}",
                "NumPyro": f"{theirs:.4f} ± {their_error:.4f}",
                "difference, in standard errors": (theirs - ours) / (math.hypot(our_error, their_error) or math.nan),
            }
        )
    return rows


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Validation curves, a line for each run."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(6.4, 3.6), layout="constrained")).subplots()
    for backend, colour in (("pyro", "tab:red"), ("numpyro", "tab:blue")):
        for number, run in enumerate(run for run in runs if run["backend"] == backend):
            label = BACKENDS[backend] if number == 0 else None
            axes.plot(*zip(*run["curve"], strict=True), color=colour, linewidth=1, label=label)
    axes.set(xlabel="step", ylabel="−ELBO, bits/dim (validation)", title="Digits, trained by each backend")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Both backends and all seeds, several at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="pairs", action="append", default=[], metavar="KEY=VALUE")
    add_jobs_argument(parser)
    parser.add_argument("--picture", type=Path, default=FOLDER / "backend_curves.png")
    add_common_arguments(parser, "backend_curves")
    arguments = parser.parse_args()
    settings = parse_settings(arguments.pairs)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    jobs = [(backend, seed, settings) for seed in seeds for backend in BACKENDS]
    found = in_parallel(run, jobs, arguments.jobs)
    runs = sorted(found, key=lambda result: (result["seed"], list(BACKENDS).index(result["backend"])))
    draw(runs, arguments.picture)
    write(arguments.out, arguments.seed, summary(runs), runs=runs)


if __name__ == "__main__":
    main()
