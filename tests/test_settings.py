"""Settings are found: listed with type, default and words, completed by a shell, read from a file, tried at first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import TINY, call

from pyro_delta import programs
from pyro_delta.config import Config, choose, load_preset, setting_names, settings_of_file
from pyro_delta.describe import SECTIONS, flat, of_program, of_section, written
from pyro_delta.errors import UserError

SHIPPED = [(kind, name) for kind in programs.KINDS for name in programs.SHIPPED[kind] if name != "given"]


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_every_option_of_a_program_has_words(kind: str, name: str) -> None:
    found = of_program(kind, name)
    assert [setting.name for setting in found] == [f"{kind}.{option}" for option in programs.option_names(kind, name)]
    assert [setting.name for setting in found if not (setting.words and setting.type and setting.default)] == []


def test_every_other_setting_has_words() -> None:
    found = [setting for section in SECTIONS for setting in of_section(section)]
    assert {setting.name for setting in found} == {
        name for name in setting_names({}) if name.partition(".")[0] in SECTIONS
    }
    assert [setting.name for setting in found if not (setting.words and setting.type and setting.default)] == []


@pytest.mark.parametrize(
    ("name", "type_", "default"),
    [
        ("training.lr", "number > 0", "0.001"),
        ("training.elbo", "trace | mean_field", "trace"),
        ("training.betas", "[number, number]", "[0.9, 0.999]"),
        ("training.clip", "number > 0", "none"),
        ("training.skip", "number > 0", "none"),
        ("training.lr_sqrt", "number > 0", "none"),
        ("training.bf16", "true | false", "false"),
        ("likelihood.channels", "[int, …]", "[32, 48]"),
        ("prior.alpha", "text | number", "none"),
        ("objective.anneal_steps", "int ≥ 1", "–"),
    ],
)
def test_types_and_defaults_in_words(name: str, type_: str, default: str) -> None:
    section = name.partition(".")[0]
    program = {"likelihood": "gated_pixelcnn", "prior": "ar1", "objective": "annealed"}.get(section)
    (found,) = [
        setting
        for setting in (of_section(section) if program is None else of_program(section, program))
        if setting.name == name
    ]
    assert (found.type, found.default) == (type_, default)


@pytest.mark.parametrize("name", ["digits", "cifar10-small", "cifar10-pixelsnail", "descriptions"])
def test_what_is_written_is_what_set_takes(name: str) -> None:
    from pyro_delta.config import parse_settings

    config = load_preset(name)
    settings = parse_settings([f"{key}={written(value)}" for key, value in flat(config)])
    assert load_preset("digits", settings) == config


def test_what_a_name_is() -> None:
    code, out, _ = call("list", "contour")
    assert code == 0
    assert out.startswith("guide contour\nq(z | x) = Π N(μ, σ²)")
    assert "guide.rate_nats" in out
    assert "Args:" not in out
    both = json.loads(call("list", "gru", "--json")[1])
    assert [part["title"] for part in both] == ["likelihood gru", "guide gru"]
    assert [part["title"] for part in json.loads(call("list", "digits", "--json")[1])] == [
        "data digits",
        "preset digits",
    ]
    assert "training.guide_lr" in call("list", "settings")[1]
    assert "auxiliary.hidden" not in call("list", "training")[1]
    assert call("list", "settings", "training") == call("list", "training")
    assert "pyro-delta list priors" in call("list", "prior")[1]
    assert call("list", "contuor")[::2] == (2, "pyro-delta: unknown name 'contuor'; did you mean 'contour'?\n")


def test_a_program_of_ones_own_is_listed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        'import torch\n\n\nclass Mine(torch.nn.Module):\n    """Mine.\n\n    Args:\n        spec: of the data.\n'
        '        width: how wide it is.\n    """\n\n    def __init__(self, spec, *, width: int = 3):\n'
        "        super().__init__()\n\n    def forward(self):\n        return None\n"
        "\n\nclass Silent(Mine):\n    pass\n"
    )
    assert call("list", f"{tmp_path / 'mine.py'}:Silent")[1].splitlines()[1].split()[0] == "prior.width"
    found = json.loads(call("list", f"{tmp_path / 'mine.py'}:Mine", "--json")[1])
    assert found[0]["settings"] == [{"name": "prior.width", "type": "int", "default": "3", "words": "how wide it is."}]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("train --dataset dig", {"digits"}),
        ("train --prior ar", {"ar1", "ar1_learned", "ar"}),
        ("train --preset cifar10-s", {"cifar10-small"}),
        ("verify --set tr", {"training."}),
        ("train --set training.l", {"training.lr=", "training.lr_sqrt=", "training.log_every="}),
        ("train --prior matern --set prior.length", {"prior.length=", "prior.length_scale="}),
        ("train --preset text --set likelihood.h", {"likelihood.hidden=", "likelihood.heads="}),
        ("train --dataset chorales --set likelihood.h", {"likelihood.hidden="}),
        ("train --set likelihood.program=gru --set likelihood.h", {"likelihood.hidden="}),
        ("train --preset nope --set likelihood.h", set()),
        ("list digi", {"digits"}),
        ("list settings tra", {"training"}),
        ("sweep digits-b", {"digits-by-class"}),
        ("sweep digits-b.", {"file,digits-b."}),
    ],
)
def test_a_shell_is_told_what_may_follow(typed: str, offered: set[str]) -> None:
    words = f"pyro-delta {typed}"
    asked = {"_PYRO_DELTA_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "pyro_delta"], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert {line.removeprefix("plain,") for line in done.stdout.split()} == offered
    assert done.stderr == ""


# --- Settings of a file ---


def test_a_file_gives_settings_and_the_command_line_takes_their_place(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(
        '[prior]\nprogram = "ar1"\ndims = 3\nalpha = 0.5\n[training]\nsteps = 7\nlr = 0.1\nbetas = [0.8, 0.9]\n'
    )

    def chosen(*over: tuple[str, object]) -> Config:
        settings = list(over)
        return choose(settings_of_file(tmp_path / "my.toml", settings) + settings, "digits")[0]

    plain = chosen()
    assert (plain.prior.options["dims"], plain.prior.options["alpha"]) == (3, 0.5)
    assert (plain.training.steps, plain.training.betas) == (7, (0.8, 0.9))
    assert chosen(("training.lr", 0.2)).training.lr == 0.2
    assert chosen(("training.minutes", 1.0)).training.steps is None
    assert chosen(("prior.rate_nats", 2.0)).prior.options["alpha"] is None
    other = chosen(("prior.program", "standard_normal"))
    assert (other.prior.options["dims"], other.training.lr) == (2, 0.1)  # of the preset, which both priors understand


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.toml", None, "cannot read .*none.toml"),
        ("bad.toml", "steps = ", "is not TOML"),
        ("bad.json", "{", "is not JSON"),
        ("flat.toml", "steps = 3", "does not hold sections"),
        ("list.json", "[1]", "does not hold sections"),
        ("typo.toml", "[training]\nstep = 3\n", "unknown setting 'training.step'; did you mean 'training.steps'"),
    ],
)
def test_a_file_that_does_not_do(name: str, text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        choose(settings_of_file(tmp_path / name), "digits")


def test_a_run_is_trained_again_from_its_configuration(tmp_path: Path) -> None:
    assert call("train", *TINY, "--steps", 2, "--out", tmp_path / "one")[0] == 0
    code, _, err = call("train", "--config", tmp_path / "one" / "config.json", "--seed", 5, "--out", tmp_path / "two")
    assert code == 0, err
    one, two = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two"))
    assert (one["training"].pop("seed"), two["training"].pop("seed")) == (0, 5)
    assert one == two
    presets = [json.loads((tmp_path / name / "run.json").read_text())["preset"] for name in ("one", "two")]
    assert presets == ["cifar10-small"] * 2  # where the data would ask for `digits`
    code, _, err = call("train", "--config", tmp_path / "one" / "config.json", "--preset", "digits", "--dry-run")
    assert code == 2
    assert "whose preset is 'cifar10-small'; leave --preset out" in err


# --- A training that is only tried ---


def test_a_dry_run_says_what_a_training_takes_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call("train", *TINY, "--steps", 1000, "--dry-run", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["steps"] == 1000
    assert found["weights"] > 100
    assert found["peak_memory_GiB"] > 0.1
    assert found["minutes_of_training"] == pytest.approx(1000 * found["seconds_per_step"] / 60)
    assert found["config"]["training"]["steps"] == 1000
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("train", *TINY, "--minutes", 1, "--dry-run")
    assert code == 0
    assert "training.minutes = 1" in out
    assert "committed rate: δ = " in out
    assert call("train", *TINY, "--dry-run", "--out", "x")[::2] == (
        2,
        "pyro-delta: --dry-run writes nothing and goes on with nothing; leave --out, --resume, --control and --report "
        "out.\n",
    )
