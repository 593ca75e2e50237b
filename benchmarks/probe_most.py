"""How much a linear probe can find in samples of z at a floor of δ nats: of a guide as it starts, and of linear codes.

The guide is that of `contour` in a preset of images, as it starts from data; at the floor its numbers keep their
directions alone, which is what most numbers of a trained guide have. A linear code says a few standardised numbers of
the whole image in all coordinates: each mean is a random direction of them, drawn out or back to the contour, without
regard to what is causal. The numbers are main components of the pixels, or the directions that part the classes best
(linear discriminants of 128 components; they take the labels, as no guide can). The probe is that of `check`, on
samples of z: fitted to 10 000 training images, judged on the test split; beside it the same on the means, without
noise.

Run it with `python benchmarks/probe_most.py`; it takes some three minutes.
"""

from __future__ import annotations

import argparse

import torch
from record import add_common_arguments, write
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pyro_delta.build import build, load_data
from pyro_delta.config import load_preset
from pyro_delta.data.splits import Split
from pyro_delta.diagnostics.usage import PROBE_DATA, probe_accuracy
from pyro_delta.distributions.contour import gaussian_beyond_contour
from pyro_delta.guides.images.image_guide import ImageGuide

START, CHUNK = 256, 500
"""Images that the guide starts from, and images at a time."""
COMPONENTS = (9, 16, 32, 64, 128)
"""Main components that a linear code says; the discriminants are found among the most of them."""


def numbers(guide: ImageGuide, x_bchw: Tensor) -> Tensor:
    """The two free numbers (2, B, n, d) of each coordinate."""
    with torch.no_grad():
        return torch.cat([torch.stack(guide.encode(part)) for part in x_bchw.split(CHUNK)], 1)


def spread(code_bk: Tensor, directions_knd: Tensor) -> Tensor:
    """Numbers (2, B, n, d) near 0, so that the contour draws them out: the second number, that of the scale, is 0."""
    mean_bnd = torch.tensordot(code_bk, directions_knd, 1) * 1e-3
    return torch.stack([mean_bnd, torch.zeros_like(mean_bnd)])


def found(fit: Split, test: Split, fit_vbnd: Tensor, test_vbnd: Tensor, delta: float) -> dict[str, float | None]:
    """Rate in nats, and what the probe finds in samples and in means."""
    q, test_q = (Normal(*gaussian_beyond_contour(*v_bnd, delta)) for v_bnd in (fit_vbnd, test_vbnd))
    assert fit.labels is not None
    assert test.labels is not None
    z, test_z = q.rsample(), test_q.rsample()
    return {
        "rate": kl_divergence(test_q, Normal(0.0, 1.0)).flatten(1).sum(1).mean().item(),
        "probe": probe_accuracy(z.flatten(1), fit.labels, test_z.flatten(1), test.labels),
        "probe on means": probe_accuracy(q.mean.flatten(1), fit.labels, test_q.mean.flatten(1), test.labels),
    }


def main() -> None:
    """Encode, probe, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10-pixelsnail-contour", help="of images, whose guide is `contour`")
    parser.add_argument("--data-root", default="data", help="where the data are")
    add_common_arguments(parser, "probe_most")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    config = load_preset(arguments.preset)
    data = load_data(config, arguments.data_root)
    fit, test = data.train.take(slice(PROBE_DATA)), data.test.take(slice(PROBE_DATA))
    vae = build(config, data.spec)
    vae.guide.start_from(data.train.x[:START])
    delta, shape = vae.guide.contour.delta, vae.model.prior().event_shape
    start, test_start = (numbers(vae.guide, split.x[:]) for split in (fit, test))
    rows = [
        {"of": "the guide as it starts", **found(fit, test, start, test_start, delta)},
        {"of": "the same at the floor", **found(fit, test, start * 1e-3, test_start * 1e-3, delta)},
    ]
    pixels, test_pixels = (split.x[:].flatten(1).double() / (data.spec.levels - 1) for split in (fit, test))
    main_components = PCA(max(COMPONENTS), whiten=True, random_state=arguments.seed).fit(pixels)
    whole, test_whole = (torch.from_numpy(main_components.transform(x)).float() for x in (pixels, test_pixels))
    parting = LinearDiscriminantAnalysis().fit(whole, fit.labels)
    codes = {f"{k} main components": (whole[:, :k], test_whole[:, :k]) for k in COMPONENTS}
    codes["the directions that part the classes best"] = tuple(
        torch.from_numpy(parting.transform(x)).float() for x in (whole, test_whole)
    )
    for name, (code, test_code) in codes.items():
        directions = torch.nn.functional.normalize(torch.randn(code.shape[1], *shape), dim=0)
        rows.append({"of": name, **found(fit, test, spread(code, directions), spread(test_code, directions), delta)})
    write(arguments.out, arguments.seed, rows, preset=arguments.preset)


if __name__ == "__main__":
    main()
