"""Numbers as rows for people: what they are called, and in which unit they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

LABELS = {
    "neg_elbo_bpd": ("−ELBO", "bits"),
    "perplexity_per_word": ("perplexity per word, by −ELBO", ""),
    "distortion_bpd": ("distortion −log p(x|z)", "bits"),
    "rate_bpd": ("rate KL(q‖p)", "bits"),
    "auxiliary_neg_elbo_bpd": ("−ELBO with the auxiliary prior", "bits"),
    "neg_elbo_nats": ("−ELBO", "nats"),
    "distortion_nats": ("distortion −log p(x|z)", "nats"),
    "rate_nats_mean": ("rate, mean", "nats"),
    "rate_nats_min": ("rate, smallest of any datum", "nats"),
    "delta_nats": ("committed rate δ", "nats"),
    "rate_above_delta_nats_min": ("rate above its own δ, least of any datum", "nats"),
    "delta_known_by": ("δ is known by", ""),
    "delta_guarantee": ("δ bounds the rate of", ""),
    "floor_holds": ("rate ≥ δ, as guaranteed", ""),
    "rate_nats_per_dim": ("rate of each latent dimension", "nats"),
    "active_units": ("active latent coordinates", ""),
    "latent_units": ("latent coordinates", ""),
    "iw_bpd": ("importance-weighted bound", "bits"),
    "iw_nats": ("importance-weighted bound", "nats"),
    "iw_neg_elbo_bpd": ("−ELBO of the same data", "bits"),
    "iw_gap_nats": ("what lies between them, datum by datum", "nats"),
    "iw_images": ("data of that bound", ""),
    "particles": ("particles of that bound", ""),
    "k_hat_median": ("k̂ of its weights, median", ""),
    "k_hat_bad": ("part of the data with k̂ above 0.7", ""),
    "told_calibrated_nats": ("z tells the decoder at least, calibrated", "nats"),
    "told_nats": ("the same with the decoder as it is", "nats"),
    "told_tau": ("its calibration τ; below 1, overconfident", ""),
    "told_cap_nats": ("the most both could show, ln M", "nats"),
    "told_samples": ("samples z that each datum meets, M", ""),
    "told_images": ("data that are told of, to choose τ or to judge", ""),
    "told_judged": ("data of these that judge", ""),
    "told_of_condition_too": ("that is told of x and of the condition together", ""),
    "shuffled_gap_nats": ("cost of another datum's z (not information)", "nats"),
    "mutual_information_nats": ("mutual information of z and x", "nats"),
    "mutual_information_cap_nats": ("the most it could show, ln N", "nats"),
    "probe_accuracy": ("linear probe on z, accuracy", ""),
    "probe_chance": ("what guessing gives", ""),
    "latents_used": ("latents used", ""),
    "bought_nats": ("latents buy: control's −log p(x) − distortion", "nats"),
    "net_bought_nats": ("the same less the rate: control's − (−ELBO)", "nats"),
    "control_bpd": ("−log p(x) of the control", "bits"),
    "conditioned_on": ("data are conditioned on", ""),
    "n_images": ("data", ""),
    "split_images": ("data of the split", ""),
    "weights": ("averaged weights", ""),
    "step": ("step", ""),
    "trained_steps": ("steps of its training", ""),
    "skipped_steps": ("steps of it that were skipped", ""),
    "control_trained_steps": ("steps of the control's", ""),
    "finished": ("training came to its end", ""),
    "best_neg_elbo_bpd": ("−ELBO of the best validation, whose weights are used", "bits"),
    "best_step": ("step of that", ""),
    "train_s": ("training time", "s"),
    "cross_entropy_nats": ("cross entropy of the prior", "nats"),
    "run": ("run", ""),
}
"""Key → (words, unit), in the order of the table; `bits` stands for the unit of the data's bounds."""

PER = "bits_per_"
"""What keys begin with that are told per a measure of the data, such as words."""
ERRORS = {"shuffled_gap_nats": "shuffled_gap_se"}
"""Keys whose standard error is not simply `<key>_se`."""

Row = tuple[str, str, str]


def rows(numbers: Mapping[str, Any], unit: str = "bits/dim") -> list[Row]:
    """What `LABELS` knows of `numbers`: words, value with its standard error where there is one, and unit."""
    found = []
    measures = [key.removeprefix(PER) for key in numbers if key.startswith(PER) and not key.endswith("_se")]
    bounds = {f"{PER}{name}": ("−ELBO", f"bits/{name}") for name in measures}
    rates = {f"rate_{PER}{name}": ("rate KL(q‖p)", f"bits/{name}") for name in measures}
    for key, (words, of) in {"neg_elbo_bpd": LABELS["neg_elbo_bpd"], **bounds, **rates, **LABELS}.items():
        if key in numbers:
            found.append((words, _with_error(numbers, key), unit if of == "bits" else of))
    return found


EVALUATED = {
    "split": "split",
    "prior": "prior",
    "weights": "weights",
    "n_images": "data",
    "particles": "particles",
    "neg_elbo_bpd": "−ELBO",
    "iw_bpd": "importance-weighted",
    "k_hat_median": "k̂, median",
    "distortion_bpd": "distortion",
    "rate_nats_mean": "rate",
    "rate_nats_min": "least rate",
}
"""Key → head of a column where evaluations stand side by side: bounds in the unit of the data, rates in nats."""


def evaluations(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Evaluations of a run side by side, head first; columns of which none has anything are left out."""
    columns = [key for key in EVALUATED if any(numbers.get(key) is not None for numbers in found)]
    heads = [EVALUATED[key] for key in columns]
    return [heads, *([_with_error(numbers, key) for key in columns] for numbers in found)]


def _with_error(numbers: Mapping[str, Any], key: str) -> str:
    error = numbers.get(ERRORS.get(key, f"{key}_se"))
    return text(numbers.get(key)) + ("" if error is None or math.isnan(error) else f" ± {error:.2g}")


def text(value: Any) -> str:
    """A value as it stands in a table."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join("—" if part is None else f"{part:.3g}" for part in value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def unfinished(facts: Mapping[str, Any]) -> str:
    """What a training that has not come to its end has made, and which weights of it are looked at."""
    count = facts["skipped_steps"]
    skipped = f", {count} of which were skipped" if count else ""
    return (
        f"it has made {facts['trained_steps']} steps{skipped}, and these are the {facts['weights']} weights, of step "
        f"{facts['step']}"
    )


def plain(title: str, table: list[Row]) -> str:
    """Rows as lines of text, in columns."""
    words, values = (max((len(row[i]) for row in table), default=0) for i in (0, 1))
    lines = [f"{row[0]:{words}}  {row[1]:{values}}  {row[2]}".rstrip() for row in table]
    return "\n".join([title, *lines])


def html(title: str, table: Sequence[Sequence[str]], note: str = "") -> str:
    """Rows as an HTML table, with a sentence below."""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table)
    return f"<table><caption>{escape(title)}</caption>{body}</table><p>{escape(note)}</p>"
