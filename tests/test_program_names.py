"""Programs by name: where they are found, which options they take, and what a run keeps of them."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from test_cli import SETS, call

from pyro_delta import programs
from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data.images.spec import ImageSpec
from pyro_delta.errors import UserError
from pyro_delta.models import AR1Prior
from pyro_delta.rate import ar1_committed_rate

SPEC = ImageSpec(1, 8, 8, 17)
NEED_A_PATH = ("folder", "text", "audio", "series")
"""Data that take a path after a colon."""
TEN_LINES = '''\
"""A prior of my own."""
import torch
from pyro.nn import PyroModule
from pyro_delta.distributions import GaussianAR1

class Mine(PyroModule):
    def __init__(self, spec, *, dims: int = 2, alpha: float = 0.7):
        super().__init__()
        self.alpha, self.starts = torch.full((dims,), alpha), torch.arange(spec.height)

    def forward(self):
        return GaussianAR1(self.alpha, len(self.starts))
'''
HEAD, _, FORWARD = TEN_LINES.rpartition("    def forward")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a prior in a file, seen from the folder that holds it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TEN_LINES)
    return "mine.py:Mine"


@pytest.mark.parametrize("kind", programs.KINDS)
def test_shipped_programs_are_where_the_table_says(kind: str) -> None:
    for name, place in programs.SHIPPED[kind].items():
        assert programs.find(kind, name) is programs.find(kind, place)
        options = programs.options_model(kind, programs.find(kind, name)).model_fields
        assert bool(options) is (name != "elbo")  # which has nothing to set


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in programs.KINDS for name in programs.SHIPPED[kind] if name not in NEED_A_PATH],
)
@pytest.mark.parametrize("given", ["", "3", "data/3"])
def test_a_name_takes_nothing_after_a_colon(kind: str, name: str, given: str, tmp_path: Path) -> None:
    """Of `digits:3` digits were trained on."""
    code, out, err = call("train", "--set", f"{kind}.program={name}:{given}", "--out", tmp_path / "run")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    if given or kind == "data":
        verb = "take" if kind == "data" else "takes"
        assert f"the {kind} {name!r} {verb} nothing after a colon, as in '{name}:{given}'; write {name}" in err
    assert not (tmp_path / "run").exists()


def test_a_name_before_a_colon_may_be_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beta.py").write_text("def Mine():\n    return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert programs.find("objective", "beta:Mine")() == 3


def test_installed_data_that_need_a_root_take_it_after_a_colon(monkeypatch: pytest.MonkeyPatch) -> None:
    place = "pyro_delta.data.images.datasets"
    entries = [
        EntryPoint("pictures", f"{place}:Folder", "pyro_delta.data"),
        EntryPoint("d", f"{place}:Digits", "pyro_delta.data"),
    ]
    monkeypatch.setattr(programs, "entry_points", lambda group: entries if group == "pyro_delta.data" else [])
    assert programs.data_name("pictures:a:b") == ("pictures", "a:b")
    with pytest.raises(UserError, match="the data 'd' take nothing after a colon, as in 'd:a'; write d"):
        programs.data_name("d:a")


def test_a_file_is_one_module_however_often_it_is_named(mine: str, tmp_path: Path) -> None:
    assert programs.find("prior", mine) is programs.find("prior", f"{tmp_path}/{mine}")
    first = programs.find("prior", mine)
    (tmp_path / "mine.py").write_text(TEN_LINES + "\n# changed\n")
    assert programs.find("prior", mine) is not first
    assert not list(tmp_path.glob("__pycache__"))


def test_installed_programs_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("walk", "pyro_delta.models:AR1Prior", "pyro_delta.priors")
    hidden = EntryPoint("ar1", "os:getcwd", "pyro_delta.priors")  # must not take a shipped name
    monkeypatch.setattr(programs, "entry_points", lambda group: [entry, hidden] if group == entry.group else [])
    assert programs.find("prior", "walk") is AR1Prior
    assert programs.find("prior", "ar1") is AR1Prior
    assert "walk" in call("list", "priors")[1]


def test_options_are_read_off_the_constructor(mine: str) -> None:
    assert programs.checked_options("prior", mine, {"alpha": "0.5"}) == {"dims": 2, "alpha": 0.5}
    with pytest.raises(UserError, match=r"'prior\.alfa'; did you mean 'prior\.alpha'"):
        programs.checked_options("prior", mine, {"alfa": 0.5})
    with pytest.raises(UserError, match=r"prior\.dims: Input should be a valid integer.*got 'two'"):
        programs.checked_options("prior", mine, {"dims": "two"})


def test_another_program_keeps_the_options_it_shares(mine: str, tmp_path: Path) -> None:
    config = load_preset("cifar10-small", [("prior.program", mine)])
    assert config.prior.options == {"dims": 4, "alpha": 0.7}  # ar1's alpha may be a text, this one not
    assert load_preset("digits", [("prior.program", mine)]).prior.options == {"dims": 2, "alpha": 0.7}
    (tmp_path / "mine.py").write_text(TEN_LINES.replace("alpha: float", "alpha: float | str | None"))
    config = load_preset("cifar10-small", [("prior.program", mine)])
    assert config.prior.options == {"dims": 4, "alpha": 0.9}
    assert load_preset("digits", [("prior.program", mine)]).prior.options == {"dims": 2, "alpha": 0.7}


BROKEN = {
    "no file": ("none.py:Mine", "", r"cannot read the program none\.py \(No such file .* from the current folder, /"),
    "no object": ("mine.py:Mone", TEN_LINES, r"unknown prior of mine\.py 'Mone'; did you mean 'Mine'"),
    "no module": ("no.such:Mine", "", r"there is no module no\.such"),
    "module that fails to import another": (
        "mine.py:Mine", "import no_such_module\n", r"mine\.py fails at mine\.py, line 1: ModuleNotFoundError"),
    "not python": ("mine.py:Mine", "class Mine\n", r"mine\.py, line 1: SyntaxError"),
    "raises inside": ("mine.py:Mine", TEN_LINES.replace("torch.full", "torch.fall"), r"at mine\.py, line 9: Attr"),
    "raises in forward": (
        "mine.py:Mine", HEAD + "    def forward(self):\n        return 1 / 0\n", r"mine\.py, line 12: ZeroDivision"),
    "not a program": (
        "mine.py:Mine", "def Mine(spec):\n    return 3\n", r"makes a int; it must make a torch\.nn\.Module"),
    "not a distribution": (
        "mine.py:Mine", HEAD + "    def forward(self):\n        return 0.0\n", r"returns a float; it must return"),
    "wrong event shape": (
        "mine.py:Mine", HEAD + "    def forward(self):\n        return torch.distributions.Normal(0.0, 1.0)\n",
        r"event shape \(\); it must be \(n, d\)"),
    "wrong starts": ("mine.py:Mine", TEN_LINES.replace("arange(spec.height)", "arange(3)").replace(
        "len(self.starts)", "4"), r"starts \(3,\); it must be 4 integers"),
    "a batch of priors": ("mine.py:Mine", TEN_LINES.replace("len(self.starts))", "len(self.starts)).expand([3])"),
        r"batch shape \(3,\); it must be one distribution"),
    "rows that are not there": (
        "mine.py:Mine", TEN_LINES.replace("arange(", "arange(1 + "), r"positions of the data are 0 to 7"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "text", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_programs_are_one_sentence(
    name: str, text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(text)
    code, _, err = call("train", "--prior", name, "--steps", 1, "--device", "cpu", "--out", "run")
    assert code == 2, err
    assert err.count("\n") == 1
    with pytest.raises(UserError, match=words):
        build(load_preset("digits", [("prior.program", name)]), SPEC)
    assert not (tmp_path / "run").exists()


EVERYTHING = """
from dataclasses import dataclass
from torch import nn
from pyro_delta.data import Spec, Splits
from pyro_delta.models import AR1Prior

@dataclass(frozen=True)
class OwnSpec(Spec):
    shape = (3,)

class Numbers(Splits):
    def __init__(self): pass

class Duck:
    spec = OwnSpec()

class Read:
    def __init__(self, *, root="data"): pass

def numbers(count=3, *, seed=0): pass

class Prior(nn.Module):
    def forward(self): pass

class Child(AR1Prior): pass

def a_prior(spec, *, dims=3): pass

class Likelihood(nn.Module):
    def forward(self, z, lengths=None): pass

class Guide(nn.Module):
    causality = "none"
    def posterior(self, x): pass
    def forward(self, x): pass

def of_both(spec, prior, *, width=3): pass

class Weighted:
    def __call__(self, rate, distortion, data): return rate

class Mishap(Exception): pass

def helper(x): return x
value = 3
"""
SERVES = {
    "data": "Duck, Numbers, Read, numbers",
    "prior": "Child, Prior, a_prior",
    "likelihood": "Likelihood, of_both",
    "guide": "Guide, of_both",
    "objective": "Weighted",
}


@pytest.mark.parametrize("kind", SERVES)
def test_the_hint_lists_what_can_serve_as_a_kind(kind: str, tmp_path: Path) -> None:
    (tmp_path / "all.py").write_text(EVERYTHING)
    with pytest.raises(UserError, match=rf"^unknown {kind} of \S+all.py 'Xyzzy'; known: {SERVES[kind]}\.$"):
        programs.find(kind, f"{tmp_path}/all.py:Xyzzy")


GUIDE = """
import torch, pyro
from pyro.nn import PyroModule

class Guide(PyroModule):
    causality = "anti_causal"
    def __init__(self, spec, prior):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(prior().event_shape))
    def posterior(self, x):
        return torch.distributions.Normal(self.loc.expand(len(x), -1, -1), 1.0)
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GUIDE, r"gives \(1, 8, 2\) \+ \(\) for one datum; the prior has event shape \(8, 2\)"),
        (GUIDE.replace('causality = "anti_causal"', "pass"), "gives|declares no causality"),
        (GUIDE.replace("(self, spec, prior)", "(self, spec)"), r"Guide fails: TypeError: Guide\.__init__\(\) takes 2"),
    ],
)
def test_guides_that_do_not_fit(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "guide.py").write_text(text)
    with pytest.raises(UserError, match=words):
        build(load_preset("digits", [("guide.program", f"{tmp_path}/guide.py:Guide")]), SPEC)


WHOLE_GUIDE = """
import torch, pyro
import pyro.distributions as dist
from pyro.nn import PyroModule

class Guide(PyroModule):
    causality = "none"
    def __init__(self, spec, prior):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(prior().event_shape))
    def posterior(self, x):
        return dist.Normal(self.loc.expand(len(x), -1, -1), 1.0).to_event(2)
    def forward(self, x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "            return pyro",
            "            pyro.sample('w', dist.Normal(0.0, 1.0))\n            return pyro",
            "samples 'w', which",
        ),
        ('pyro.sample("z"', 'pyro.sample("latent"', "samples no site 'z'"),
        ('pyro.plate("data", len(x))', "torch.enable_grad()", "samples 'z' outside the plate of the data"),
        ("def forward(self, x):", "def other(self, x):", 'missing the required "forward"'),
        ("1.0).to_event(2)", "1.0).to_event(2).has_no_such_thing", "has_no_such_thing"),
        (
            "dist.Normal(self.loc.expand(len(x), -1, -1), 1.0)",
            "dist.TransformedDistribution(dist.Normal(self.loc.expand(len(x), -1, -1), 1.0),"
            " [dist.transforms.AffineTransform(0.0, 2.0)])",
            "has no mean; give it one",
        ),
        (
            "        return dist",
            "        assert len(x) == 1, 'one'\n        return dist",
            "line 12: AssertionError: one",
        ),
    ],
)
def test_guides_that_would_fail_in_training(old: str, new: str, words: str, tmp_path: Path) -> None:
    """They are refused when the programs are built, before there is a folder of a run."""
    named = [("guide.program", f"{tmp_path}/guide.py:Guide")]
    (tmp_path / "guide.py").write_text(WHOLE_GUIDE)
    build(load_preset("digits", named), SPEC)
    assert WHOLE_GUIDE.count(old) == 1
    (tmp_path / "guide.py").write_text(WHOLE_GUIDE.replace(old, new))
    with pytest.raises(UserError, match=re.escape(words)):
        build(load_preset("digits", named), SPEC)


# --- from the command line ---


def test_a_program_that_fails_while_it_runs_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "guide.py"
    file.write_text(WHOLE_GUIDE + "    def start_from(self, x):\n        return {}[len(x)]\n")
    code, _, err = call("train", "--guide", f"{file}:Guide", "--steps", 1, "--device", "cpu", "--out", tmp_path / "run")
    assert (code, err) == (
        2, f"pyro-delta: {file}:Guide fails at {file}, line 17: KeyError: 256; mend the program.\n")  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("claim", ["float('nan')", "-3.0", "'a lot'"])
def test_a_claim_that_is_no_rate_is_refused(claim: str, tmp_path: Path) -> None:
    (tmp_path / "guide.py").write_text(WHOLE_GUIDE + f"    def committed_rate(self, prior):\n        return {claim}\n")
    code, _, err = call("verify", "--guide", f"{tmp_path}/guide.py:Guide")
    assert (code, "it must be a finite number of nats, 0 or more" in err, err.count("\n")) == (2, True, 1)


def train(*args: object) -> tuple[int, str, str]:
    sets = [part for part in SETS if not part.startswith("prior.") and part != "--set"]
    return call(
        "train", "--preset", "cifar10-small", "--dataset", "digits", "--device", "cpu", "--steps", 4,
        *(part for pair in sets for part in ("--set", pair)), *args,
    )  # fmt: skip


def test_a_users_prior_goes_through_verify_train_evaluate_and_check(mine: str, tmp_path: Path) -> None:
    code, out, err = call("verify", "--prior", mine, "--set", "prior.alpha=0.8", "--json")
    assert code == 0, err
    assert json.loads(out)["delta_nats"] == pytest.approx(ar1_committed_rate([0.8] * 2, 8).item(), rel=1e-6)
    code, out, err = train("--prior", mine, "--set", "prior.alpha=0.8", "--out", "run", "--json")
    assert code == 0, err
    assert json.loads(out)["delta_nats"] == pytest.approx(ar1_committed_rate([0.8] * 4, 8).item(), rel=1e-6)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["prior"] == {"program": mine, "dims": 4, "alpha": 0.8}
    assert (tmp_path / "run" / "programs" / "mine.py").read_text() == TEN_LINES
    # the run stands on its own copy
    (tmp_path / "mine.py").unlink()
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    assert call("evaluate", moved)[0] == 0
    code, out, _ = call("check", moved, "--json")
    assert code == 1  # four steps make no use of latents
    assert json.loads(out)["floor_holds"] is True
    assert call("train", "--resume", "--out", moved, "--steps", 6)[0] == 0


def test_an_unknown_object_names_those_that_the_file_makes(mine: str) -> None:
    code, _, err = call("verify", "--prior", mine.replace("Mine", "Xyz"))
    assert (code, err) == (2, "pyro-delta: unknown prior of mine.py 'Xyz'; known: Mine.\n")


def test_a_changed_or_missing_copy_is_told(mine: str, tmp_path: Path) -> None:
    assert train("--prior", mine, "--out", "run")[0] == 0
    copy = tmp_path / "run" / "programs" / "mine.py"
    copy.write_text(TEN_LINES.replace("0.7", "0.71"))
    code, _, err = call("evaluate", "run")
    assert (code, "has changed" in err, err.count("\n")) == (2, True, 1)
    copy.unlink()
    code, _, err = call("check", "run")
    assert (code, "is missing" in err, err.count("\n")) == (2, True, 1)
    code, _, err = call("train", "--resume", "--out", "run")
    assert (code, "is missing" in err) == (2, True)


def test_naming_needs_no_torch() -> None:
    script = "import sys, pyro_delta.programs; assert not {'torch', 'pyro', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
