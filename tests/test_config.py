"""Presets and settings: what is laid over what, what is refused and with which words, and that the file is whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_delta import config as configuration
from pyro_delta.build import build
from pyro_delta.config import load_preset, overlaid, parse_settings, preset_names, preset_text
from pyro_delta.data.images.spec import ImageSpec
from pyro_delta.errors import UserError

PRESET = "cifar10-small"


@pytest.mark.parametrize("name", preset_names())
def test_preset_is_valid_and_opens_with_a_comment(name: str) -> None:
    load_preset(name)
    assert preset_text(name).startswith("# ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("training.lr=1e-2", 0.01),
        ("training.compile=false", False),
        ("prior.length=null", None),
        ("likelihood.channels=[8, 16]", [8, 16]),
        ("data.program=folder:a=b", "folder:a=b"),
        ("prior.alpha=0.5:0.95", "0.5:0.95"),
        (" prior.alpha =0.5", 0.5),
    ],
)
def test_setting_is_json_where_it_can_be(text: str, value: object) -> None:
    [(key, parsed)] = parse_settings([text])
    assert key == text.partition("=")[0].strip()
    assert parsed == value


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        (("prior.alpha", "0.5:0.9"), ("prior", "rate_nats")),
        (("prior.rate_nats", 3.0), ("prior", "alpha")),
        (("training.steps", 7), ("training", "minutes")),
        (("training.minutes", 0.5), ("training", "steps")),
    ],
)
def test_setting_one_of_a_pair_takes_the_other_away(given: tuple[str, object], gone: tuple[str, str]) -> None:
    tree = load_preset(PRESET, [given]).model_dump()
    section, field = given[0].split(".")
    assert tree[section][field] == given[1]
    assert tree[gone[0]][gone[1]] is None


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("training.lrr", 1, "did you mean 'training.lr'?"),
        ("optimizer", 1, "unknown setting 'optimizer'; did you mean 'training.optimizer'?"),
        ("optimiser", 1, "did you mean 'training.optimizer'?"),
        ("lr", 4, "did you mean 'training.lr' or 'auxiliary.lr'?"),
        ("model.lr", 4, "did you mean 'training.lr' or 'auxiliary.lr'?"),
        ("xyz", 4, "unknown setting 'xyz'; the config.json of any run names all "),
        ("prior.program", "ar2", "unknown prior 'ar2'; did you mean 'ar'?"),
        ("prior.program", None, "by its name"),
        ("prior.dmis", 2, "unknown setting of the prior 'ar1' 'prior.dmis'; did you mean 'prior.dims'?"),
        ("prior.pacf", [0.5], "unknown setting of the prior 'ar1' 'prior.pacf'; of those shipped ar takes it."),
        (
            "likelihood.blocks",
            2,
            "; did you mean 'likelihood.row_blocks'? Of those shipped pixelsnail, wavenet take it.",
        ),
        ("guide.rate_nats", 9, "'guide.rate_nats'; of those shipped contour, gru, transformer, spectral take it."),
        ("prior.dims", 2.5, "prior.dims: Input should be a valid integer"),
        ("prior.rate_nats", float("nan"), "finite number"),
        ("training.lr", float("inf"), "finite number"),
        ("training.minutes", float("nan"), "finite number"),
        ("training.betas", [0.9, 1.0], "must lie in [0, 1)"),
        ("training.betas", [0.9], "training.betas=[0.9] has too few values; give 2."),
        ("training.betas", [], "training.betas=[] has too few values; give 2."),
        ("training.batch", 2.5, "training.batch"),
        ("training.seed", 2**63, "training.seed: Input should be less than or equal to 9223372036854775807"),
        ("data.seed", 2**63, "data.seed: Input should be less than or equal to 9223372036854775807"),
        ("likelihood.channels", 8, "likelihood.channels: a list in brackets is needed, as [24, 32], got 8."),
        ("likelihood.channels", "(24,32)", "as [24, 32], got '(24,32)'."),
    ],
)
def test_refused_settings(key: str, value: object, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_preset(PRESET, [(key, value)])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "near"), [("training.lr", "training.lr"), ("lr", "training.lr"), ("=3", "prior.dims"), ("", "prior.dims")]
)
def test_a_setting_needs_key_and_value(text: str, near: str) -> None:
    with pytest.raises(UserError, match=rf"--set {text!r} is not of the form key=value; write {near}=VALUE"):
        parse_settings([text])


def read(path: Path) -> configuration.Config:
    return configuration.of_tree(configuration.tree_of(path.read_bytes(), path), path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "it is not JSON"),
        ("[1]", "it holds '[1]' rather than sections of settings"),
        ("{}", "data is not a section of settings with a program"),
        ('{"data": 3}', "data is not a section of settings with a program"),
    ],
)
def test_files_that_are_no_configuration(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(f"{path} is damaged: {words}")):
        read(path)


def test_both_of_a_pair_are_refused() -> None:
    with pytest.raises(UserError, match=r"prior\.alpha and prior\.rate_nats contradict each other"):
        load_preset(PRESET, [("prior.alpha", 0.5), ("prior.rate_nats", 3.0)])


SPEC = ImageSpec(1, 8, 8, 17)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("prior.dims", 0, "dims is 0"),
        ("prior.rate_nats", -1.0, "cannot be committed"),
        ("prior.length", 5, "length=5 does not divide the 8 positions of the data"),
        ("likelihood.channels", [8], "must name the same levels"),
        ("likelihood.channels", [], "must name the same levels"),
        ("likelihood.row_kernel", [2, 2], "odd number of columns"),
        ("likelihood.channels", [10**6] * 4, "gated_pixelcnn does not fit into memory with these options"),
        ("likelihood.channels", [10**24] * 4, "gated_pixelcnn does not fit into memory with these options"),
        ("guide.pixel_blocks", 0, "at least 1"),
        ("likelihood.mixtures", 0, "at least one component"),
    ],
)
def test_sizes_that_make_no_program(key: str, value: object, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        build(load_preset(PRESET, [(key, value)]), SPEC)


def test_saved_configuration_comes_back_whole(tmp_path: Path) -> None:
    config = load_preset(PRESET, [("prior.alpha", "0.5:0.9"), ("data.program", "folder:ä b"), ("training.clip", None)])
    (tmp_path / "config.json").write_bytes(configuration.as_text(config))
    assert read(tmp_path / "config.json") == config
    assert overlaid(config.model_dump(), []) == config


def test_configuration_needs_no_torch() -> None:
    script = "import sys, pyro_delta.config; assert not {'torch', 'pyro', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
