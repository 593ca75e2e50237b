"""Every command that README and documentation show is run: made small, on small data, after those that it builds on."""

import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import PAGES, ROOT, blocks, cells, commands
from PIL import Image
from standin_hub import standing_in
from test_cli import call, write_images
from test_series import write_vowels
from test_speech import folder_of_speech, written
from test_sweep import one_after_another

from pyro_delta.cli import cli
from pyro_delta.data.music import ScoreSpec
from pyro_delta.sweep import runs

SHOWN = [(page, command) for page, text in PAGES.items() if page != "CHANGELOG.md" for command in commands(text)]

# --- How a command is made small: options and settings are given these values, whatever it gives them ---

CHANNELS = {"channels": "[4]", "row_blocks": "[1]"}
HIDDEN = {"hidden": "4"}
TRANSFORMER = {"hidden": "8", "layers": "1", "heads": "2"}
Kinds = dict[str, dict[str, str]]
SIZES: tuple[tuple[str, Kinds], ...] = (
    ("my.py", {}),
    ("--dataset text:", {"likelihood": TRANSFORMER, "guide": TRANSFORMER, "data": {"length": "12"}}),
    ("--dataset vowels", {"likelihood": HIDDEN, "guide": HIDDEN, "data": {"validation": "2"}}),
    (r"--dataset (chorales|descriptions|series:)", {"likelihood": HIDDEN, "guide": HIDDEN}),
    (
        r"--dataset (speech|audio:)",
        {
            "likelihood": {"channels": "4", "blocks": "3", "mixtures": "1"},
            "guide": {"hidden": "4"},
            "data": {"length": "5"},
        },
    ),
    (
        "cifar10-pixelsnail",
        {
            "likelihood": {"channels": "4", "blocks": "1", "layers": "1", "heads": "1", "mixtures": "1"},
            "guide": {**CHANNELS, "features": "4"},
        },
    ),
    (
        "",
        {"likelihood": {**CHANNELS, "pixel_blocks": "1", "mixtures": "1"}, "guide": {**CHANNELS, "features": "4"}},
    ),
)
"""Networks and data of a new run, by the first row that is found in its command."""
FEW_STEPS = {
    "steps": "2",
    "batch": "4",
    "warmup": "1",
    "log_every": "1",
    "validations": "1",
    "validation_images": "4",
    "compile": "false",
    "bf16": "false",
}
FEW = {
    "check": {"--images": "20", "--told-images": "8", "--told-samples": "2"},
    "evaluate": {"--images": "4", "--particles": "2"},
    "crosscheck": {"--images": "1"},
    "sample": {"--num": "2"},
    "encode": {"--num": "4"},
    "reconstruct": {"--num": "1", "--decodings": "1"},
    "interpolate": {"--pairs": "1", "--steps": "2"},
    "inpaint": {"--num": "1", "--particles": "2"},
    "forecast": {"--particles": "2"},
    "impute": {"--particles": "2"},
    "sweep": {"--seeds": "1"},
}
STAND_INS = (
    # test_ranks.py has processes of torchrun: here is one that makes the steps of two.
    (r"^torchrun --nproc-per-node=2 -m pyro_delta (train.*--resume|evaluate)", r"pyro-delta \1"),
    (r"^torchrun --nproc-per-node=2 -m pyro_delta train", "pyro-delta train --set training.accumulate=2"),
    (r"--dataset cifar10(?=.* --preset)", "--dataset digits"),  # half an hour; test_data.py reads its archive
    (r"--dataset cifar10\b", "--dataset digits --preset cifar10-pixelsnail-contour"),
    (r"(?<!--dataset digits) (--preset cifar10)", r" --dataset digits \1"),
    (r" --minutes \d+", ""),
    (r" --steps \d\d+", ""),
    (r"(report runs/first --control runs/first-control)$", r"\1 --out first.html"),  # as on another page
    (r"crosscheck runs/witnessed.* --float64", "crosscheck runs/cifar10 --float64"),
    (r"data\.size=\d+", "data.size=8"),
    (r"data\.vocabulary=\d+", "data.vocabulary=290"),
)
TRAINED_SWEEP = "digits-collapse"
"""Of which two runs are trained. Others are only begun: their commands are understood; test_sweep.py builds them."""
NEEDED = (("numpyro", "crosscheck|numpyro"), ("huggingface_hub", "hf:"), ("pyarrow", "parquet"))
"""Extras, and commands that ask for them."""


def small(command: str) -> str:
    for pattern, replacement in STAND_INS:
        command = re.sub(pattern, replacement, command)
    name = command.split()[1]
    for option, value in FEW.get(name, {}).items():
        command = _with(command, f"{option} ", value)
    if re.search("--resume|--config", command):
        command += " --steps 4"
    is_trained = name == "train" or command.startswith(f"pyro-delta sweep {TRAINED_SWEEP} ")
    if (is_trained or name == "verify") and not re.search("--resume|--config", command):
        command = _with_settings(
            command, {"training": FEW_STEPS} if is_trained else {"prior": {"dims": "1", "length": "4"}}
        )
        command = _with_settings(command, next(kinds for found, kinds in SIZES if re.search(found, command)))
    return command


def _with(command: str, given: str, value: str) -> str:
    """With an option or setting of this value, and no other."""
    shown = re.compile(rf"{re.escape(given)}\S+")
    return shown.sub(given + value, command) if shown.search(command) else f"{command} {given}{value}"


def _with_settings(command: str, kinds: Kinds) -> str:
    for kind, options in kinds.items():
        for key, value in options.items():
            if f"--{kind} my" not in command:  # which has options of its own
                command = _with(command, f"--set {kind}.{key}=", value)
    return command


# --- What a command finds in its folder ---


def _sounds(path: Path) -> None:
    for part in ("train", "test"):
        for i in range(6):
            written(path / part / f"{i}.wav", np.random.default_rng(i).normal(size=700) / 10)


def _series(path: Path) -> None:
    length = 2 if path.stem == "begun" else 7
    rows = [f"{name},{t},{(t + i) % 5 / 10},{t / 10}" for i, name in enumerate("abcdefghijkl") for t in range(length)]
    path.write_text("\n".join(["series,time,one,two", *rows]) + "\n")


def _pictures(path: Path) -> None:
    path.mkdir()
    Image.fromarray(np.full((10, 12, 3), 99, np.uint8)).save(path / "a.png")


def _text(path: Path) -> None:
    words = ["sea", "sand", "salt", "ship", "shore", "storm", "swell"]
    path.write_text("".join(f"{words[i % 7]} {i}\n" for i in range(240)))


def _score(path: Path) -> None:
    ScoreSpec(32, 47).show(torch.randint(47, (1, 32, 4)), path, columns=1)


def _program(path: Path) -> None:
    path.write_text(
        (ROOT / "examples/own_data.py").read_text() + "\n\nData, Likelihood, Guide = Series, Frames, Backward\n"
    )


def _vae(path: Path) -> None:
    path.write_text(
        "import pyro\nimport pyro.distributions as dist\nimport torch\n\n\n"
        "def model(x):\n    with pyro.plate('data', len(x)):\n"
        "        z = pyro.sample('z', dist.Normal(torch.zeros(3), 1.0).to_event(1))\n"
        "        pyro.sample('x', dist.Normal(2 * z, 1.0).to_event(1), obs=x)\n\n\n"
        "def guide(x):\n    with pyro.plate('data', len(x)):\n"
        "        pyro.sample('z', dist.Normal(0.4 * x, 0.5).to_event(1))\n\n\n"
        "def make():\n    return model, guide, torch.randn(20, 3)\n"
    )


def _vowels(path: Path) -> None:
    path.mkdir()
    shutil.copytree(write_vowels(path / "made")[0] / "vowels", path / "vowels")


FILES: dict[str, Callable[[Path], Any]] = {
    "pictures": lambda path: write_images(path, 24, size=10, mode="RGB"),
    "more_pictures": _pictures,
    "mine.txt": _text,
    "more.txt": _text,
    "mine.csv": _series,
    "begun.csv": _series,
    "mine.mid": _score,
    "mine.wav": lambda path: written(path, np.random.default_rng(0).normal(size=700) / 10),
    "recordings": _sounds,
    "mine": Path.mkdir,
    "my.py": _program,
    "my_vae.py": _vae,
}
"""What readers have: name → how it is written."""
DATA = {"vowels": _vowels, "speech": folder_of_speech}
"""Data sets that lie in the folder `data`."""
EARLIER = [
    ("", "pyro-delta train --dataset digits --out their_run"),
    ("", "pyro-delta train --dataset cifar10 --set likelihood.use_latents=false --out runs/cifar10-control"),
]
"""Commands that no page shows, but whose runs some name."""


def products(command: str) -> set[str]:
    """What a command makes, files or runs; a run that it goes on with is there before."""
    words = shlex.split(command)
    options = dict(pairwise(words))
    made = (
        {options[name] for name in ("--out", "--to", "--figure") if name in options}
        if "--resume" not in words
        else set()
    )
    if words[1] == "export" and "--to" not in words:
        made.add(words[3])
    if words[1] == "sweep":
        made.add(f"runs/{words[2]}")
    return made | {f"{name}-control" for name in made if "--control" in words and words[1] == "train"}


def maker(page: str, name: str) -> tuple[str, str] | None:
    """The command that makes what has a name: one of the same page, or of another."""
    found = [(place, command) for place, command in SHOWN + EARLIER if name in products(command)]
    return min(found, key=lambda one: one[0] != page, default=None)


class Desk:
    """Where commands are typed: each in a folder that holds what it names, and what was made for that.

    Attributes:
        root: of the folders.
        done: command, as it is run, with the commands it builds on → its folder, exit code and what it said as errors.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.done: dict[tuple[str, ...], tuple[Path, int, str]] = {}

    def type(self, page: str, command: str) -> tuple[Path, int, str]:
        """What a command of a page leads to."""
        line = small(command)
        words = shlex.split(line)
        named = {re.sub(r"^(text|folder|audio|series):", "", word) for word in words[2:]} - products(line)
        named = {name.removesuffix("/config.json") for name in named}
        before = [found for name in sorted(named - FILES.keys()) if (found := maker(page, name)) is not None]
        programs = sorted(name for name in named if re.match(r"my\w*\.py:", name))
        sources = {name: self.source(page, name) for name in programs if name.split(":")[0] not in FILES}
        key = (line, *(small(earlier) for _, earlier in before), *sources.values())
        if key not in self.done:
            folder = Path(tempfile.mkdtemp(dir=self.root))
            for where, earlier in before:
                shutil.copytree(self.type(where, earlier)[0], folder, dirs_exist_ok=True)
            for name, source in sources.items():
                (folder / name.split(":")[0]).write_text(source)
            for name in named | {name.split(":")[0] for name in programs}:
                if name in FILES and not (folder / name).exists():
                    FILES[name](folder / name)
                if name in DATA:
                    DATA[name](folder / "data")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.setattr(runs, "run_all", one_after_another)
                patch.setattr(runs.Local, "__call__", trained if words[2:3] == [TRAINED_SWEEP] else begun)
                code, _, err = call(*words[1:])
            self.done[key] = (folder, code, err)
        return self.done[key]

    @staticmethod
    def source(page: str, program: str) -> str:
        """Of a program, which this page shows, or another."""
        name = program.split(":")[1]
        texts = [PAGES[page], *PAGES.values()] if page else list(PAGES.values())
        shown = [code for text in texts for code in (*blocks("python", text), *cells(text)) if f"class {name}(" in code]
        return re.sub(r"\A%%writefile .*\n", "", shown[0])


def trained(local: Any, work: runs.Work, stop: runs.Stop) -> str | None:
    """A launcher without processes; of two arms it trains, and looks with few data at what the latents tell."""
    if work.folder.parent.name not in ("no-latents", "delta=4,trace"):
        return begun(local, work, stop)
    few = ("--told-images", 8, "--told-samples", 2) if work.command()[0] == "check" else ()
    _, _, err = call(*work.command(), *few)
    return None if work.done() else err.splitlines()[-1]


def begun(local: Any, work: runs.Work, stop: runs.Stop) -> str | None:
    """A launcher that goes no further than to understand what is to be done."""
    understood(work.command())
    return "begun"


def understood(words: list[str]) -> None:
    """A command is parsed with all its options, as it stands."""
    found = cli.get_command(None, words[0])  # type: ignore[arg-type]
    assert found is not None
    found.make_context(words[0], words[1:])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk with a hub that is not the real one."""
    root = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch, standing_in(root / "cache", patch):
        patch.setenv("XDG_CACHE_HOME", str(root / "user-cache"))
        yield Desk(root)


ENDS = {"check": "check failed: the latents are not shown to be used", "sweep": "runs failed", "doctor": "check failed"}
"""What a command may end with by exit code 1, for two steps teach nobody to use latents."""


@pytest.mark.parametrize(("page", "command"), SHOWN, ids=[f"{page}: {command}" for page, command in SHOWN])
def test_commands_that_are_shown_run(page: str, command: str, desk: Desk) -> None:
    for package, word in NEEDED:
        if re.search(word, command):
            pytest.importorskip(package)
    words = shlex.split(re.sub(r"^(torchrun \S+ -m pyro_delta|pyro-delta) ", "", command))
    understood(words)
    folder, code, err = desk.type(page, command)
    assert code == 0 or (code == 1 and ENDS[words[0]] in err), err
    for made in products(command):
        assert made.startswith("hf:") or (folder / made).exists(), made
