"""What `pyro-delta impute` and `pyro-delta forecast` share: options, and completed series, written and judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_delta.cli.options import (
    check_out,
    condition_option,
    device_option,
    json_option,
    open_run,
    other_data_option,
    print_json,
    read_given,
    root_option,
    seed_option,
    trust_option,
    weights_option,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_delta.data.series.spec import SeriesSpec
    from pyro_delta.data.splits import Split
    from pyro_delta.inference.run import Run

FEWEST = 2
"""Effective particles below which completions are said to be alike."""


def too_few(sizes: list[float], what: str, means: str) -> str | None:
    """The sentence for completions of which too few particles count; None if there are none.

    Args:
        sizes: effective sample sizes.
        what: was completed, such as images.
        means: what follows from it, and what to do.
    """
    few = sum(size < FEWEST for size in sizes)
    return f"For {few} of {len(sizes)} {what} fewer than {FEWEST} particles count: {means}" if few else None


def completion_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All but which numbers are kept."""
    positive = click.IntRange(min=1)
    for option in (
        json_option,
        trust_option,
        other_data_option,
        root_option,
        device_option,
        condition_option,
        seed_option,
        weights_option,
        click.option("--draws", type=positive, default=32, show_default=True, help="Completions of each series."),
        click.option("--particles", type=positive, default=2048, show_default=True, help="K of each series."),
        click.option("--num", type=positive, default=8, show_default=True, help="The first so many series."),
        click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE.csv", help="The table."),
    ):
        command = option(command)
    return command


def opened(
    run: Path, given: str, out: Path, num: int, weights: str, device: str, data_root: str | None, **flags: Any
) -> tuple[Run, SeriesSpec, Split, list[str], Tensor]:
    """A run of series, data for it and their names, and which of their numbers are known, (N, T, C).

    Raises:
        UserError: if the run is of other data, or as `open_run` and `read_given`.
    """
    import torch

    from pyro_delta.data.series.spec import SeriesSpec
    from pyro_delta.errors import UserError

    loaded = open_run(run, device, weights=weights, trust=flags["trust"])
    spec = loaded.spec
    if not isinstance(spec, SeriesSpec):
        raise UserError(
            f"series are completed, not data of {type(spec).__name__}; give a run that was made for series."
        )
    check_out(out, spec, given)
    found, names, _ = read_given(loaded, given, num, data_root, flags["other_data"], flags["condition"])
    known = (torch.arange(spec.length) < found.extras["lengths"].unsqueeze(-1)).unsqueeze(-1).expand(found.x.shape)
    return loaded, spec, found, names, known & found.extras.get("mask", torch.tensor(True))


def completed(
    loaded: Run,
    spec: SeriesSpec,
    found: Split,
    names: list[str],
    known: Tensor,
    keep: Tensor,
    lengths: list[int],
    out: Path,
    *,
    particles: int,
    draws: int,
    seed: int,
    as_json: bool,
) -> None:
    """Completes series, writes all draws of each, with a picture, and says how near they are to what is known.

    Args:
        loaded: the run.
        spec: of its series.
        found: the series, …
        names: … their names, …
        known: … their numbers that are known, (N, T, C), …
        keep: … and those of them that are kept.
        lengths: positions of each when it is completed.
        out: a .csv file.
        particles: K.
        draws: of each series.
        seed: of all noise.
        as_json: whether JSON is printed.
    """
    import torch

    from pyro_delta.data.captions import describe
    from pyro_delta.data.condition import KEY
    from pyro_delta.data.series.files import save_csv
    from pyro_delta.data.series.picture import save_bands
    from pyro_delta.diagnostics.series.completing import BAND, complete, scores
    from pyro_delta.report.progress import counting

    done = []
    with counting("completing", len(found)) as advance:
        for i, (x_tc, keep_tc, length) in enumerate(zip(found.x, keep, lengths, strict=True)):
            condition = found.extras[KEY][i : i + 1] if KEY in found.extras else None
            options = {"particles": particles, "completions": draws, "seed": seed}
            done.append(complete(loaded.vae, x_tc, keep_tc, length, condition=condition, **options))
            advance(1)
    inside = torch.arange(spec.length) < torch.tensor(lengths).unsqueeze(-1)
    hidden = known & ~keep & inside.unsqueeze(-1)
    x, kept, unseen = (list(values.numpy()) for values in (found.x.double(), keep, hidden))
    judged = scores(done, x, kept, unseen, spec.location, spec.scale)
    titles = [f"{name.rpartition('/')[2]}/{draw}" for name in names for draw in range(draws)]
    save_csv(spec, torch.cat([one.series for one in done]), out, titles)
    drawn = [one.series.double().numpy() for one in done]
    picture = out.with_suffix(".png")
    save_bands(spec, drawn, x, kept, unseen, BAND, picture)
    caption = (
        f"Each row a series, each column a variable: median and band of {BAND[1] - BAND[0]:.0%} of {draws} "
        "completions; dots are kept numbers, crosses hidden ones."
    )
    describe(picture, caption)
    sizes = [one.effective_sample_size for one in done]
    alike = "their completions are alike, and far from draws given what is kept: take more --particles."
    warning = too_few(sizes, "series", alike)
    if as_json:
        facts = {
            "file": str(out),
            "caption": caption,
            "warning": warning,
            "draws": draws,
            "particles": particles,
            "seed": seed,
            **judged,
        }
        print_json({**facts, "effective_sample_size": dict(zip(names, sizes)), **loaded.facts})
        return
    click.echo(f"{out}: effective sample size of {particles}: " + ", ".join(f"{size:.1f}" for size in sizes))
    click.echo(f"{picture}: {caption}")
    if judged["hidden"]:
        click.echo(
            f"{judged['hidden']} numbers that are known, in scales of their variables: error {judged['rmse']:.4f} "
            f"(last value {judged['rmse_last_value']:.4f}, interpolated {judged['rmse_interpolated']:.4f}), CRPS "
            f"{judged['crps']:.4f} ({judged['crps_last_value']:.4f}, {judged['crps_interpolated']:.4f}); the band of "
            f"{BAND[1] - BAND[0]:.0%} holds {judged['in_band']:.1%}"
        )
    if warning:
        click.echo(warning)
