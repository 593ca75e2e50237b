"""Numbers as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

LABELS = {
    "neg_elbo_bpd": ("−ELBO", "bits/dim"),
    "distortion_bpd": ("distortion −log p(x|z)", "bits/dim"),
    "rate_bpd": ("rate KL(q‖p)", "bits/dim"),
    "rate_nats_mean": ("rate, mean", "nats"),
    "rate_nats_min": ("rate, smallest of any image", "nats"),
    "delta_nats": ("committed rate δ", "nats"),
    "floor_holds": ("rate ≥ δ on every image", ""),
    "active_units": ("active latent coordinates", ""),
    "iw_bpd": ("importance-weighted bound", "bits/dim"),
    "iw_images": ("images of that bound", ""),
    "particles": ("particles of that bound", ""),
    "shuffled_gap_nats": ("cost of another image's z", "nats"),
    "mutual_information_nats": ("mutual information of z and x", "nats"),
    "mutual_information_cap_nats": ("the most it could show, ln N", "nats"),
    "probe_accuracy": ("linear probe on z, accuracy", ""),
    "latents_used": ("latents used", ""),
    "n_images": ("images", ""),
    "step": ("steps", ""),
    "train_s": ("training time", "s"),
    "run": ("run", ""),
}
"""Key → (words, unit), in the order of the table."""

ERRORS = {"shuffled_gap_nats": "shuffled_gap_se"}
"""Keys whose standard error is not simply `<key>_se`."""


def print_table(title: str, numbers: Mapping[str, Any]) -> None:
    """Prints what `LABELS` knows of `numbers` on stdout, with standard errors where there are some."""
    table = Table(title=title, title_justify="left", show_header=False)
    for key, (words, unit) in LABELS.items():
        if key in numbers:
            error = numbers.get(ERRORS.get(key, f"{key}_se"))
            table.add_row(words, _text(numbers[key]) + ("" if error is None else f" ± {error:.2g}"), unit)
    _print(table)


def print_rows(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Prints texts on stdout as a table, of which the first row is the head."""
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows[1:]:
        table.add_row(*row)
    _print(table)


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a long path must not be cut in a file or a pipe
    console.print(table, highlight=False, markup=False)


def _text(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
