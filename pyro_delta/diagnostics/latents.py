"""Files of latents for other tools: what `posterior_data` gives, by the ending of a name."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_delta.diagnostics.quiet_arviz import as_tree
from pyro_delta.errors import UserError
from pyro_delta.files import written_whole

if TYPE_CHECKING:
    import pandas

TABLES = (".csv", ".parquet")
"""Endings of tables, which have a row for each datum, and no samples."""


def check_ending(path: Path, draws: int) -> None:
    """Refuses, before any work is done, a name that latents are not written to.

    Raises:
        UserError: if it ends in another way, a table is to have several samples, or Parquet cannot be written here.
    """
    if path.suffix.lower() not in SAVERS:
        raise UserError(f"{str(path)!r} does not say what to write; give a name that ends in {', '.join(SAVERS)}.")
    if path.suffix.lower() in TABLES and draws > 1:
        raise UserError(f"a table has no room for {draws} samples of each posterior; write them to .nc or .npz.")
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None and find_spec("fastparquet") is None:
        raise UserError(
            f"writing {path} takes pyarrow; install the extra (pip install 'pyro-delta[parquet]'), or write .csv."
        )


def save(data: Any, path: Path) -> None:
    """Writes what `posterior_data` gives, whole or not at all.

    - `.nc`: NetCDF, which `arviz.from_netcdf` and `xarray.open_datatree` read.
    - `.npz`: arrays of each site, such as `z` (draws, N, n, d), `z_mean` and `z_scale` (N, n, d); `datum`, the names;
      `starts`, `label`, `length` and `condition`, if there are any.
    - `.csv`, `.parquet`: a row for each datum; `datum`, the latter three, and means and scales by step and dimension,
      such as `z_mean_3_0`; nothing at steps behind the end of a datum.
    """
    content = SAVERS[path.suffix.lower()](as_tree(data))
    with written_whole(path) as file:
        file.write(content)


def _netcdf(tree: Any) -> bytes:
    # By way of memory, for HDF5 does not survive a full disk: it crashes when it closes what it could not write.
    whole = io.BytesIO()
    compressed = {
        node.path: {name: {"zlib": True} for name, values in node.data_vars.items() if values.dtype.kind in "iuf"}
        for node in tree.leaves
    }
    tree.to_netcdf(whole, engine="h5netcdf", encoding=compressed)
    return whole.getvalue()


def _npz(tree: Any) -> bytes:
    samples = {name: values.values[0] for name, values in tree["posterior"].data_vars.items()}  # of the one chain
    constant = {name: values.values for name, values in tree["constant_data"].data_vars.items()}
    arrays = {"datum": tree["posterior"]["datum"].values, **samples, **constant}
    plain: dict[str, Any] = {name: _plain(values) for name, values in arrays.items()}
    whole = io.BytesIO()
    np.savez_compressed(whole, **plain)
    return whole.getvalue()


def _plain(values: np.ndarray) -> np.ndarray:
    """Text as NumPy's own, which needs no pickle to be read."""
    return values if values.dtype.kind in "iufb" else values.astype(str)


def table(tree: Any) -> pandas.DataFrame:
    """Means and scales, a row for each datum."""
    import pandas

    constant = tree["constant_data"]
    columns = {"datum": constant["datum"].values}
    first = [name for name in ("label", "length", "condition") if name in constant and constant[name].ndim == 1]
    columns |= {name: constant[name].values for name in first}
    for name, values in constant.data_vars.items():
        if name not in (*first, "starts"):
            for place in np.ndindex(values.shape[1:]):
                columns["_".join(map(str, (name, *place)))] = values.values[(slice(None), *place)]
    return pandas.DataFrame(columns)


def _csv(tree: Any) -> bytes:
    return table(tree).to_csv(index=False).encode()


def _parquet(tree: Any) -> bytes:
    whole = io.BytesIO()
    table(tree).to_parquet(whole, index=False)
    return whole.getvalue()


SAVERS: dict[str, Callable[[Any], bytes]] = {".nc": _netcdf, ".npz": _npz, ".csv": _csv, ".parquet": _parquet}
