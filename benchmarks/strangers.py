"""How far it is for three strangers from an empty folder to what they came for: commands, lines of code and time.

The first has read the paper, the second has a VAE in Pyro, the third a folder of pictures. Each way is walked with the
library of today, and with that before its pages, tables and `doctor`: a checkout of commit 96b1d5e, named by --before.
Trainings are cut to --steps, so the time is that of the commands and not of a good model. What lines of code are for
stands in this file.

Run it with `OMP_NUM_THREADS=1 python benchmarks/strangers.py --before TREE`; it takes some minutes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
from PIL import Image
from record import add_common_arguments, write
from sklearn.datasets import load_digits

OWN_VAE = dedent("""
    import pyro, torch, pyro.distributions as dist
    from sklearn.datasets import load_digits

    X = torch.tensor(load_digits().images.reshape(-1, 64) / 16, dtype=torch.float32)
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
        def forward(self, x):
            pyro.module("model", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).expand([len(x), 8]).to_event(1))
                pyro.sample("x", dist.Normal(self.net(z), 0.3).to_event(1), obs=x)
    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(64, 16)
        def forward(self, x):
            pyro.module("guide", self)
            loc, scale = self.net(x).chunk(2, -1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))
    def make():
        pyro.set_rng_seed(0)
        model, guide = Model(), Guide()
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), pyro.infer.Trace_ELBO())
        for _ in range(300):
            svi.step(X[:1400])
        return model, guide, X[1400:]
    """)
"""A stranger's VAE, with its training: what they have, not what they write for us."""
BY_HAND = """
import torch
from pyro import poutine
from my_vae import make
model, guide, x = make()
posterior = poutine.trace(guide).get_trace(x)
prior = poutine.trace(poutine.replay(model, posterior)).get_trace(x)
q, p = posterior.nodes["z"]["fn"], prior.nodes["z"]["fn"]
kl = torch.distributions.kl_divergence(q.base_dist, p.base_dist).sum(-1)
print(kl.mean(), kl.min())
"""
NAMES_BY_HAND = """
import numpy as np, xarray
from pathlib import Path
from sklearn.linear_model import RidgeCV
def table(split):
    found = xarray.open_dataset(f"{split}.nc", group="posterior")
    names = [Path(str(name)).stem for name in found["image"].values]
    z = found["z"].values[0].mean(0).reshape(len(names), -1)
    return z, np.array([float(name.split("_")[1]) for name in names])
x, y = table("train")
print(RidgeCV().fit(x, y).score(*table("test")))
"""
BY_TABLE = """
import pandas
from sklearn.linear_model import RidgeCV
def table(split):
    found = pandas.read_csv(f"{split}.csv")
    return found.filter(like="z_mean"), found["datum"].str.extract(r"_(-?[0-9.]+)\\.png$")[0].astype(float)
print(RidgeCV().fit(*table("train")).score(*table("test")))
"""


@dataclass(frozen=True)
class Way:
    """Commands, then code, and what they end with."""

    commands: tuple[str, ...]
    code: str
    ends_with: str


WAYS = {
    ("reader of the paper", "before"): Way(
        (
            "pyro-delta train --dataset digits --steps {steps} --out runs/first",
            "pyro-delta train --dataset digits --steps {steps} --set likelihood.use_latents=false --out runs/control",
            "pyro-delta check runs/first",
            "pyro-delta evaluate runs/first",
            "pyro-delta evaluate runs/control",
            "pyro-delta sample runs/first --num 16 --out samples.png",
        ),
        "",
        "tables in a terminal, a picture",
    ),
    ("reader of the paper", "after"): Way(
        ("pyro-delta train --dataset digits --control --steps {steps} --report --out runs/first",),
        "",
        "a page with verdict, control, curves and pictures",
    ),
    ("Pyro user", "before"): Way((), BY_HAND, "its KL"),
    ("Pyro user", "after"): Way(
        ("pyro-delta doctor my_vae.py:make",), "", "KL, floor, bounds, k̂, what z tells, and advice"
    ),
    ("owner of pictures", "before"): Way(
        (
            "pyro-delta train --dataset folder:pictures --steps {steps} --out runs/mine",
            "pyro-delta encode runs/mine pictures/train/all --out train.nc",
            "pyro-delta encode runs/mine pictures/test/all --out test.nc",
        ),
        NAMES_BY_HAND,
        "a regression on latents",
    ),
    ("owner of pictures", "after"): Way(
        (
            "pyro-delta train --dataset folder:pictures --steps {steps} --report --out runs/mine",
            "pyro-delta encode runs/mine train --out train.csv",
            "pyro-delta encode runs/mine test --out test.csv",
        ),
        BY_TABLE,
        "the same by names, and a page",
    ),
}


def prepare(folder: Path) -> None:
    """What strangers have: `my_vae.py`, and pictures whose names hold a number."""
    (folder / "my_vae.py").write_text(OWN_VAE, encoding="utf-8")
    draw = np.random.default_rng(0)
    for number, image in enumerate(load_digits().images[:400]):
        angle = draw.uniform(-45, 45)
        picture = Image.fromarray((image * 255 / 16).astype(np.uint8)).rotate(angle, Image.Resampling.BICUBIC)
        split = folder / "pictures" / ("test" if number % 5 == 0 else "train") / "all"
        split.mkdir(parents=True, exist_ok=True)
        picture.save(split / f"{number}_{angle:.1f}.png")


def walk(way: Way, tree: Path, steps: int) -> float:
    """Seconds from an empty folder to the end; a check that fails is an end, too."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "XDG_DATA_HOME": "user"}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        took = 0.0
        lines = [[*shlex.split(line.format(steps=steps))[1:]] for line in way.commands]
        todo = [[sys.executable, "-m", "pyro_delta", *words] for words in lines]
        todo += [[sys.executable, "-c", way.code]] if way.code else []
        for command in todo:
            began = time.perf_counter()
            found = subprocess.run(command, cwd=name, env=environment, capture_output=True, text=True, check=False)
            took += time.perf_counter() - began
            if found.returncode not in (0, 1) or "Traceback" in found.stderr:
                raise SystemExit(f"{shlex.join(command[1:])}: {found.stderr}")
    return took


def main() -> None:
    """Walk all ways, and report them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, metavar="TREE", help="a checkout of the commit before; left out without")
    parser.add_argument("--steps", type=int, default=300)
    add_common_arguments(parser, "strangers")
    arguments = parser.parse_args()
    trees = {"before": arguments.before, "after": Path(__file__).parents[1]}
    rows: list[dict[str, Any]] = []
    for (who, when), way in WAYS.items():
        if trees[when] is None:
            continue
        rows.append(
            {
                "who": who,
                "when": when,
                "commands": len(way.commands),
                "lines_of_code": len(way.code.strip().splitlines()),
                "seconds": walk(way, trees[when].resolve(), arguments.steps),
                "ends_with": way.ends_with,
            }
        )
    write(arguments.out, arguments.seed, rows, steps=arguments.steps)


if __name__ == "__main__":
    main()
