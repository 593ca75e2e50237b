"""Series of real numbers: their distribution, the GRU pair over them, files, and runs of them by the commands."""

import io
import json
import math
import re
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import SPECS, StepsPrior, random_normal, randomise
from PIL import Image
from scipy import integrate, stats
from test_cli import call
from torch import Tensor

import pyro_delta
from pyro_delta import config
from pyro_delta.build import build
from pyro_delta.data import ArraySpec, load
from pyro_delta.data.series import SeriesSpec
from pyro_delta.data.series.files import read_file
from pyro_delta.data.series.own import _by_number
from pyro_delta.data.splits import Split
from pyro_delta.data.values import read_numbers
from pyro_delta.diagnostics.bounds import encode
from pyro_delta.diagnostics.series.completing import (
    Completions,
    _Latents,
    complete,
    crps,
    interpolated,
    last_value,
    scores,
    second_halves,
)
from pyro_delta.distributions.numbers import AutoregressiveNumbers
from pyro_delta.errors import UserError
from pyro_delta.guides import GRUGuide
from pyro_delta.models import AR1Prior, DeltaVAE, GRULikelihood
from pyro_delta.rate import ar1_committed_rate
from pyro_delta.vae import VAE

T, C = 5, 3
NAMES, LOCATION, SCALE = ("a", "b", "c"), (0.5, -2.0, 10.0), (1.0, 0.25, 4.0)
ROUNDED = SeriesSpec(T, NAMES, LOCATION, SCALE, 0.125)
DENSE = SeriesSpec(T, NAMES, LOCATION, SCALE)
KINDS = pytest.mark.parametrize("spec", [ROUNDED, DENSE], ids=["rounded", "density"])
STARTS = {"a step a position": [0, 1, 2, 3, 4], "above zero": [1, 3], "unsorted": [3, 0, 2]}


def series(spec: SeriesSpec, count: int, seed: int = 0) -> Tensor:
    """(count, T, C) around the locations, in double precision, rounded to the resolution."""
    x = random_normal(count, *spec.shape, seed=seed) * torch.tensor(spec.scale) + torch.tensor(spec.location)
    return x if spec.resolution is None else torch.round(x / spec.resolution) * spec.resolution


def pair(spec: SeriesSpec, starts: list[int] = STARTS["above zero"], **options: Any) -> VAE:
    """Model and guide in double precision, at weights that hide nothing."""
    prior = StepsPrior(starts, [0.5, 0.8])
    likelihood = GRULikelihood(spec, prior, hidden=4, **options)
    return randomise(VAE(DeltaVAE(prior, likelihood), GRUGuide(spec, prior, hidden=4)))


def latents(vae: VAE, count: int, seed: int = 0) -> Tensor:
    return random_normal(count, *vae.model.prior().event_shape, seed=seed)


# --- A number ---


class Fixed(torch.nn.Module):
    """A network that says the same of every number."""

    def __init__(self, parameters: Tensor, resolution: float | None) -> None:
        super().__init__()
        self.parameters_p, self.resolution, self.shape = parameters, resolution, (1, 1)

    def forward(self, x: Tensor, z_bnd: Tensor) -> Tensor:
        return self.parameters_p.expand(*x.shape, -1)

    def start(self, z_bnd: Tensor) -> int:
        return len(z_bnd)

    def step(self, state: int, i: int, previous_b: Tensor | None) -> Tensor:
        return self.parameters_p.expand(state, -1)


def number(logits: list[float], means: list[float], log_scales: list[float], resolution: float | None) -> Any:
    """The distribution of one number, of batch shape ()."""
    parameters = torch.tensor([*logits, *means, *log_scales], dtype=torch.float64)
    return AutoregressiveNumbers(Fixed(parameters, resolution), torch.zeros(1, 1, dtype=torch.float64))


MIXTURES = {
    "one": ([0.0], [0.3], [-1.0]),
    "narrow": ([0.0, 1.0], [0.25, -1.3], [-9.0, -5.0]),
    "wide": ([0.0, -2.0, 1.0], [-3.0, 0.1, 2.0], [0.5, -2.0, 1.5]),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_bins_are_differences_of_the_cumulative_distribution_and_sum_to_one(name: str) -> None:
    """By SciPy's logistic; the sum over all bins that hold anything is exhaustive."""
    logits, means, log_scales = MIXTURES[name]
    r = 0.25
    p = number(logits, means, log_scales, r)
    bins = torch.arange(-1200, 1201) * r
    log_p = p.log_prob(bins.double().reshape(-1, 1, 1)) + math.log(r)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    weights = np.exp(logits) / np.exp(logits).sum()
    for x, found in list(zip(bins.tolist(), log_p.tolist()))[1180:1220]:
        edges = [stats.logistic(m, math.exp(s)).cdf([x - r / 2, x + r / 2]) for m, s in zip(means, log_scales)]
        expected = sum(w * (above - below) for w, (below, above) in zip(weights, edges))
        if expected > 1e-6:  # below, the difference cancels, and is no witness
            assert math.exp(found) == pytest.approx(expected, rel=1e-9)
    between = p.log_prob((bins[:50] + 0.1).double().reshape(-1, 1, 1)) + math.log(r)
    torch.testing.assert_close(between, log_p[:50])  # constant over a bin


@pytest.mark.parametrize("name", MIXTURES)
def test_without_a_resolution_it_is_a_density(name: str) -> None:
    logits, means, log_scales = MIXTURES[name]
    dense, fine = number(logits, means, log_scales, None), number(logits, means, log_scales, 1e-7)

    def density(x: float) -> float:
        return dense.log_prob(torch.full((1, 1), x, dtype=torch.float64)).exp().item()

    edges = sorted({m + k * math.exp(s) for m, s in zip(means, log_scales) for k in (-40, -5, 0, 5, 40)})
    total = sum(integrate.quad(density, low, high)[0] for low, high in pairwise(edges))
    assert total == pytest.approx(1, abs=1e-6)
    for x in (-1.3, 0.0, 2.0):
        at = torch.full((1, 1), x, dtype=torch.float64)
        assert fine.log_prob(at).item() == pytest.approx(dense.log_prob(at).item(), rel=1e-3)


@pytest.mark.parametrize("resolution", [None, 1e-3, 1.0])
def test_no_extreme_is_infinite(resolution: float | None) -> None:
    """In single precision, as in training: values and slopes."""
    for mean, log_scale, x in ((0, -7, 1e4), (0, 7, -1e4), (1e4, -7, 0), (0.5, -20, 0.0), (0.5, 10, 0.0)):
        parameters = torch.tensor([0.0, 0.1, mean, -mean, log_scale, log_scale], requires_grad=True)
        p = AutoregressiveNumbers(Fixed(parameters, resolution), torch.zeros(1, 1))
        log_p = p.log_prob(torch.full((1, 1), float(x)))
        (slope,) = torch.autograd.grad(log_p, parameters)
        assert log_p.isfinite()
        assert slope.isfinite().all()


def test_draws_have_the_probabilities_that_are_scored() -> None:
    logits, means, log_scales = MIXTURES["wide"]
    torch.manual_seed(0)
    drawn = number(logits, means, log_scales, 1.0).sample((40_000,)).flatten()
    assert torch.equal(drawn, drawn.round())
    for x in range(-8, 9):
        p = number(logits, means, log_scales, 1.0).log_prob(torch.full((1, 1), float(x))).exp().item()
        share = (drawn == x).double().mean().item()
        assert abs(share - p) < 5 * math.sqrt(p / len(drawn)) + 1e-4
    for value in (0.0, 1.0):  # the ends of noise draw numbers, too
        ends = torch.full((1, 1, 2), value, dtype=torch.float64)
        assert number(logits, means, log_scales, None).sample(uniforms=ends).isfinite().all()


# --- The GRU pair ---


@KINDS
@pytest.mark.parametrize("name", STARTS)
def test_numbers_are_told_what_they_may_be(name: str, spec: SeriesSpec) -> None:
    """Bit for bit; series 1 stands by and must not move at all."""
    vae = pair(spec, STARTS[name])
    assert_causal(vae, spec, series(spec, 2))


def test_the_shipped_preset_is_causal() -> None:
    spec = SPECS["vowels"]
    assert isinstance(spec, SeriesSpec)
    settings = config.load_preset("vowels")
    assert_causal(randomise(build(settings, spec)), spec, series(spec, 2), places=range(0, spec.scored, 37))


def assert_causal(vae: VAE, spec: SeriesSpec, x: Tensor, places: Any = None) -> None:
    starts, z = vae.model.prior.starts, latents(vae, 2)
    rank, position_of = torch.arange(spec.scored), torch.from_numpy(spec.places()).flatten()
    with torch.no_grad():
        p = vae.model.likelihood(z)
        before, posterior = p.parameters_at(x), vae.guide.posterior(x).mean
        for place in range(spec.scored) if places is None else places:
            y = x.clone()
            y[0].view(-1)[place] += 1.0
            moved = (p.parameters_at(y) != before).any(-1).flatten(1)
            assert torch.equal(moved[0], rank > place), f"{place} moved {moved[0].nonzero().flatten().tolist()}"
            assert not moved[1].any()
            moved = (vae.guide.posterior(y).mean != posterior).any(-1)
            assert torch.equal(moved[0], starts <= position_of[place])
            assert not moved[1].any()
        for t, start in enumerate(starts.tolist()):
            other = z.clone()
            other[0, t] += 1.0
            moved = (vae.model.likelihood(other).parameters_at(x) != before).any(-1).flatten(1)
            assert torch.equal(moved[0], position_of >= start)


@KINDS
def test_a_missing_number_is_nothing_to_anybody(spec: SeriesSpec) -> None:
    """Whatever stands in its place, all is the same to the bit, and slopes are finite; a known one is heard."""
    vae, x = pair(spec), series(spec, 3)
    lengths = torch.tensor([5, 3, 4])
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[:, 1, 0] = True
    counted = mask & (torch.arange(T) < lengths[:, None])[..., None]
    z = latents(vae, 3)

    def said(x: Tensor) -> list[Tensor]:
        vae.zero_grad()
        q, p = vae.guide.posterior(x, lengths, mask), vae.model.likelihood(z, lengths, mask)
        (p.log_prob(x).sum() + q.log_prob(z).sum()).backward()
        slopes = [weight.grad for weight in vae.parameters() if weight.grad is not None]
        return [q.mean, q.variance, p.terms(x), p.log_prob(x), p.parameters_at(x), *slopes]

    plain = said(x)
    assert all(part.isfinite().all() for part in plain)
    assert torch.equal(plain[2].reshape(x.shape) != 0, counted)
    for value in (0.0, 1e9, math.nan, math.inf):
        assert all(map(torch.equal, said(torch.where(counted, x, value)), plain))
    other = x.clone()
    other[:, 1, 0] += 1.0
    assert not any(torch.equal(one, two) for one, two in zip(said(other)[:4], plain[:4]))
    drawn = vae.model.likelihood(z, lengths, mask).sample()
    assert torch.equal(~drawn.isnan(), counted)
    assert vae.model.likelihood(z, lengths, mask).expand((2, 3)).log_prob(drawn).isfinite().all()


@KINDS
def test_a_series_is_what_its_length_says(spec: SeriesSpec) -> None:
    """A network of that length has the same weights, but for those of later places."""
    vae, x, length = pair(spec, STARTS["a step a position"]), series(spec, 1), 3
    short_spec = SeriesSpec(length, NAMES, LOCATION, SCALE, spec.resolution)
    short, theirs = pair(short_spec, STARTS["a step a position"][:length]), vae.state_dict()
    sizes = short.state_dict()
    short.load_state_dict({name: theirs[name][tuple(map(slice, values.shape))] for name, values in sizes.items()})
    z, lengths = latents(vae, 1), torch.tensor([length])
    expected = short.model.likelihood(z[:, :length]).log_prob(x[:, :length])
    torch.testing.assert_close(vae.model.likelihood(z, lengths).log_prob(x), expected)
    q, alone = vae.guide.posterior(x, lengths).base_dist, short.guide.posterior(x[:, :length]).base_dist
    torch.testing.assert_close(q.loc[:, :length], alone.loc)
    assert (q.loc[:, length:] == 0).all()
    assert (q.scale[:, length:] == 1).all()


@KINDS
def test_cached_draws_are_naive_ones(spec: SeriesSpec) -> None:
    """Number by number from whole passes, with the same noise: all, and around what is kept or missing."""
    vae = pair(spec)
    z, x_kept = latents(vae, 4), series(spec, 4)
    generator = torch.Generator().manual_seed(2)
    kept, mask = (torch.rand(x_kept.shape, generator=generator) < part for part in (0.4, 0.7))
    lengths = torch.tensor([1, 5, 3, 2])
    for keep, given in ((None, (None, None)), ((x_kept, kept), (None, None)), ((x_kept, kept), (lengths, mask))):
        p = vae.model.likelihood(z, *given)
        uniforms = p.noise(4)
        assert uniforms.shape == (4, T, C, 2)
        x = torch.full((4, T * C), math.nan, dtype=torch.float64)
        counted = torch.ones(x.shape, dtype=torch.bool) if p.counted is None else p.counted.flatten(1)
        for i in range(T * C):
            parameters_b = p.parameters_at(x.reshape(4, T, C)).flatten(1, 2)[:, i]
            logits, mean, log_scale = parameters_b.chunk(3, -1)
            u, v = uniforms.flatten(1, 2)[:, i].unbind(-1)
            edges = logits.softmax(-1).cumsum(-1)
            pick = torch.searchsorted(edges, u[:, None].contiguous(), right=True).clamp_max(4)
            drawn = (mean + log_scale.exp() * torch.log(v / (1 - v))[:, None]).gather(1, pick)[:, 0]
            if spec.resolution is not None:
                drawn = torch.round(drawn / spec.resolution) * spec.resolution
            if keep is not None:
                drawn = torch.where(kept.flatten(1)[:, i], x_kept.flatten(1)[:, i], drawn)
            x[:, i] = torch.where(counted[:, i], drawn, math.nan)
        found = p.sample(uniforms=uniforms, keep=keep)
        torch.testing.assert_close(found, x.reshape(4, T, C), equal_nan=True)
    assert len(found[found.isfinite()].unique()) > 10


def test_the_last_number_that_is_known_is_carried() -> None:
    from pyro_delta.nn.sequences.tables import last_known

    nan = math.nan
    x_btk = torch.tensor([[[1.0, nan], [nan, nan], [3.0, 5.0], [4.0, nan], [nan, nan]]])
    assert last_known(x_btk).tolist() == [[[0, 0], [1, 0], [1, 0], [3, 5], [4, 5]]]


# --- The twin ---


@KINDS
def test_both_backends_are_one(spec: SeriesSpec) -> None:
    """The same numbers of the same weights: densities, gradients and draws, with lengths, and with what is missing."""
    jax = pytest.importorskip("jax")
    pytest.importorskip("flax")
    from pyro_delta.data import Split
    from pyro_delta.twin import build as twins
    from pyro_delta.twin.crosscheck import crosscheck
    from pyro_delta.twin.weights import load_weights

    sections = {
        "prior": {"program": "ar1", "dims": 2, "alpha": "0.3:0.9"},
        "likelihood": {"program": "gru", "hidden": 4},
        "guide": {"program": "gru", "hidden": 5},
    }
    settings = config.validate({"data": {}, "training": {"steps": 1}, **sections})
    vae = randomise(build(settings, spec))
    lengths, x = torch.tensor([5, 2, 4]), series(spec, 3)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    given = [{}, {"lengths": lengths}, {"lengths": lengths, "mask": mask}]
    with jax.enable_x64(True):
        for extras in given:
            split = Split(x, extras=extras)
            twin = twins.build(settings, spec, example=split.batch())
            found = crosscheck(vae, twin, split)
            assert found.failure is None
            assert max(term.difference for term in found.terms) < 1e-12
            load_weights(twin, vae.state_dict())
            z = latents(vae, 3)
            p = vae.model.likelihood(z, **extras)
            q = twin.model.likelihood(
                jax.numpy.asarray(z.numpy()), **{name: jax.numpy.asarray(v.numpy()) for name, v in extras.items()}
            )
            uniforms = p.noise(3)
            drawn = np.asarray(q.from_uniforms(jax.numpy.asarray(uniforms.numpy())))
            np.testing.assert_allclose(drawn, p.sample(uniforms=uniforms).numpy(), rtol=1e-9, atol=1e-9)
            assert np.isfinite(np.asarray(q.expand((2, 3)).log_prob(jax.numpy.asarray(drawn)))).all()


# --- Files ---

TABLE = """series,position,label,a,b
one,3,x,1.5,
one,4,x,,-2
one,6,x,0.25,3
two,0,y,,7
two,1,y,1,8
two,2,y,,
"""


def stripped(values: Any) -> list[Any]:
    """Numbers as lists, None where they are NaN."""
    return [None if value != value else value for value in np.asarray(values).ravel().tolist()]


def test_a_table_is_read(tmp_path: Path) -> None:
    """Positions that are left out are missing, and a series ends with the last that is known."""
    (tmp_path / "x.csv").write_text("\ufeff" + TABLE, encoding="utf-8")
    found = read_file(tmp_path / "x.csv")
    assert (found.names, found.titles, found.labels, found.split) == (("a", "b"), ["one", "two"], ["x", "y"], None)
    assert [values.shape for values in found.series] == [(4, 2), (2, 2)]
    assert stripped(found.series[0]) == [1.5, None, None, -2, None, None, 0.25, 3]
    assert stripped(found.series[1]) == [None, 7, 1, 8]


def test_numbers_of_tables_are_those_of_plain_text(tmp_path: Path) -> None:
    """With blanks around them, in all usual forms; nan is missing as an empty cell is, and positions may be large."""
    cells = ["1", " -2.5 ", "+.5e1", "6.E-1", "007", "nan", " NaN", "-nan", ""]
    rows = [f"s, {10**30 + place},{cell},0\n" for place, cell in enumerate(cells)]
    found = read_file(csv_of("series,position,a,b\n" + "".join(rows))(tmp_path))
    assert stripped(found.series[0][:, 0]) == [1, -2.5, 5, 0.6, 7, None, None, None, None]
    spaced = "series,label,split,a\ns, x, train,1\ns ,x,train,2\nt,x ,test,3\n"
    found = read_file(csv_of(spaced)(tmp_path))
    assert (found.titles, found.labels, found.split) == (["s", "t"], ["x", "x"], ["train", "test"])
    assert _by_number("nan") == (True, 0.0, "nan")
    assert sorted(["b", "10", "nan", "9", "1_0"], key=_by_number) == ["9", "10", "1_0", "b", "nan"]


def arrays(**more: Any) -> dict[str, Any]:
    x = np.arange(24.0).reshape(2, 4, 3)
    return {"x": x} | more


ARRAYS: dict[str, tuple[dict[str, Any], list[list[Any]]]] = {
    "x alone": (arrays(), [list(range(12)), list(range(12, 24))]),
    "lengths": (arrays(lengths=[2, 4]), [list(range(6)), list(range(12, 24))]),
    "a mask": (
        arrays(mask=np.arange(24).reshape(2, 4, 3) % 5 > 0, lengths=np.array([2, 1])),
        [[None, 1, 2, 3, 4, None], [12, 13, 14]],
    ),
    "rows": ({"x": np.arange(10).reshape(5, 2), "lengths": [2, 3]}, [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]),
    "NaN": ({"x": [[[1.0], [np.nan], [np.nan]], [[np.nan], [2], [np.nan]]]}, [[1], [None, 2]]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_read(name: str, tmp_path: Path) -> None:
    given, expected = ARRAYS[name]
    np.savez_compressed(tmp_path / "x.npz", **given, labels=[3, 10])
    found = read_file(tmp_path / "x.npz")
    assert [stripped(values) for values in found.series] == expected
    assert found.labels == ["3", "10"]
    assert found.names == tuple(f"x{i}" for i in range(found.series[0].shape[1]))


def csv_of(text: str | bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "x.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize("form", ["npz", "npy"])
def test_damaged_bits_of_arrays_are_told_or_harmless(form: str, tmp_path: Path) -> None:
    """Heads are parsed by tokenize, archives by zipfile: each has errors of its own."""
    path, saved, spec = tmp_path / f"x.{form}", io.BytesIO(), ArraySpec((3, 2))
    x = np.random.default_rng(0).normal(size=(2, 3, 2))
    np.savez(saved, x=x) if form == "npz" else np.save(saved, x)
    told = 0
    for bit in range(0, 8 * len(saved.getvalue()), 11):
        raw = bytearray(saved.getvalue())
        raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        try:
            read_file(path) if form == "npz" else read_numbers(spec, path, None)
        except UserError:
            told += 1
    assert told > 20


def npz_of(**given: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "x.npz", **given)
        return folder / "x.npz"

    return write


def pickled(folder: Path) -> Path:
    np.savez(folder / "x.npz", x=np.array([[1.0], [1.0, 2.0]], dtype=object), allow_pickle=True)
    return folder / "x.npz"


def named(name: str, content: bytes | None = b"") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        if content is not None:
            path.write_bytes(content)
        return path

    return write


HEAD = "series,a,b\n"
WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (csv_of(""), "x.csv is empty; give a table whose first line names the columns."),
    "a header alone": (csv_of(HEAD), "x.csv holds no series; give one at least."),
    "ragged": (csv_of(f"{HEAD}s,1,2\ns,1\n"), "line 3 of … x.csv has 2 cells, the first line 3; mend it."),
    "text": (csv_of(f"{HEAD}s,1,two\n"), "line 2 of … has 'two' in the column 'b', which is no number"),
    "infinite": (csv_of(f"{HEAD}s,inf,2\n"), "line 2 of … has 'inf' in the column 'a', which is no number; write it"),
    "beyond all": (csv_of(f"{HEAD}s,1,2\ns,1,1e400\n"), "line 3 of … has '1e400' in the column 'b', which is no"),
    "thousands": (csv_of(f"{HEAD}s,1,2\ns,1_000,2\n"), "line 3 of … has '1_000' in the column 'a', which is no number"),
    "wide digits": (csv_of(f"{HEAD}s,1,\uff12\n"), "line 2 of … has '\uff12' in the column 'b', which is no number"),
    "a word": (csv_of(f"{HEAD}s,1,-Infinity\n"), "line 2 of … has '-Infinity' in the column 'b', which is no number"),
    "a decimal comma": (csv_of(f'{HEAD}s,1,"2,5"\n'), "line 2 of … has '2,5' in the column 'b', which is no number"),
    "a position of thousands": (csv_of("series,position,a\ns,1_0,1\n"), "line 2 of … has the position '1_0'; give a"),
    "a position in wide digits": (csv_of("series,position,a\ns,\uff11,1\n"), "line 2 of … has the position '\uff11'"),
    "no series": (csv_of("a,b\n1,2\n"), "has no column 'series', which says which series a row is of; add it."),
    "semicolons": (csv_of("series;a\ns;1,5\n"), "has ';' between its cells; separate them by commas, with points in"),
    "no variable": (csv_of("series,label\ns,1\n"), "has no column of a variable; add one."),
    "a column twice": (csv_of("series,a,a\ns,1,2\n"), "has two columns 'a'; give each a name of its own."),
    "rows apart": (csv_of(f"{HEAD}s,1,2\nt,1,2\ns,1,2\n"), "line 4 of … goes on with series 's'; put its rows"),
    "positions that fall": (csv_of("series,position,a\ns,2,1\ns,1,1\n"), "line 3 of … has position 1 after 2"),
    "positions that are none": (csv_of("series,position,a\ns,1.5,1\n"), "has the position '1.5'; give a whole number."),
    "positions far apart": (csv_of("series,position,a\ns,0,1\ns,9999999,1\n"), "9999999 positions behind the first"),
    "two labels": (csv_of("series,label,a\ns,x,1\ns,y,1\n"), "series 's' of … has 2 values of 'label'; give it one."),
    "another split": (csv_of("series,split,a\ns,dev,1\n"), "has a series of split 'dev'; write train, validation or"),
    "nothing known": (csv_of(f"{HEAD}s,,\n"), "nothing is known of series 's'"),
    "UTF-16": (csv_of(HEAD.encode("utf-16")), "x.csv is not text in UTF-8; convert it."),
    "a quote": (csv_of(f'{HEAD}s,"1,2\n'), "is no table that can be read (unexpected end of data); separate its cells"),
    "NUL": (csv_of(f"{HEAD}s,\0,2\n"), "x.csv"),
    "missing": (named("y.csv", None), "cannot read … y.csv (No such file or directory); give a .csv or .npz file."),
    "another kind": (named("y.txt"), "y.txt is no table and no arrays of NumPy; give a .csv or .npz file."),
    "no archive": (named("y.npz", b"PK no more"), "y.npz holds no arrays that can be read"),
    "nothing": (named("y.npz"), "y.npz is no archive of arrays; give what np.savez(…, x=…) writes."),
    "a single array": (
        named("y.npz", b"\x93NUMPY\x01\0"),
        "y.npz is a single array, as np.save writes it; give what np.savez(…, x=…) writes.",
    ),
    "pickled": (pickled, "x.npz holds no arrays that can be read (Object arrays cannot be loaded when allow_pickle"),
    "a pickle": (named("y.npz", b"\x80\x04K\x03."), "y.npz is no archive of arrays; give what np.savez"),
    "a text": (named("y.npz", b"series,a\n"), "y.npz is no archive of arrays; give what np.savez"),
    "no x": (npz_of(y=np.zeros(3)), "unknown array of … 'y'"),
    "labels alone": (npz_of(labels=np.zeros(3)), "has no array 'x' of series; add it."),
    "words": (npz_of(x=np.array([["a"]])), "has 'x' of <U1, (1, 1); give real numbers (N, T, C)."),
    "complex": (npz_of(x=np.zeros((1, 1, 1), complex)), "has 'x' of complex128, (1, 1, 1)"),
    "rows without lengths": (npz_of(x=np.zeros((4, 2))), "has x of shape (4, 2) without lengths"),
    "lengths that do not sum": (npz_of(x=np.zeros((4, 2)), lengths=[1, 2]), "lengths of … sum to 3, and x has 4 rows"),
    "lengths below nothing": (npz_of(x=np.zeros((4, 2)), lengths=[-1, 5]), "have -1 among them; give 1 or more each."),
    "no positions": (npz_of(x=np.zeros((2, 0, 1))), "has x of shape (2, 0, 1), which has no positions; give (N, T, C)"),
    "lengths of nothing": (npz_of(x=np.zeros((2, 4, 1)), lengths=[0, 2]), "do not fit x (2, 4, 1); give 2, of 1 to 4."),
    "lengths too long": (npz_of(x=np.zeros((2, 4, 1)), lengths=[5, 2]), "do not fit x (2, 4, 1); give 2, of 1 to 4."),
    "lengths that are real": (npz_of(x=np.zeros((2, 4, 1)), lengths=[1.0, 2.0]), "the lengths of … are of float64"),
    "a mask of another shape": (npz_of(x=np.zeros((1, 4, 1)), mask=[True]), "the mask of … is of bool, (1,)"),
    "NaN where it is known": (
        npz_of(x=np.full((1, 2, 1), np.nan), mask=np.ones((1, 2, 1), bool)),
        "has NaN in x where the mask says that a number is known; change one of them.",
    ),
    "infinite x": (npz_of(x=np.full((1, 2, 1), np.inf)), "holds a number that is infinite in series '0'; take it out."),
    "labels of others": (npz_of(x=np.zeros((2, 4, 1)), labels=[1]), "has 1 entries of 'labels'; give 2."),
    "names twice": (npz_of(x=np.zeros((2, 4, 2)), names=["a", "a"]), "has the variables a, a; give each a name"),
    "no series in x": (npz_of(x=np.zeros((0, 4, 2))), "x.npz holds no series; give one at least."),
    "no variable in x": (npz_of(x=np.zeros((2, 4, 0))), "has the variables none; give each a name of its own."),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_hold_something_else(name: str, tmp_path: Path) -> None:
    write, words = WRONG[name]
    path = write(tmp_path)
    with pytest.raises(UserError) as caught:
        read_file(path)
    said = str(caught.value)
    assert re.search(".*".join(re.escape(part.strip()) for part in words.split("…")), said), said
    assert str(path) in said
    assert said.endswith(".")
    assert "\n" not in said


def test_what_is_shown_can_be_opened(tmp_path: Path) -> None:
    """To the bit, with what is missing, and with other variables' order."""
    for spec in (ROUNDED, DENSE):
        x = series(spec, 6).float()
        x[0, 2:], x[1, :, 1], x[2, 0] = math.nan, math.nan, math.nan
        spec.show(x, tmp_path / "x.csv", columns=3)
        back, names = spec.open(tmp_path / "x.csv")
        assert torch.equal(back.nan_to_num(9e9), x.nan_to_num(9e9))
        assert back.dtype == torch.float32
        assert names == [f"x.csv/{number}" for number in range(6)]
        assert len(spec.open(tmp_path / "x.csv", 2)[0]) == 2
        beside = spec.beside(back)
        assert beside["lengths"].tolist() == [2, 5, 5, 5, 5, 5]
        inside = (torch.arange(T) < beside["lengths"][:, None])[..., None]
        assert torch.equal(beside["mask"], ~x.isnan() & inside)
        assert not beside["x"][~beside["mask"]].any()
        assert "mask" not in spec.beside(back[3:])
        assert "mask" not in spec.beside(back[:1])  # what is behind the end is not missing
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size[0] > picture.size[1] > 0
    with pytest.raises(UserError, match=r"^cannot write \S+x.csv \(No such file or directory\); give another path\.$"):
        DENSE.show(x, tmp_path / "nowhere" / "x.csv", columns=1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("series,a,b\ns,1,2\n", "has the variables a, b, and this model a, b, c; give these."),
        ("series,a,b,d\ns,1,2,3\n", "has the variables a, b, d, and this model a, b, c; give these."),
        (
            "series,a,b,c\n" + "s,1,2,3\n" * 6,
            "series 's' of … has 6 positions, and series of this model 5 at most; cut",
        ),
        (
            "series,a,b,c\ns,123456789.5,2,3\n",
            "has 123456790 of 'a', which single precision does not hold finely enough",
        ),
        ("series,a,b,c\ns,1,2,1e300\n", "has 1e+300 of 'c', which single precision does not hold"),
    ],
)
def test_series_of_another_model(text: str, sentence: str, tmp_path: Path) -> None:
    path = csv_of(text)(tmp_path)
    with pytest.raises(UserError) as caught:
        ROUNDED.open(path)
    assert re.search(".*".join(re.escape(part.strip()) for part in sentence.split("…")), str(caught.value))


def test_columns_are_found_by_their_names(tmp_path: Path) -> None:
    path = csv_of("c,series,a,b\n3,s,1,2\n")(tmp_path)
    assert ROUNDED.open(path)[0][0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"length": 0}, "data of shape (0, 3) hold nothing"),
        ({"names": ()}, "data of shape (5, 0) hold nothing"),
        ({"location": (0.0,)}, "3 variables do not fit 1 locations and 3 scales; give one of each."),
        ({"scale": (1.0, 0.0, 1.0)}, "'b' has location … and scale 0 in single precision; multiply it by a constant"),
        ({"scale": (1.0, 1.0, 1e-40)}, "'c' has location … and scale 9.99995e-41 in single precision; mul"),
        ({"scale": (1.0, 1e31, 1.0)}, "'b' has location … and scale 1e+31 in single precision"),
        ({"location": (math.nan,) * 3}, "'a' has location nan and scale … so that they are finite"),
        ({"location": (0.0, 0.0, 1e300)}, "'c' has location inf and scale"),
        ({"resolution": 0.0}, "resolution 0.0 is none; give a finite number above 0, or leave it out."),
        ({"resolution": 1e-40}, "resolution 1e-40 is too fine for 'a' of scale"),
        ({"resolution": 1e40}, "resolution 1e+40 is too coarse for 'a' of scale"),
    ],
)
def test_specs_of_nothing(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        SeriesSpec(**{"length": T, "names": NAMES, "location": LOCATION, "scale": SCALE, **fields})
    assert re.search(".*".join(map(re.escape, sentence.split("…"))), str(caught.value))


# --- Data ---


def own(folder: Path, count: int = 12, **more: Any) -> Path:
    """Random walks in two variables, some numbers of which are missing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 6, 2)).cumsum(1) * [1, 50] + [3, 700]
    x[rng.random(x.shape) < 0.2] = np.nan
    x[:, 0] = [3.1, 702.5]  # known, and alike
    lengths = rng.integers(2, 7, count)
    np.savez(folder / "own.npz", x=x, lengths=lengths, names=["low", "high"], **more)
    return folder / "own.npz"


def test_own_series_become_splits(tmp_path: Path) -> None:
    path = own(tmp_path, labels=["a", "b"] * 6)
    data = load(f"series:{path}", resolution=0.5)
    assert [len(getattr(data, part)) for part in ("train", "validation", "test")] == [10, 1, 1]
    assert data.classes == ("a", "b")
    assert data.train.extras.keys() == {"lengths", "mask"}
    assert data.spec.names == ("low", "high")
    every = [getattr(data, part) for part in ("train", "validation")]
    known = torch.cat([part.x[part.extras["mask"]].reshape(-1) for part in every])
    x = torch.cat([torch.where(p.extras["mask"], p.x, math.nan) for p in every]).double().flatten(0, 1)
    assert np.nanmean(x.numpy(), 0) == pytest.approx(data.spec.location, abs=0.3)  # of what was not rounded
    assert np.nanstd(x.numpy(), 0) == pytest.approx(data.spec.scale, rel=0.05)
    assert torch.equal(known, (known / 0.5).round() * 0.5)
    assert load(f"series:{path}", seed=3).spec == load(f"series:{path}", seed=4).spec


def test_a_file_says_its_splits(tmp_path: Path) -> None:
    given = np.array(["train"] * 6 + ["validation"] * 2 + ["test"] * 4)
    path = own(tmp_path, split=given)
    data = load(f"series:{path}")
    assert [len(getattr(data, part)) for part in ("train", "validation", "test")] == [6, 2, 4]
    assert len(load(f"series:{path}", validation=1).validation) == 1
    with pytest.raises(UserError, match=r"own.npz has 2 validation series, not 3; ask for 1 to 2\."):
        load(f"series:{path}", validation=3)
    for split, sentence in (
        (["train"] * 12, "own.npz has 0 series of the split test; give 1 at least."),
        (["train"] + ["test"] * 11, "own.npz has 1 series of the split train; give 2 at least."),
    ):
        with pytest.raises(UserError, match=sentence):
            load(f"series:{own(tmp_path, split=split)}")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"x": np.random.default_rng(0).normal(size=(2, 4, 1))}, "has 2 series, and each of three splits needs one"),
        ({"x": np.random.default_rng(0).normal(size=(1, 4, 1))}, "has 1 series, and each of three splits needs one"),
        ({"x": np.full((9, 4, 1), 2.5)}, "'x0' is always 2.5 in the training data of"),
        ({"x": np.stack([np.full((9, 4), np.nan), np.random.default_rng(0).normal(size=(9, 4))], -1)},
         "'x0' is never known in the training data of"),
        ({"x": 1e9 + np.random.default_rng(0).normal(size=(9, 4, 1))}, "which single precision does not hold finely"),
    ],
)  # fmt: skip
def test_series_that_cannot_be_learned_from(given: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(f"series:{npz_of(**given)(tmp_path)}")
    assert sentence in str(caught.value)


def test_a_resolution_that_leaves_one_value_is_refused(tmp_path: Path) -> None:
    """There would be nothing to learn, at 0 bits a number."""
    path = npz_of(x=np.random.default_rng(0).uniform(size=(9, 4, 1)))(tmp_path)
    with pytest.raises(UserError, match=r"data\.resolution=100 rounds all of 'x0' to 0 in the .*; give a finer one\."):
        load(f"series:{path}", resolution=100.0)
    assert set(load(f"series:{path}", resolution=1.0).train.x.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("unit", [1e-320, 1e-200, 1e-40, 1e-29, 1e29, 1e40, 1e300])
def test_a_unit_is_reckoned_with_or_refused(unit: float, tmp_path: Path) -> None:
    """The bound in numbers of the unit is that of the same numbers in another, and nothing warns."""
    x = np.random.default_rng(0).normal((0, 5), size=(9, 4, 2))
    plain = load(f"series:{npz_of(x=x)(tmp_path)}")
    path = npz_of(x=x * [1, unit], names=["a", "b"])(tmp_path)
    if not 1e-30 < unit < 1e30:
        with pytest.raises(UserError, match=r"'b' has location \S+ and scale \S+ in single precision; multiply it by"):
            load(f"series:{path}")
        return
    data = load(f"series:{path}")
    assert data.spec.scale == pytest.approx(tuple(np.array(plain.spec.scale) * [1, unit]), rel=1e-6)
    found = [pair(each.spec).float().model.likelihood(latents(pair(each.spec), 7).float()) for each in (plain, data)]
    nats = [p.terms(each.train.x) for p, each in zip(found, (plain, data))]
    shift = torch.tensor([0.0, math.log(unit)]).repeat(4)
    torch.testing.assert_close(nats[1] + shift, nats[0], rtol=1e-3, atol=1e-3)
    assert found[1].sample().isfinite().all()


def utterances() -> list[np.ndarray]:
    """Of two speakers, 12 coefficients of some frames each."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(7 + i % 4, 12)).round(4) for i in range(14)]


def as_ts(found: list[np.ndarray]) -> str:
    lines = [":".join(",".join(map(str, column)) for column in x.T) + f":{1 + i % 2}" for i, x in enumerate(found)]
    return "\n".join(["# words", "@problemName V", "@data", *lines, ""])


def as_ae(found: list[np.ndarray]) -> str:
    return "".join("".join(" ".join(map(str, frame)) + " \n" for frame in x) + "\n" for x in found)


def write_vowels(folder: Path) -> tuple[Path, Path]:
    """Both layouts, of the same utterances: those of speaker 1 are the even ones."""
    ts, ae = folder / "ts" / "vowels", folder / "ae"
    ts.mkdir(parents=True)
    ae.mkdir()
    found = utterances()
    (ts / "JapaneseVowels_TRAIN.ts").write_text(as_ts(found[:10]))
    (ts / "JapaneseVowels_TEST.ts").write_text(as_ts(found[10:]))
    (ae / "ae.train").write_text(as_ae(found[:10:2] + found[1:10:2]))
    (ae / "ae.test").write_text(as_ae(found[10::2] + found[11::2]))
    (ae / "size_ae.train").write_text("5 5\n")
    (ae / "size_ae.test").write_text("2 2")
    return folder / "ts", ae


def test_vowels_of_both_archives_are_the_same(tmp_path: Path) -> None:
    ts, ae = (load("vowels", root=root, validation=2) for root in write_vowels(tmp_path))
    assert ts.spec == ae.spec
    assert ts.spec.shape == (10, 12)
    assert ts.spec.resolution == 0.01
    assert (ts.classes, len(ts.train), len(ts.validation), len(ts.test)) == (("1", "2"), 8, 2, 4)

    def told(data: Any) -> set[tuple[bytes, int, int]]:
        parts = [data.train, data.validation]
        return {
            (x.numpy().tobytes(), int(y), int(n))
            for part in parts
            for x, y, n in zip(part.x, part.labels, part.extras["lengths"])
        }

    assert told(ts) == told(ae)
    expected = np.round(utterances()[0] / 0.01) * 0.01
    assert any(np.allclose(np.frombuffer(x, np.float32).reshape(10, 12)[:7], expected) for x, _, _ in told(ts))


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("ae.train", lambda text: text.replace("\n", "\nx", 1), "line 2 of"),
        ("ae.train", lambda text: text.replace(" ", " 1 ", 1), "coefficients of each frame; give the file as the"),
        ("ae.train", lambda text: text + text, "counts 10 utterances, and … has 20; mend one."),
        ("size_ae.test", lambda text: "two", "line 1 of"),
        ("ae.test", lambda text: "", "counts 4 utterances, and … has 0; mend one."),
        ("ae.test", None, "there are no vowels in … put JapaneseVowels_TRAIN.ts and JapaneseVowels_TEST.ts there"),
        ("size_ae.test", None, "cannot read"),
    ],
)
def test_vowels_that_are_damaged(name: str, change: Callable[[str], str] | None, sentence: str, tmp_path: Path) -> None:
    _, folder = write_vowels(tmp_path)
    if change is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(change((folder / name).read_text()))
    with pytest.raises(UserError) as caught:
        load("vowels", root=folder, validation=2)
    said = str(caught.value)
    assert re.search(".*".join(re.escape(part.strip()) for part in sentence.split("…")), said), said


def test_ts_files_that_are_damaged(tmp_path: Path) -> None:
    ts, _ = write_vowels(tmp_path)
    path = ts / "vowels" / "JapaneseVowels_TEST.ts"
    whole = path.read_text()
    for text in (whole.replace(",", ",,", 1), whole.replace(":", ":1:", 1), whole.replace(",", ":", 1), "@data\n", ""):
        path.write_text(text)
        with pytest.raises(UserError, match=r"line \d+ of \S+JapaneseVowels_TEST.ts is not 12 coefficients of each"):
            load("vowels", root=ts, validation=2)
    path.write_bytes(b"@data\n\xff\xfe")
    with pytest.raises(UserError, match="is not text in UTF-8"):
        load("vowels", root=ts, validation=2)


# --- Completing ---


def exact(vae: VAE, x: Tensor, keep: Tensor, draws: int) -> tuple[Tensor, Tensor, float]:
    """So many draws of everything from the model alone, with their weights given what is kept, and how many count."""
    torch.manual_seed(7)
    with torch.no_grad():
        p = vae.model.likelihood(vae.model.prior().sample((draws,)))
        drawn = p.sample(keep=(x, keep))
        weight = torch.softmax((p.terms(drawn) * keep.flatten()).sum(-1), 0)
    return drawn, weight, 1 / weight.square().sum().item()


SMALL = SeriesSpec(4, ("a", "b"), (0.0, 0.0), (1.0, 1.0))
KEPT = {
    "forecast": [[1, 1], [1, 1], [0, 0], [0, 0]],
    "holes": [[1, 0], [0, 1], [1, 0], [1, 1]],
    "nothing": [[0, 0], [0, 0], [0, 0], [0, 0]],
}


def telling(conditioning: str = "causal") -> VAE:
    """A model whose latents matter much, and a guide that is far off."""
    prior = AR1Prior(SMALL, dims=1, alpha=0.8)
    likelihood = GRULikelihood(SMALL, prior, hidden=4, conditioning=conditioning)
    vae = randomise(VAE(DeltaVAE(prior, likelihood), GRUGuide(SMALL, prior, hidden=4)))
    with torch.no_grad():
        vae.model.likelihood.network.latents.spread.weight.mul_(6)
        vae.model.likelihood.network.out.weight[5:10].mul_(3)
        vae.model.likelihood.network.out.bias[10:].sub_(1)
        vae.guide.encoder.out.bias[:1] += 1
    return vae


@pytest.mark.parametrize(("name", "conditioning"), [(name, "causal") for name in KEPT] + [("holes", "full")])
def test_completions_are_draws_given_what_is_kept(name: str, conditioning: str) -> None:
    """Against importance sampling by the prior alone; whatever stands where nothing is kept."""
    vae, keep, x = telling(conditioning), torch.tensor(KEPT[name]) == 1, 0.5 * series(SMALL, 1, seed=4)[0]
    drawn, weight, counts = exact(vae, x, keep, 20_000)
    done = complete(vae, torch.where(keep, x, 9e9), keep, 4, particles=8192, completions=8192, seed=1)
    assert torch.equal(done.series[:, keep], x[keep].expand(8192, -1))
    assert 500 < done.effective_sample_size <= 8192
    several = min(counts, done.effective_sample_size)
    for t, c in (~keep).nonzero().tolist():
        order = drawn[:, t, c].argsort()
        below = weight[order].cumsum(0)
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            edge = drawn[order[torch.searchsorted(below, share)], t, c]
            found = (done.series[:, t, c] <= edge).double().mean().item()
            assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / several), (t, c, share, found)


def test_second_halves_are_drawn_given_what_is_known_of_the_first() -> None:
    """Of a series each, by its length; the middle of what is drawn against importance sampling by the prior alone."""
    vae, x = telling(), 0.5 * series(SMALL, 2, seed=4)
    mask = torch.ones(2, 4, 2, dtype=torch.bool)
    mask[1, 0, 1] = False
    split = Split(torch.where(mask, x, 9e9), extras={"lengths": torch.tensor([4, 3]), "mask": mask})
    found = second_halves(vae, split, completions=1000, particles=1024)
    data, drawn = found.x[:2], found.x[2:].unflatten(0, (1000, 2))
    first, second = mask & (torch.tensor([4, 3])[:, None] > torch.arange(4))[..., None], mask[0].clone()
    assert torch.equal(data.nan_to_num(), torch.where(first, x, 0.0))
    assert torch.equal(drawn[:, 0, :2], x[0, :2].expand(1000, 2, 2))
    assert torch.equal(drawn[:, 1, 0, 0], x[1, 0, 0].expand(1000))
    assert drawn[:, 1, 3].isnan().all()
    assert not drawn[:, 1, :3].isnan().any()
    assert len(found.effective_sample_sizes) == 2
    second[2:] = False
    given, weight, _ = exact(vae, x[0], second, 5000)
    for t, c in product((2, 3), (0, 1)):
        order = given[:, t, c].argsort()
        middle = given[order[torch.searchsorted(weight[order].cumsum(0), 0.5)], t, c]
        assert abs((drawn[:, 0, t, c] <= middle).double().mean().item() - 0.5) < 0.08


@pytest.mark.parametrize("end", [0, 2, 4])
def test_latents_that_are_proposed_are_weighed_to_the_prior(end: int) -> None:
    """Half of them come from a guide that is far off; the moments are those of the AR(1) process."""
    torch.manual_seed(0)
    vae, keep = telling(), (torch.arange(4) < end)[:, None].expand(4, 2)
    with torch.no_grad():
        latents_of = _Latents(vae, end, 4)
        z, log_weight = latents_of.proposed(vae, series(SMALL, 1)[0], keep, 100_000)
        z = latents_of.continued(z).squeeze(-1)
    weight = log_weight.softmax(0)
    assert (log_weight.std() > 0.3) == (end > 0)
    expected = 0.8 ** (torch.arange(4)[:, None] - torch.arange(4)).abs().double()
    assert (weight[:, None] * z).sum(0).abs().max() < 0.03
    assert (torch.einsum("k,ki,kj->ij", weight, z, z) - expected).abs().max() < 0.05


def test_completions_have_their_length_and_seed() -> None:
    vae = pair(DENSE, STARTS["a step a position"])
    vae.model.prior = AR1Prior(DENSE, dims=2, alpha=0.5).double()
    x, keep = series(DENSE, 1)[0], torch.arange(T)[:, None].expand(T, C) < 2
    done, again, other = (complete(vae, x, keep, 4, particles=64, completions=8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(~done.series.isnan(), (torch.arange(T) < 4)[:, None].expand(8, T, C))
    assert torch.equal(done.series.nan_to_num(0), again.series.nan_to_num(0))
    assert not torch.equal(done.series.nan_to_num(0), other.series.nan_to_num(0))


def test_scores_by_hand() -> None:
    nan = math.nan
    x = np.array([[1.0, 5.0], [2.0, 6.0], [4.0, 7.0], [8.0, 9.0]])
    keep = np.array([[1, 0], [0, 0], [1, 1], [0, 0]]) == 1
    assert last_value(x, keep, (0, 0)).tolist() == [[1, 7], [1, 7], [4, 7], [4, 7]]
    assert interpolated(x, keep, (0, 0)).tolist() == [[1, 7], [2.5, 7], [4, 7], [4, 7]]
    assert last_value(x, np.zeros((4, 2), bool), (3, -3)).tolist() == [[3, -3]] * 4
    draws = np.random.default_rng(0).normal(size=(7, 3))
    pairs = [abs(a - b) for i, a in enumerate(draws) for j, b in enumerate(draws) if i != j]
    expected = np.abs(draws - 0.3).mean(0) - 0.5 * np.mean(pairs, 0)
    assert crps(draws, np.full(3, 0.3)).tolist() == pytest.approx(expected.tolist())
    drawn = torch.from_numpy(x).expand(5, 4, 2) + torch.tensor([[-1.0], [-0.5], [0.0], [0.5], [1.0]])[:, None]
    done = Completions(torch.where(torch.from_numpy(keep), torch.from_numpy(x), drawn), 5.0)
    hidden = np.array([[0, 0], [1, 0], [0, 0], [1, 0]]) == 1
    found = scores([done], [np.where(keep | hidden, x, nan)], [keep], [hidden], (0.0, 0.0), (2.0, 1.0))
    assert found["hidden"] == 2
    assert found["rmse"] == pytest.approx(0)
    assert found["in_band"] == 1.0
    assert found["rmse_last_value"] == pytest.approx(math.sqrt((0.5**2 + 2**2) / 2))
    assert found["crps_interpolated"] == pytest.approx((0.25 + 2) / 2)
    assert scores([done], [x], [keep], [~keep & False], (0.0, 0.0), (1.0, 1.0)) == {"hidden": 0}


# --- By the commands ---

SMALLEST = (
    "--set", "likelihood.hidden=8", "--set", "guide.hidden=8", "--set", "training.validations=1",
    "--set", "training.batch=4", "--set", "training.log_every=1", "--device", "cpu",
)  # fmt: skip


def test_draws_are_of_classes_in_turn_and_nothing_is_missing_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of series with lengths and gaps, too: lengths are those of test data, neither classes nor gaps are."""
    monkeypatch.chdir(tmp_path)
    own(tmp_path, 60, labels=["b", "a", "a"] * 20)
    by_class = ("--set", "data.condition=labels", "--steps", 2, "--no-report", "--out", "run")
    assert call("train", "--dataset", "series:own.npz", *SMALLEST, *by_class)[0] == 0
    code, out, err = call("sample", "run", "--num", 4, "--out", "turns.csv", "--json")
    assert code == 0, err
    assert json.loads(out)["caption"].startswith("4 samples of the classes a, b in turn")
    drawn = {"turns": read_file(Path("turns.csv")).series}
    for name in ("a", "b"):
        assert call("sample", "run", "--num", 4, "--condition", name, "--out", f"{name}.csv")[0] == 0
        drawn[name] = read_file(Path(f"{name}.csv")).series
    for number, name in enumerate("abab"):
        assert np.isfinite(drawn["turns"][number]).all()
        np.testing.assert_array_equal(drawn["turns"][number], drawn[name][number])
        other = drawn["b" if name == "a" else "a"][number]
        assert not np.array_equal(drawn["turns"][number], other)


def test_from_training_to_forecasts_by_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Series of one's own, of different lengths, some numbers of which are missing."""
    pytest.importorskip("flax")
    monkeypatch.chdir(tmp_path)
    own(tmp_path, 60, labels=["a", "b"] * 30)
    for arguments in (
        ("train", "--dataset", "series:own.npz", *SMALLEST, "--steps", 2, "--out", "run"),
        ("train", "--resume", "--steps", 3, "--out", "run"),
        ("evaluate", "run", "--particles", 2),
        ("sample", "run", "--num", 3, "--out", "drawn.csv"),
        ("encode", "run", "drawn.csv", "--out", "z.nc"),
        ("encode", "run", "own.npz", "--out", "z.nc"),
        ("reconstruct", "run", "drawn.csv", "--num", 2, "--decodings", 1, "--out", "back.csv"),
        ("reconstruct", "run", "test", "--num", 2, "--out", "test.csv"),
        ("interpolate", "run", "test", "--pairs", 1, "--steps", 3, "--out", "path.csv"),
        ("impute", "run", "test", "--num", 2, "--particles", 64, "--out", "imputed.csv"),
        ("forecast", "run", "train", "--num", 2, "--particles", 64, "--keep", 2, "--horizon", 3, "--out", "next.csv"),
        ("report", "run", "--out", "page.html"),
        ("verify", "--dataset", "series:own.npz", "--likelihood", "gru", "--guide", "gru"),
    ):
        code, _, err = call(*arguments)
        assert code == 0, (arguments, err)
    code, out, _ = call("check", "run", "--split", "train", "--told-images", 16, "--told-samples", 4)
    assert code in (0, 1)
    assert "bits/number of a density" in out
    code, out, err = call("crosscheck", "run", "--images", 2, "--float64", "--json")
    assert code == 0, err
    assert max(term["difference"] for term in json.loads(out)["terms"]) < 1e-9
    for backend in ("pyro", "numpyro"):
        assert call("sample", "run", "--num", 4, "--backend", backend, "--out", f"{backend}.csv")[0] == 0
    one, two = (read_file(Path(f"{name}.csv")).series for name in ("pyro", "numpyro"))
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, equal_nan=True)
    run = pyro_delta.load("run")
    test = run.data().test
    found = pyro_delta.check(run, split="train", told_images=16, told_samples=4).numbers
    assert found["floor_holds"] is True
    assert found["delta_guarantee"] == "every datum, by its length"
    encoding = encode(run.vae, test)
    lengths = test.extras["lengths"]
    inside = (torch.arange(6) < lengths[:, None])[..., None]
    assert encoding.scored == (test.extras["mask"] & inside).sum().item() / len(test)
    assert encoding.delta is not None
    by_length = [ar1_committed_rate(torch.full((1,), 0.5, dtype=torch.float64), n).item() for n in lengths.tolist()]
    assert len(encoding.delta) == len(by_length)
    drawn = read_file(Path("drawn.csv"))
    assert drawn.names == ("low", "high")
    assert [len(values) for values in drawn.series] <= lengths[:3].tolist()
    shown = read_file(Path("test.csv")).series[:2]  # data above their decodings, with holes where data have them
    for values, x, mask in zip(shown, test.x, test.extras["mask"]):
        expected = torch.where(mask, x, math.nan)[: len(values)].double().numpy()
        np.testing.assert_allclose(values, expected, rtol=1e-6, equal_nan=True)
    imputed = read_file(Path("imputed.csv"))
    assert len(imputed.series) == 2 * 32
    assert not any(np.isnan(values).any() for values in imputed.series)
    np.testing.assert_allclose(
        imputed.series[5][test.extras["mask"][0][: len(imputed.series[5])].numpy()],
        test.x[0][test.extras["mask"][0]].numpy(),
        rtol=1e-6,
    )
    assert {len(values) for values in read_file(Path("next.csv")).series} == {5}
    for name in ("drawn", "back", "test", "path", "imputed", "next"):
        assert Path(f"{name}.png").stat().st_size > 0


def test_what_is_hidden_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vowels by the commands: scores of what was hidden, and of what comes next, as numbers."""
    monkeypatch.chdir(tmp_path)
    root, _ = write_vowels(tmp_path)
    sizes = ("--set", "data.validation=2", *SMALLEST)
    assert call("train", "--dataset", "vowels", "--data-root", root, *sizes, "--steps", 2, "--out", "run")[0] == 0
    few = ("--num", 2, "--particles", 32, "--draws", 4, "--json")
    code, out, err = call("impute", "run", "test", "--hide", 0.1, *few, "--out", "a.csv")
    assert code == 0, err
    found = json.loads(out)
    assert 0 < found["hidden"] < 2 * 10 * 12
    assert {"rmse", "crps", "in_band", "rmse_last_value", "crps_interpolated", "effective_sample_size"} <= found.keys()
    assert found["effective_sample_size"].keys() == {"test/0", "test/1"}
    code, out, err = call("forecast", "run", "test", *few, "--out", "b.csv")
    assert code == 0, err
    lengths = pyro_delta.load("run").data().test.extras["lengths"][:2]
    assert json.loads(out)["hidden"] == 12 * int((lengths // 2).sum())
    code, out, _ = call("forecast", "run", "test", *few[:-1], "--particles", 1, "--out", "b.csv")
    assert code == 0
    assert "For 2 of 2 series fewer than 2 particles count" in out
    for arguments, sentence in (
        (("impute", "run", "test", "--out", "c.csv"), "nothing is missing in the series of test; hide some of it"),
        (("impute", "run", "test", "--hide", 1, "--out", "c.csv"), "1.0 is not in the range 0<x<1."),
        (("impute", "run", "test", "--out", "c.png"), "'c.png' is not a .csv file; give a name that ends in .csv."),
        (("impute", "run", "no.csv", "--out", "c.csv"), "cannot read no.csv"),
        (
            ("forecast", "run", "test", "--keep", 11, "--out", "c.csv"),
            "of which 11 cannot be kept; give a smaller --keep.",
        ),
        (("forecast", "run", "test", "--horizon", 11, "--out", "c.csv"), "series of this model have 10 at most; give"),
        (("forecast", "run", "test", "--horizon", 0, "--out", "c.csv"), "0 is not in the range"),
        (("sample", "run", "--num", 1, "--out", "c.png"), "'c.png' is not a .csv file"),
    ):
        code, _, err = call(*arguments)
        assert code == 2, (arguments, err)
        assert sentence in err
        assert not Path("c.csv").exists()
