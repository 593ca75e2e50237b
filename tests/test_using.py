"""Using a trained model: latents for ArviZ, reconstructions, interpolation, completion."""

import copy
import importlib.util
import json
import math
import subprocess
import sys
from itertools import product
from pathlib import Path

import arviz
import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from test_cli import TINY, call

import pyro_delta
from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data import Split
from pyro_delta.data import load as load_data
from pyro_delta.data.captions import describe, shown
from pyro_delta.data.condition import Condition
from pyro_delta.data.images import ImageSpec
from pyro_delta.data.images.pictures import HIDDEN
from pyro_delta.data.sequences import TokenSpec
from pyro_delta.diagnostics.drawing import decode
from pyro_delta.diagnostics.images.inpainting import inpaint
from pyro_delta.diagnostics.latents import save
from pyro_delta.diagnostics.posterior import interpolate, posterior_data
from pyro_delta.diagnostics.trace import decoder, evaluating, prior
from pyro_delta.distributions import GaussianAR1
from pyro_delta.errors import UserError
from pyro_delta.vae import VAE

SPEC = ImageSpec(1, 2, 2, 2)
SMALL = [
    *((f"{part}.channels", [6]) for part in ("likelihood", "guide")),
    *((f"{part}.row_blocks", [1]) for part in ("likelihood", "guide")),
    ("prior.dims", 2),
    ("prior.alpha", 0.8),
    ("likelihood.mixtures", 2),
]


@pytest.fixture(scope="module")
def vae() -> VAE:
    """Untrained, far from the start, so that pixels and latents hang together."""
    torch.manual_seed(3)
    made = build(load_preset("digits", SMALL), SPEC)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.6 * torch.randn_like(parameter)
    return made.eval()


# --- interpolation ---


def test_path_is_spherical_in_the_priors_noise() -> None:
    """Against the AR(1) recursion undone by hand, and great circles from their definition."""
    prior = GaussianAR1(torch.tensor([0.5, -0.9], dtype=torch.float64), 6)
    eps = torch.randn(2, 6, 2, dtype=torch.float64)
    start, end = prior.transform(eps)
    path = interpolate(prior, start, end, 5)
    scale = (1 - prior.alpha**2).sqrt()
    first, later = path[:, :1], (path[:, 1:] - prior.alpha * path[:, :-1]) / scale
    noise = torch.cat((first, later), dim=1).flatten(1).numpy()
    a, b = eps.flatten(1).numpy()
    angle = math.acos(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    for i, point in enumerate(noise):
        t = i / 4
        expected = (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
        np.testing.assert_allclose(point, expected, atol=1e-8)


def test_path_ends_where_it_should() -> None:
    prior = GaussianAR1(torch.tensor([0.99]), 8)
    start, end = prior.sample((2,))
    path = interpolate(prior, start, end, 3)
    assert path.dtype == torch.float32
    torch.testing.assert_close(path[0], start, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(path[-1], end, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(interpolate(prior, start, start, 4), start.expand(4, -1, -1), atol=1e-5, rtol=1e-5)
    assert torch.equal(interpolate(prior.expand((1,)), start, end, 3), path)


# --- completion ---


@pytest.mark.parametrize("keep", [[[1, 1], [0, 0]], [[0, 0], [1, 1]], [[0, 1], [1, 0]]], ids=["top", "bottom", "odd"])
def test_completions_have_the_exact_conditional_frequencies(vae: VAE, keep: list[list[int]]) -> None:
    """All 16 images of 2×2 bits, z summed out by brute force."""
    keep_hw = torch.tensor(keep).bool()
    images = torch.tensor(list(product((0, 1), repeat=4))).reshape(16, 1, 2, 2)
    with torch.no_grad():
        z = vae.model.prior().expand([4000]).sample()
        joint = torch.stack([vae.model.likelihood(z).log_prob(image).exp().mean() for image in images])
    assert joint.sum() == pytest.approx(1, abs=1e-4)
    image = images[0b0110]
    agrees = ((images == image) | ~keep_hw).all((1, 2, 3))
    exact = torch.where(agrees, joint, 0) / joint[agrees].sum()
    done = inpaint(vae, image, keep_hw, particles=4000, completions=4000)
    codes = (done.images.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)
    found = torch.bincount(codes, minlength=16) / 4000
    assert found[~agrees].sum() == 0
    # both sides are noisy: 4000 draws each
    assert (found - exact).abs().max() < 0.06
    assert 1 <= done.effective_sample_size <= 4000
    naive = torch.where(agrees, torch.ones(16), 0) / agrees.sum()
    assert (exact - naive).abs().max() > 0.1, "the case would pass with any weights"


def test_behind_kept_rows_all_is_drawn_given_z(vae: VAE) -> None:
    """Of one particle, completions have the frequencies of the decoder given its z and the kept row."""
    image, keep_hw = torch.tensor([[[0, 1], [0, 0]]]), torch.tensor([[True, True], [False, False]])
    done = inpaint(vae, image, keep_hw, particles=1, completions=4000)
    with evaluating(vae, 0):  # the noise of the one z
        z = prior(vae, 1).sample()
        images = torch.tensor([[[[0, 1], [a, b]]] for a, b in product((0, 1), repeat=2)])
        exact = torch.softmax(decoder(vae, z.expand(4, -1, -1)).log_prob(images), 0)
    codes = done.images[:, 0, 1] @ torch.tensor([2, 1])
    assert (torch.bincount(codes, minlength=4) / 4000 - exact).abs().max() < 0.03
    assert (done.images[:, 0, 0] == image[0, 0]).all()
    assert done.effective_sample_size == 1


def test_weights_matter(vae: VAE) -> None:
    """Kept pixels below the missing ones pull them: without weights the completion would be the decoder's own guess."""
    keep_hw = torch.tensor([[False, False], [True, True]])
    done = inpaint(vae, torch.zeros(1, 2, 2, dtype=torch.int64), keep_hw, particles=500, completions=5)
    assert done.effective_sample_size < 499
    assert (done.images[:, 0, 1] == 0).all()


def test_weights_that_diverged_are_told(vae: VAE) -> None:
    diverged = copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in diverged.model.likelihood.parameters():
            parameter.fill_(math.nan)
    keep_hw = torch.tensor([[True, True], [False, False]])
    with pytest.raises(UserError, match="are not finite: the run's weights have diverged"):
        inpaint(diverged, torch.zeros(1, 2, 2, dtype=torch.int64), keep_hw, particles=3, completions=1)


# --- latents for ArviZ ---


def test_netcdf_holds_what_the_guide_says(vae: VAE, tmp_path: Path) -> None:
    images = torch.randint(2, (7, 1, 2, 2), dtype=torch.uint8)
    data = posterior_data(vae, images, draws=500, names=list("abcdefg"), batch=3)
    save(data, tmp_path / "z.nc")
    back = arviz.from_netcdf(tmp_path / "z.nc")
    z = back.posterior["z"]
    assert z.dims == ("chain", "draw", "datum", "step", "dim")
    assert z.shape == (1, 500, 7, 2, 2)
    assert list(z.coords["datum"].values) == list("abcdefg")
    with torch.no_grad():
        q = vae.guide.posterior(images)
    np.testing.assert_allclose(back.constant_data["z_mean"], q.mean, rtol=1e-5)
    np.testing.assert_allclose(back.constant_data["z_scale"], q.stddev, rtol=1e-5)
    spread = torch.maximum(q.stddev, 1e-5 * q.mean.abs())  # draws in single precision
    error = (z.astype(float).mean(("chain", "draw")) - q.mean.numpy()) / spread.numpy()
    np.testing.assert_allclose(error, 0, atol=0.25)
    assert [path.name for path in tmp_path.iterdir()] == ["z.nc"]


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path) -> None:
    """In a process of its own: HDF5 on a full disk ended in a crash, not in an error."""
    script = f"""
import resource, signal, sys
from pathlib import Path
import numpy
from pyro_delta.diagnostics.latents import save
from pyro_delta.diagnostics.quiet_arviz import as_arviz
path = Path({str(tmp_path / "z.nc")!r})
path.write_text("as it was")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    save(as_arviz({{"posterior": {{"z": numpy.random.randn(1, 9, 900)}}}}, {{}}, {{}}), path)
except OSError as error:
    print(error.filename)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "z.nc")), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["z.nc"]
    assert (tmp_path / "z.nc").read_text() == "as it was"


def test_the_same_noise_gives_the_same_picture_for_the_same_z(vae: VAE) -> None:
    z = torch.randn(2, 2)
    pictures = decode(vae, z.expand(5, -1, -1), same_noise=True, batch=2)
    assert (pictures == pictures[0]).all()


# --- the commands ---


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("using") / "run"
    assert call("train", *TINY, "--steps", 2, "--out", folder)[0] == 0
    return folder


@pytest.mark.parametrize(
    ("args", "size", "caption"),
    [
        (["sample", "--num", 5], (3 * 66 + 2, 2 * 66 + 2), "5 samples, 3 to a row."),
        (
            ["sample", "--num", 5, "--temperature", 0.5],
            (3 * 66 + 2, 2 * 66 + 2),
            "5 samples at temperature 0.5, 3 to a row.",
        ),
        (["sample", "--num", 2, "--same-z", 3], (2 * 66 + 2, 3 * 66 + 2), "Each column: 3 decodings of one z."),
        (
            ["reconstruct", "test", "--num", 3, "--decodings", 2],
            (3 * 66 + 2, 3 * 66 + 2),
            "Each column: a datum of test, and below it 2 decodings of one sample of its latents.",
        ),
        (
            ["interpolate", "validation", "--pairs", 2, "--steps", 3],
            (5 * 66 + 2, 2 * 66 + 2),
            "Each row: two data of validation, first and last, and between them 3 decodings along the way from the "
            "latents of one to those of the other.",
        ),
        (
            ["inpaint", "test", "--num", 2, "--particles", 4, "--completions", 3],
            (2 * 66 + 2, 5 * 66 + 2),
            "Each column: an image of test, what is kept of it beside magenta, and 3 completions.",
        ),
    ],
)
def test_pictures(run: Path, tmp_path: Path, args: list, size: tuple[int, int], caption: str) -> None:
    """Their size, and what they show, in words on stdout and in the file."""
    command, *rest = args
    code, out, err = call(command, run, *rest, "--out", tmp_path / "a.png")
    assert code == 0, err
    assert "a.png" in out
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == size
        assert picture.info["Description"] == caption
    assert caption in out.splitlines()


def test_captions_are_for_pictures_that_were_written(tmp_path: Path) -> None:
    """Of text there is none, and a picture beside it is left alone; what else a picture says stays."""
    tokens, x = TokenSpec(3, 4), torch.zeros(2, 3, dtype=torch.uint8)
    Image.new("L", (2, 2), 7).save(tmp_path / "a.png", dpi=(80, 80))
    before = (tmp_path / "a.png").read_bytes()
    assert shown(tokens, x, tmp_path / "a.txt", 2, "two") is None
    assert (tmp_path / "a.png").read_bytes() == before
    describe(tmp_path / "a.png", "δ")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.text == {"Description": "δ"}
        assert picture.info["dpi"] == pytest.approx((80, 80), abs=0.1)
        assert np.asarray(picture).tolist() == [[7, 7], [7, 7]]


def test_inpainting_keeps_and_reports(run: Path, tmp_path: Path) -> None:
    out = call("inpaint", run, "test", "--num", 1, "--particles", 8, "--out", tmp_path / "a.png", "--json")[1]
    (size,) = json.loads(out)["effective_sample_size"].values()
    assert 1 <= size <= 8
    assert (json.loads(out)["warning"] is None) == (size >= 2)
    few = (
        "For 1 of 1 images fewer than 2 particles count"
        in call("inpaint", run, "test", "--num", 1, "--particles", 8, "--out", tmp_path / "a.png")[1]
    )
    assert few == (size < 2)
    assert "fewer than 2" in call("inpaint", run, "test", "--num", 1, "--particles", 1, "--out", tmp_path / "a.png")[1]
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    red = np.full_like(mask, 255)  # a colour is not white: only where all channels are is a pixel kept
    Image.fromarray(np.stack((red, mask, mask), axis=-1)).save(tmp_path / "mask.png")
    args = ["--mask", tmp_path / "mask.png", "--num", 1, "--particles", 2, "--completions", 1]
    assert call("inpaint", run, "test", *args, "--out", tmp_path / "b.png")[0] == 0
    with Image.open(tmp_path / "b.png") as picture:
        pixels, colour = np.asarray(picture)[:, :, 0], np.asarray(picture)[100, 10]
    image, kept, done = (pixels[2 + 66 * i : 66 * (i + 1), 2:66][::8, ::8] for i in range(3))
    original = load_data("digits").test.x[0, 0].numpy()
    assert np.array_equal(image, np.round(original * (255 / 16)))
    assert np.array_equal(kept, np.where(mask > 0, image, HIDDEN[0]))
    assert tuple(colour) == HIDDEN
    assert np.array_equal(done[:, 4:], image[:, 4:])


def test_encode_writes_files_for_other_tools(run: Path, tmp_path: Path) -> None:
    """By the ending of their names, all of them the same means, scales, names and labels."""
    for ending in ("nc", "npz", "csv"):
        draws = 1 if ending == "csv" else 3
        assert call("encode", run, "test", "--num", 5, "--draws", draws, "--out", tmp_path / f"z.{ending}")[0] == 0
    tree = arviz.from_netcdf(tmp_path / "z.nc")
    assert tree.posterior["z"].shape == (1, 3, 5, 8, 2)
    test = load_data("digits").test.take(slice(5))
    with torch.no_grad():
        q = pyro_delta.load(run).vae.guide.posterior(test.x)
    arrays, table = np.load(tmp_path / "z.npz"), pandas.read_csv(tmp_path / "z.csv")
    assert np.array_equal(arrays["z"], tree.posterior["z"].values[0])
    assert arrays["starts"].tolist() == [*table.index, 5, 6, 7]
    names, labels = [f"test/{i}" for i in range(5)], list(map(str, test.labels.tolist()))
    assert arrays["datum"].tolist() == table["datum"].tolist() == names
    assert arrays["label"].tolist() == table["label"].astype(str).tolist() == labels
    assert tree.constant_data["label"].values.tolist() == labels
    for name, values in (("z_mean", q.mean), ("z_scale", q.stddev)):
        np.testing.assert_allclose(arrays[name], values, rtol=1e-5)
        for step, dim in np.ndindex(8, 2):
            np.testing.assert_allclose(table[f"{name}_{step}_{dim}"], values[:, step, dim], rtol=1e-5)
    assert len(table.columns) == 2 + 2 * 16


@pytest.mark.parametrize("ending", [".nc", ".npz", ".csv"])
def test_latents_behind_the_end_of_a_datum_are_left_out(ending: str, tmp_path: Path) -> None:
    spec, lengths = TokenSpec(6, 5, condition=Condition(classes=("a", "b"))), torch.tensor([6, 2, 3])
    config = load_preset("descriptions", [("prior.length", 3), ("likelihood.hidden", 4), ("guide.hidden", 4)])
    vae = build(config, spec, check=False)
    extras = {"lengths": lengths, "condition": torch.tensor([1, 0, 1])}
    split = Split(torch.zeros(3, 6, dtype=torch.uint8), torch.tensor([0, 1, 1]), extras)
    path, starts = tmp_path / f"z{ending}", vae.model.prior.starts
    save(posterior_data(vae, split, starts=starts), path)
    inside = (starts < lengths[:, None]).numpy()
    with torch.no_grad():
        mean = vae.guide.posterior(split.x, **extras).mean.numpy()
    if ending == ".csv":
        found = pandas.read_csv(path)
        z = np.stack([[found[f"z_mean_{t}_{k}"] for k in range(2)] for t in range(3)]).transpose(2, 0, 1)
        told = found["length"], found["condition"]
    elif ending == ".npz":
        arrays = np.load(path)
        z, told = arrays["z_mean"], (arrays["length"], arrays["condition"])
        assert (np.isfinite(arrays["z"]) == inside[None, ..., None]).all()
    else:
        constant = arviz.from_netcdf(path).constant_data
        z, told = constant["z_mean"].values, (constant["length"].values, constant["condition"].values)
    assert [list(values) for values in told] == [[6, 2, 3], [1, 0, 1]]
    assert (np.isfinite(z) == inside[..., None]).all()
    np.testing.assert_allclose(z[inside], mean[inside], rtol=1e-5)


def test_parquet_is_written_where_it_can_be(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "z.parquet"
    code, _, err = call("encode", run, "test", "--num", 5, "--out", path)
    if importlib.util.find_spec("pyarrow") is None and importlib.util.find_spec("fastparquet") is None:
        assert code == 2
        assert "takes pyarrow; install the extra (pip install 'pyro-delta[parquet]'), or write .csv." in err
        assert not path.exists()
    else:
        assert code == 0
        assert pandas.read_parquet(path)["datum"].tolist() == [f"test/{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["encode", "run", "test", "--out", "z.txt"], "give a name that ends in .nc, .npz, .csv, .parquet."),
        (["encode", "run", "test", "--out", "z.csv", "--draws", "2"], "a table has no room for 2 samples"),
        (["encode", "run", "nothing", "--out", "z.nc"], "there is no picture or folder nothing"),
        (["encode", "run", "grey.png", "--out", "z.nc"], "bring them to its size, or name a split"),
        (["reconstruct", "run", "test", "--out", "a.jpg"], "ends in .png"),
        (["interpolate", "run", "test", "--pairs", "900", "--out", "a.png"], "give fewer --pairs"),
        (["inpaint", "run", "test", "--rows", "8", "--out", "a.png"], "leaves nothing to complete"),
        (["inpaint", "run", "test", "--rows", "2", "--mask", "grey.png", "--out", "a.png"], "contradict each other"),
        (["inpaint", "run", "test", "--mask", "grey.png", "--out", "a.png"], "the mask grey.png is (5, 6)"),
        (["inpaint", "run", "test", "--mask", "clear.png", "--out", "a.png"], "save the mask in black and white"),
        (["inpaint", "run", "test", "--mask", "white.png", "--out", "a.png"], "leaves nothing to complete"),
        (["train-prior", "run", "--lr", "nan"], "--lr nan is not a learning rate"),
    ],
)
def test_bad_input(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(run)
    Image.fromarray(np.zeros((5, 6), np.uint8)).save("grey.png")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save("white.png")
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save("clear.png")
    code, out, err = call(*args)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clear.png", "grey.png", "run", "white.png"]


PLAIN = """
import torch
import pyro.distributions as dist
from pyro.nn import PyroModule

class Prior(PyroModule):
    def __init__(self, spec):
        super().__init__()
        self.register_buffer("starts", torch.arange(spec.height))
        self.register_buffer("tril", torch.eye(2 * spec.height, dtype=torch.float64))
    def forward(self):
        flat = dist.MultivariateNormal(self.tril[0] * 0, scale_tril=self.tril)
        return dist.TransformedDistribution(flat, [dist.transforms.ReshapeTransform((len(self.tril),), (-1, 2))])

class Likelihood(PyroModule):
    def __init__(self, spec, prior):
        super().__init__()
        self.spec, self.logits = spec, torch.nn.Linear(2 * spec.height, spec.scored * spec.levels)
    def forward(self, z):
        logits = self.logits(z.flatten(-2).float())
        return dist.Categorical(logits=logits.unflatten(-1, (*self.spec.shape, -1))).to_event(3)
"""


def test_a_prior_without_moments_in_float64_goes_all_the_way(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN.replace("(-1, 2)", "(8, 2)"))
    run, picture = tmp_path / "run", tmp_path / "a.png"
    args = ["--prior", f"{tmp_path}/plain.py:Prior", "--elbo", "trace", "--out", run]
    for command in (
        ["train", "--device", "cpu", "--steps", 1, *args],
        ["train-prior", run, "--steps", 1],
        ["interpolate", run, "test", "--pairs", 1, "--steps", 2, "--out", picture],
    ):
        code, _, err = call(*command)
        assert code == 0, err


def test_a_likelihood_without_rows_decodes_but_completes_nothing(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    run, picture = tmp_path / "run", tmp_path / "a.png"
    args = ["--likelihood", f"{tmp_path}/plain.py:Likelihood", "--out", run]
    assert call("train", "--device", "cpu", "--steps", 1, *args)[0] == 0
    assert call("interpolate", run, "test", "--pairs", 1, "--steps", 2, "--out", picture)[0] == 0
    code, _, err = call("inpaint", run, "test", "--out", picture)
    assert (code, "takes one that returns an AutoregressiveImage" in err, err.count("\n")) == (2, True, 1)


def test_interpolation_needs_a_gaussian_prior() -> None:
    import pyro.distributions as dist

    with pytest.raises(UserError, match="not Gaussian"):
        interpolate(dist.Laplace(torch.zeros(2, 2), 1.0).to_event(2), torch.zeros(2, 2), torch.ones(2, 2), 3)


@pytest.mark.parametrize(
    "args",
    [
        ["encode", "test", "--num", 3, "--draws", 1, "--out", "z.nc"],
        ["reconstruct", "test", "--num", 2, "--decodings", 1, "--out", "a.png"],
        ["interpolate", "test", "--pairs", 1, "--steps", 2, "--out", "a.png"],
    ],
)
def test_what_is_written_is_said_in_json(run: Path, tmp_path: Path, args: list) -> None:
    command, *rest = args
    code, out, err = call(command, run, *rest[:-1], tmp_path / rest[-1], "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["file"] == str(tmp_path / rest[-1])
    assert found["data"] == {"encode": 3}.get(command, 2)
    assert found["weights"] == "best"
