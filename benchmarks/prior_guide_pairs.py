"""Every shipped prior with every shipped guide, on the digits: which pairs are certified, and what each gives.

A pair that cannot be built or that `verify` refuses is listed with its reason. The others train alike (preset `digits`,
δ = 4 nats where the prior or the guide has a rate to set; with the guide `bidirectional` the decoder is conditioned on
all of z at once, as in the paper's ablation), several seeds, and are judged, with their best weights on the validation
split, by the code of `pyro-delta check` and of `evaluate --with-prior auxiliary`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from digits_collapse import mean_and_error
from record import add_common_arguments, add_jobs_argument, in_parallel, save, write

import pyro_delta
from pyro_delta.build import build
from pyro_delta.config import load_preset, parse_settings
from pyro_delta.data.images.datasets import Digits
from pyro_delta.errors import UserError
from pyro_delta.inference.auxiliary import AuxiliaryTraining, train_prior
from pyro_delta.inference.provenance import provenance
from pyro_delta.programs import SHIPPED
from pyro_delta.vae import with_prior

Pair = tuple[str, str]
COLUMNS = {
    "delta_nats": "δ",
    "rate_nats_min": "least KL",
    "rate_nats_mean": "KL",
    "neg_elbo_bpd": "−ELBO bits/dim",
    "auxiliary_bpd": "auxiliary bits/dim",
    "told_calibrated_nats": "told, calibrated",
    "told_nats": "told",
    "told_tau": "τ",
    "mutual_information_nats": "MI",
    "shuffled_gap_nats": "cost of another's z",
    "probe_accuracy": "probe",
}
AUXILIARY_STEPS = 1500


def settings_of(pair: Pair, seed: int, more: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The preset with another prior and guide."""
    prior, guide = pair
    chosen: list[tuple[str, Any]] = [("prior.program", prior), ("guide.program", guide)]
    if prior == "ar1_learned":
        chosen.append(("prior.floor_nats", 4.0))
    if guide == "contour":
        chosen.append(("guide.rate_nats", 4.0))
    if guide == "bidirectional":
        chosen.append(("likelihood.conditioning", "full"))
    return [*chosen, ("training.seed", seed), *more]


def refusal(pair: Pair, more: list[tuple[str, Any]]) -> str | None:
    """Why a pair is refused, or None."""
    torch.manual_seed(0)
    try:
        vae = build(load_preset("digits", settings_of(pair, 0, more)), Digits.spec)
        return pyro_delta.verify(vae, Digits.spec).failure
    except UserError as error:
        return str(error)


def run(job: tuple[Pair, int, list[tuple[str, Any]]]) -> dict[str, Any]:
    """Trains one pair with one seed, then its auxiliary prior, and judges both on the test split."""
    pair, seed, more = job
    trained = pyro_delta.train(dict(settings_of(pair, seed, more)), data="digits")
    numbers = pyro_delta.check(trained).numbers
    training = AuxiliaryTraining.of(trained.config.auxiliary, trained.vae.model.prior)
    train_prior(training, trained.vae, trained.data().train, AUXILIARY_STEPS, seed=seed)
    tighter = replace(trained, vae=with_prior(trained.vae, training.average.module))
    numbers["auxiliary_bpd"] = pyro_delta.evaluate(tighter)["neg_elbo_bpd"]
    print(f"{pair}, seed {seed}: " + ", ".join(f"{name} {numbers[key]}" for key, name in COLUMNS.items()), flush=True)
    return {"prior": pair[0], "guide": pair[1], **numbers, "seed": seed}


def summary(refused: dict[Pair, str], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per pair: mean ± standard error over seeds, or the reason why there is none."""
    rows: list[dict[str, Any]] = []
    for prior in SHIPPED["prior"]:
        for guide in SHIPPED["guide"]:
            row: dict[str, Any] = {"prior": prior, "guide": guide, **dict.fromkeys(COLUMNS.values(), "")}
            runs = [result for result in results if (result["prior"], result["guide"]) == (prior, guide)]
            for key, name in COLUMNS.items():
                values = [result[key] for result in runs if result[key] is not None]
                if values:
                    mean, error = mean_and_error(values)
                    row[name] = f"{mean:.3f} ± {error:.3f}"
            if runs:
                row["least KL"] = f"{min(result['rate_nats_min'] for result in runs):.4f}"
            for key, name in (("floor_holds", "floor holds"), ("latents_used", "latents used")):
                row[name] = f"{sum(bool(result[key]) for result in runs)}/{len(runs)}" if runs else ""
            row["refused"] = refused.get((prior, guide), "")
            rows.append(row)
    return rows


def finished(out: Path, settings: list[str]) -> list[dict[str, Any]]:
    """The runs of an earlier call of this commit with the same settings, with which this one goes on."""
    record = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    same = record.get("settings") == settings and record.get("commit") == provenance()["commit"]
    return record["runs"] if same else []


def main() -> None:
    """All pairs and seeds, several at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", dest="pairs", action="append", default=[], metavar="KEY=VALUE")
    add_jobs_argument(parser)
    add_common_arguments(parser, "prior_guide_pairs")
    arguments = parser.parse_args()
    more = parse_settings(arguments.pairs)
    pairs = [(prior, guide) for prior in SHIPPED["prior"] for guide in SHIPPED["guide"]]
    refused = {pair: reason for pair in pairs if (reason := refusal(pair, more))}
    for pair, reason in refused.items():
        print(f"{pair}: {reason}", flush=True)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    results = finished(arguments.out, arguments.pairs)
    done = {(result["prior"], result["guide"], result["seed"]) for result in results}
    allowed = [pair for pair in pairs if pair not in refused]
    jobs = [(pair, seed, more) for seed in seeds for pair in allowed if (*pair, seed) not in done]
    for result in in_parallel(run, jobs, arguments.jobs):
        results.append(result)
        results.sort(key=lambda found: (found["seed"], pairs.index((found["prior"], found["guide"]))))
        save(arguments.out, arguments.seed, summary(refused, results), settings=arguments.pairs, runs=results)
    write(arguments.out, arguments.seed, summary(refused, results), settings=arguments.pairs, runs=results)


if __name__ == "__main__":
    main()
