"""`pyro-delta encode`."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_delta.cli.options import (
    check_apart,
    check_spares,
    check_writable,
    condition_option,
    data_argument,
    device_option,
    json_option,
    open_run,
    other_data_option,
    print_json,
    read_given,
    root_option,
    run_argument,
    seed_option,
    trust_option,
    weights_option,
)


@click.command()
@run_argument
@data_argument
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help=".nc, .npz, .csv or .parquet."
)
@click.option("--num", type=click.IntRange(min=1), help="The first so many data (default: all).")
@click.option("--draws", type=click.IntRange(min=1), default=1, show_default=True, help="Samples of each posterior.")
@weights_option
@condition_option
@seed_option
@device_option
@root_option
@other_data_option
@trust_option
@json_option
def encode(
    run: Path,
    given: str,
    out: Path,
    num: int | None,
    draws: int,
    weights: str,
    condition: str | None,
    seed: int,
    device: str,
    data_root: str | None,
    other_data: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Latents of DATA under the guide of RUN: means, scales and samples, in the form that the ending of FILE says.

    With labels, and the names of the files that data came from; files of a folder have those of the run's classes that
    they lie in folders of. NetCDF for ArviZ and xarray; NPZ, arrays for NumPy;
    CSV or Parquet, a table of means and scales, a row for each datum, for pandas. DATA: train, validation or test, or a
    file or folder of the same kind, such as a folder of pictures.

    \b
    pyro-delta encode runs/first test --draws 10 --out z.nc
    pyro-delta encode runs/first test --out z.csv
    python -c "import arviz; print(arviz.from_netcdf('z.nc').posterior['z'])"
    python -c "import pandas; print(pandas.read_csv('z.csv').groupby('label').mean(numeric_only=True))"
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta.data.condition import condition_of
    from pyro_delta.diagnostics.latents import check_ending, save
    from pyro_delta.diagnostics.posterior import posterior_data
    from pyro_delta.report.progress import counting

    check_ending(out, draws)
    check_writable(out)
    check_apart(out, given)
    if out.exists():
        check_spares(out, [run])
    loaded = open_run(run, device, weights=weights, trust=trust)
    found, names, classes = read_given(loaded, given, num, data_root, other_data, condition)
    starts, told = loaded.vae.model.prior.starts, condition_of(loaded.spec)
    with counting("encoding", len(found)) as advance:
        data = posterior_data(
            loaded.vae,
            found,
            draws=draws,
            names=names,
            classes=classes,
            condition=told,
            starts=starts,
            seed=seed,
            advance=advance,
        )
    save(data, out)
    if as_json:
        print_json({"file": str(out), "data": len(found), "seed": seed, **loaded.facts})
    else:
        click.echo(str(out))
