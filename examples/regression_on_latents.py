"""A regression on the latents of one's own pictures: how far is a digit turned, by what z says of it?

It makes a folder of pictures, digits turned by up to 45°, whose angle stands in the file name, as a lab's numbers often
do. A δ-VAE is trained on the folder, and never told the angle; its latents go into a table, as by

    pyro-delta encode RUN train --out train.csv

and a ridge regression from the table to the angle is judged on the test pictures. An accuracy above that of the mean
says that z knows of it; a linear one says no more than what lies open in z.

Run it with `python examples/regression_on_latents.py`; it takes some three minutes.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pyro_delta
from pyro_delta.diagnostics.latents import save
from pyro_delta.diagnostics.posterior import posterior_data

SETTINGS = {
    "prior.dims": 4,
    "prior.rate_nats": 8.0,
    "likelihood.channels": (24, 32),
    "likelihood.row_blocks": (1, 2),
    "guide.channels": (16, 24),
    "guide.row_blocks": (1, 2),
    "guide.features": 32,
}


def pictures(folder: Path, count: int) -> None:
    """`train/<number>_<angle>.png` and `test/…`, 12 × 12, a fifth of them to test."""
    found, draw = load_digits(), np.random.default_rng(0)
    for number, image in enumerate(found.images[:count]):
        angle = draw.uniform(-45, 45)
        picture = Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((12, 12), Image.Resampling.BICUBIC)
        split = folder / ("test" if number % 5 == 0 else "train")
        split.mkdir(parents=True, exist_ok=True)
        picture.rotate(angle, Image.Resampling.BICUBIC).save(split / f"{number}_{angle:.1f}.png")


def table(run: pyro_delta.Run, split: str, path: Path) -> pandas.DataFrame:
    """The latents of a split, a row for each picture, by way of a file, with the angle out of its name."""
    save(posterior_data(run.vae, run.data().split(split)), path)
    found = pandas.read_csv(path)
    found["angle"] = found["datum"].str.extract(r"_(-?[\d.]+)\.png$").astype(float)
    return found


def main(steps: int = 1500, count: int = 1797) -> None:
    """Make pictures, train, encode, fit, judge."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures(folder / "pictures", count)
        settings = {**SETTINGS, "training.steps": steps, "training.validations": 0}
        run = pyro_delta.train(settings, data=f"folder:{folder / 'pictures'}")
        train, test = (table(run, split, folder / f"{split}.csv") for split in ("train", "test"))
    columns = [column for column in train if column.startswith("z_mean")]
    fitted = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13))).fit(train[columns], train["angle"])
    error = (fitted.predict(test[columns]) - test["angle"]).abs()
    guess = (train["angle"].mean() - test["angle"]).abs()
    gain = guess - error
    print(f"{len(train)} pictures to fit {len(columns)} means of z, {len(test)} to judge")
    print(f"R² {fitted.score(test[columns], test['angle']):.3f}")
    print(f"error {error.mean():.1f}°, that of the mean {guess.mean():.1f}°")
    print(f"less by {gain.mean():.1f} ± {gain.sem():.1f}°")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    main(parser.parse_args().steps)
