"""Sounds: μ-law, files and spectrograms, speech and folders, the WaveNet and the spectral guide, and runs of them."""

import json
import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from networks import StepsPrior, random_images, random_normal, randomise
from PIL import Image
from scipy.signal import resample_poly
from test_cli import call
from torch import Tensor
from torch.nn.functional import conv1d, pad, silu

import pyro_delta
from pyro_delta.data import load
from pyro_delta.data.audio import SoundSpec
from pyro_delta.data.audio.companding import compressed, expanded
from pyro_delta.data.audio.sounds import filled, lengths_of
from pyro_delta.diagnostics.bounds import encode
from pyro_delta.diagnostics.verify import verify
from pyro_delta.errors import UserError
from pyro_delta.guides import SpectralGuide
from pyro_delta.guides.sequences.spectral import SpectrumReader
from pyro_delta.models import AR1Prior, ARPrior, DeltaVAE, WaveNetLikelihood
from pyro_delta.models.sequences.wavenet import ConditionalWaveNet
from pyro_delta.rate import ar1_committed_rate, committed_rate, rate_of_bitrate
from pyro_delta.vae import VAE

SPEC = SoundSpec(3, samples=40, rate=8000)


# --- μ-law ---


def test_levels_are_those_of_the_formula_and_come_back() -> None:
    """By forty digits, level by level, and the edges between levels lie in the middle of the companded scale."""
    level = torch.arange(256)
    found = expanded(level.double(), 256)
    with localcontext(prec=40):
        for v, amplitude in zip(level.tolist(), found.tolist()):
            f = Decimal(2 * v - 255) / 255
            exact = (Decimal(256) ** abs(f) - 1) / 255 * (1 if f > 0 else -1)
            assert abs(Decimal(amplitude) - exact) < Decimal("2e-15")
        for v in range(255):
            edge = (Decimal(256) ** (abs(Decimal(2 * v - 254)) / 255) - 1) / 255 * (1 if v >= 127 else -1)
            near = torch.tensor([float(edge) - 1e-9, float(edge) + 1e-9], dtype=torch.float64)
            assert compressed(near, 256).tolist() == [v, v + 1]
    assert torch.equal(compressed(found, 256), level.to(torch.uint8))
    assert compressed(torch.tensor([0.0, 1.0, -1.0, 7.0, -7.0]), 256).tolist() == [128, 255, 0, 255, 0]
    assert found.diff().min() > 1.7e-4
    # in a file of 16 bits they stay apart, and none is 0
    in_file = (found * 2**15).round().clamp(max=2**15 - 1)
    assert torch.equal(compressed(in_file / 2**15, 256), level.to(torch.uint8))
    assert (in_file != 0).all()


def test_levels_are_nearly_those_of_g711(tmp_path: Path) -> None:
    """By libsndfile, whose eight straight lines are nowhere more than three of our levels away."""
    wave = np.arange(-(2**15), 2**15, 7).astype(np.int16)
    soundfile.write(tmp_path / "x.wav", wave, 8000, subtype="ULAW")
    theirs, _ = soundfile.read(tmp_path / "x.wav")
    ours = expanded(compressed(torch.from_numpy(wave / 2**15), 256).double(), 256).numpy()
    levels = [compressed(torch.from_numpy(x), 256).int() for x in (theirs, ours)]
    assert (levels[0] - levels[1]).abs().max() <= 3
    error = [np.abs(x - wave / 2**15) / np.maximum(np.abs(wave / 2**15), 0.01) for x in (theirs, ours)]
    assert error[1].max() < 1.1 * error[0].max() < 0.05


# --- Files ---


def sounds(*lengths: int, spec: SoundSpec = SPEC) -> Tensor:
    """Random sounds of so many positions."""
    x = random_images(spec, (len(lengths),))
    for sound, length in zip(x, lengths):
        sound[length:] = 0
        sound[:length] = sound[:length].clamp(min=1)
    return x.to(torch.uint8)


@pytest.mark.parametrize("lengths", [(3,), (1, 3, 2), (2, 2)])
def test_what_is_shown_can_be_opened(lengths: tuple[int, ...], tmp_path: Path) -> None:
    x = sounds(*lengths)
    x[0, 0] = 128  # silence is no pause
    SPEC.show(x, tmp_path / "x.wav", columns=2)
    back, names = SPEC.open(tmp_path / "x.wav")
    assert torch.equal(back, x)
    assert back.dtype == torch.uint8
    assert names == (["x.wav"] if len(x) == 1 else [f"x.wav/{number}" for number in range(len(x))])
    assert SPEC.beside(back)["lengths"].tolist() == list(lengths)
    assert torch.equal(SPEC.open(tmp_path / "x.wav", 1)[0], x[:1])
    info = soundfile.info(tmp_path / "x.wav")
    assert (info.samplerate, info.channels, info.subtype) == (8000, 1, "PCM_16")
    assert info.frames == 40 * sum(lengths) + 2000 * (len(lengths) - 1)
    with Image.open(tmp_path / "x.png") as picture:
        # of 120 samples 61 frequencies, 4 steps of 30
        assert picture.size == (2 + 2 * (4 + 2), 2 + -(-len(x) // 2) * (61 + 2))


def test_a_tone_is_a_line_of_its_frequency(tmp_path: Path) -> None:
    spec = SoundSpec(40)
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(40 * 160) / 8000)
    spec.show(filled(spec, compressed(torch.from_numpy(tone), 256)), tmp_path / "x.wav", columns=1)
    with Image.open(tmp_path / "x.png") as picture:
        light = np.asarray(picture.convert("RGB"))[2:-2, 2:-2].sum(-1)
    assert len(light) == 129
    assert set(light[:, 20:-20].argmax(0)) == {128 - 32}  # of 31.25 Hz each, upwards


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_files_of_other_kinds_and_rates_are_read(suffix: str, tmp_path: Path) -> None:
    """Against another way to resample, up to 3 kHz, below where the filters of both begin."""
    time = np.arange(4410) / 44100
    wave = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 2000 * time)
    soundfile.write(tmp_path / f"x{suffix}", wave, 44100)
    x, names = SoundSpec(5).open(tmp_path / f"x{suffix}")
    assert names == [f"x{suffix}"]
    expected = resample_poly(wave, 80, 441)
    found = expanded(x.double(), 256).flatten().numpy()
    assert SoundSpec(5).beside(x)["lengths"].tolist() == [5]
    middle = slice(100, 700)
    assert np.abs(found[middle] - expected[middle]).max() < (0.06 if suffix == ".ogg" else 0.02)


def test_the_last_position_is_filled_up_with_silence() -> None:
    x = filled(SoundSpec(3, samples=4), torch.tensor([9, 8, 7, 6, 5], dtype=torch.uint8))
    assert x.tolist() == [[[9, 8, 7, 6], [5, 128, 128, 128], [0, 0, 0, 0]]]
    pieces = filled(SoundSpec(2, samples=2), torch.arange(1, 8, dtype=torch.uint8))
    assert pieces.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 128]]]
    assert lengths_of(torch.zeros(1, 3, 4, dtype=torch.uint8)).tolist() == [1]


def wave_of(seconds: float, rate: int = 8000, channels: int = 1) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(round(seconds * rate), channels)) / 10
    return noise.squeeze(1) if channels == 1 else noise


def written(path: Path, wave: np.ndarray, rate: int = 8000, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, **options)
    return path


def cut_off(path: Path) -> None:
    path.write_bytes(written(path, wave_of(0.05)).read_bytes()[:300])


def not_a_number(path: Path) -> None:
    wave = wave_of(0.05)
    wave[7] = np.nan
    written(path, wave, subtype="FLOAT")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("la la la"), "is not a sound that can be read (Format not recognised"),
    "empty": (lambda path: path.write_bytes(b""), "is not a sound that can be read"),
    "no samples": (lambda path: written(path, wave_of(0)), "holds no samples; give a sound."),
    "cut off": (cut_off, "ends before what its header says; fetch it again."),
    "stereo of 44.1 kHz": (lambda path: written(path, wave_of(0.05, 44100, 2), 44100), "has 2 channels; mix it down"),
    "NaN": (not_a_number, "has 1 of 400 samples that are NaN or infinite; put 0 in their place."),
    "loud": (lambda path: written(path, wave_of(0.05) * 1e4, subtype="FLOAT"), "where full scale is 1; divide them"),
    "long": (lambda path: written(path, wave_of(2)), "has 100 positions of 20 ms, and a sound here 3 at most; give a"),
    "a folder of nothing": (lambda path: path.mkdir(), "holds no sounds; put files ending in .wav, .flac, .ogg there."),
    "nothing": (lambda path: None, "cannot read"),
}


@pytest.mark.parametrize(("make", "sentence"), BAD.values(), ids=BAD)
def test_bad_files_are_refused_in_a_sentence(make: Callable[[Path], object], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    make(path)
    with pytest.raises(UserError) as caught:
        SoundSpec(3).open(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_channels_are_averaged_if_that_is_asked_for(tmp_path: Path) -> None:
    stereo = wave_of(0.02, channels=2)
    found, _ = SoundSpec(1, mono=True).open(written(tmp_path / "x.wav", stereo, subtype="DOUBLE"))
    assert torch.equal(found.flatten(), compressed(torch.from_numpy(stereo.mean(1)), 256))


def test_samples_that_are_clipped_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a line for a file, and one for all of a folder; what is at full scale is not beyond it."""
    wave = wave_of(0.05)
    wave[[3, 7, 11]] = 1.0, -1.0, 0.5
    quiet = written(tmp_path / "a" / "quiet.wav", wave, subtype="FLOAT")
    assert len(SoundSpec(3).open(quiet)[0]) == 1
    assert not caplog.messages
    wave[[5, 6]] = 1.25, -1.75
    loud = written(tmp_path / "a" / "loud.wav", wave, subtype="FLOAT")
    found = SoundSpec(3).open(loud)[0].flatten()
    assert found[[5, 6]].tolist() == [255, 0]
    mend = "and count as ±1; if these are more than a decoder's overshoot, divide by the largest"
    assert caplog.messages == [f"{loud}: 2 of 400 samples lie beyond full scale, up to 1.75, {mend}"]
    caplog.clear()
    for name, factor in (("b", 1.01), ("c", 1.005)):
        written(tmp_path / "a" / f"{name}.wav", wave * factor, subtype="FLOAT")
    (quiet.parent / "notes.txt").touch()
    of_files = f"of 3 files, the loudest of them {tmp_path / 'a' / 'b.wav'}, lie beyond full scale, up to 1.77"
    lines = [f"{tmp_path / 'a'}: 10 of 1200 samples {of_files}, {mend}"]
    SoundSpec(3).open(tmp_path / "a")
    assert [line for line in caplog.messages if "beyond" in line] == lines
    caplog.clear()
    load(f"audio:{tmp_path / 'a'}", length=3)
    assert [line for line in caplog.messages if "beyond" in line] == lines


def test_files_that_are_not_shown_ones_are_one_sound(tmp_path: Path) -> None:
    """Silence in them is no pause."""
    wave = np.concatenate((wave_of(0.1), np.zeros(2000), wave_of(0.1)))
    x, names = SoundSpec(80).open(written(tmp_path / "x.wav", wave))
    assert (len(x), names) == (1, ["x.wav"])
    assert len(SoundSpec(80).open(written(tmp_path / "y.wav", np.zeros(400)))[0]) == 1
    both, names = SoundSpec(80).open(tmp_path)
    assert names == ["x.wav", "y.wav"]
    assert torch.equal(both[:1], x)


def test_full_scale_below_zero_is_no_end(tmp_path: Path) -> None:
    """Level 0 throughout lies behind an end; a sound of −1 has its length all the same."""
    spec = SoundSpec(25)
    soundfile.write(tmp_path / "x.wav", np.full(4000, -1.0), 8000, subtype="PCM_16")
    x, _ = spec.open(tmp_path / "x.wav")
    assert spec.beside(x)["lengths"].tolist() == [25]
    assert spec.measures(x) == {"second": [0.5]}


def test_what_is_shorter_than_a_sample_is_said(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(2), 44100)
    with pytest.raises(UserError, match="is shorter than a sample at 8000 Hz; give a longer sound"):
        SoundSpec(25).open(tmp_path / "x.wav")


def test_bad_specs_and_paths(tmp_path: Path) -> None:
    for make, sentence in (
        (lambda: SoundSpec(0), "hold nothing"),
        (lambda: SoundSpec(2, levels=255), "even number"),
        (lambda: SoundSpec(2, levels=258), "even number"),
        (lambda: SPEC.show(sounds(1), tmp_path / "nowhere" / "x.wav", 1), "cannot write"),
    ):
        with pytest.raises(UserError, match=sentence):
            make()


# --- Speech, and folders ---


def folder_of_speech(root: Path, *, seconds: float = 0.1, count: int = 25) -> Path:
    rng = np.random.default_rng(0)
    for name in ("digits", "letters", "phonetic"):
        for number in range(count):
            wave = rng.normal(size=int(8000 * seconds * rng.uniform(0.3, 1))) / 10
            written(root / "speech" / "en" / name / f"{number}.wav", wave)
    return root


def test_speech_is_split_by_files_and_keeps_all(tmp_path: Path) -> None:
    root = folder_of_speech(tmp_path)
    data = load("speech", root=root, length=5)
    assert data.spec == SoundSpec(5)
    assert data.classes == ("digits", "letters", "phonetic")
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [17, 22, 36]
    for part in parts:
        assert torch.equal(part.extras["lengths"], data.spec.beside(part.x)["lengths"])
        assert torch.bincount(part.labels).diff().abs().max() <= 2
    expected = sum(-(-soundfile.info(file).frames // 160) for file in root.glob("speech/en/*/*.wav"))
    assert sum(int(part.extras["lengths"].sum()) for part in parts) == expected
    assert torch.equal(load("speech", root=root, length=5, seed=3).test.x, data.test.x)
    with pytest.raises(UserError, match=r"has \d positions of 20 ms, and a sound here 2 at most; .*data.cut=true"):
        load("speech", root=root, length=2)
    cut = load("speech", root=root, length=2, cut=True)
    pieces = [cut.train, cut.validation, cut.test]
    assert sum(int(part.extras["lengths"].sum()) for part in pieces) == expected
    for part, others in zip(parts, pieces):  # whatever it is cut into, a file is in one split
        whole = {bytes(x.flatten()[: 160 * n].numpy()) for x, n in zip(part.x, part.extras["lengths"].tolist())}
        for x, n in zip(others.x, others.extras["lengths"].tolist()):
            assert any(bytes(x.flatten()[: 160 * n].numpy()) in sound for sound in whole)


def test_a_folder_of_sounds(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("test", 3)):
        for number in range(count):
            written(tmp_path / split / f"{number}.flac", wave_of(0.05 + 0.01 * number))
    data = load(f"audio:{tmp_path}", length=10)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [11, 1, 3]
    assert data.classes is None
    assert sorted(data.test.extras["lengths"].tolist()) == [3, 3, 4]
    for part in ("train", "test"):
        for label in "ab":
            written(tmp_path / "classes" / part / label / "x.wav", wave_of(0.05))
    assert load(f"audio:{tmp_path / 'classes'}", validation=1).classes == ("a", "b")


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda root: None, "there is no data folder"),
    "no test": (lambda root: written(root / "train" / "x.wav", wave_of(0.1)), "there is no folder"),
    "no sounds": (lambda root: [(root / part).mkdir(parents=True) for part in ("train", "test")], "holds no sounds"),
    "one file": (
        lambda root: [written(root / part / "x.wav", wave_of(0.1)) for part in ("train", "test")],
        "1 is left to divide; add data",
    ),
    "a long one": (
        lambda root: [written(root / part / f"{n}.wav", wave_of(2)) for part in ("train", "test") for n in range(3)],
        "has 100 positions of 20 ms, and a sound here 80 at most",
    ),
    "stereo": (
        lambda root: [
            written(root / part / f"{n}.wav", wave_of(0.1, 44100, 2), 44100) for part in ("train", "test") for n in "ab"
        ],
        "has 2 channels; mix it down to one, or average them by data.mono=true.",
    ),
}


@pytest.mark.parametrize(("make", "sentence"), FOLDERS.values(), ids=FOLDERS)
def test_folders_that_are_none(
    make: Callable[[Path], object], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("mine"))
    code, out, err = call("train", "--dataset", "audio:mine", "--steps", 1, "--out", "run")
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert not Path("run").exists()


# --- The network and the guide ---

TINY = SoundSpec(4, samples=3, levels=8)
STARTS = {"a_step_a_position": [0, 1, 2, 3], "half": [0, 2], "two_steps": [1, 1, 3, 3], "unsorted": [3, 0, 2]}


def sound_vae(starts: list[int], spec: SoundSpec = TINY, *, blocks: int = 3, conditioning: str = "causal") -> VAE:
    prior = StepsPrior(starts, [0.5, 0.8])
    likelihood = WaveNetLikelihood(spec, prior, channels=4, blocks=blocks, mixtures=2, conditioning=conditioning)
    return randomise(VAE(DeltaVAE(prior, likelihood), SpectralGuide(spec, prior, hidden=4))).double()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", STARTS)
def test_samples_and_latents_see_what_they_may(name: str, training: bool) -> None:
    """Jacobians: of a sample by all earlier ones in reach, no hole inside; of a position by its latents; of a guide."""
    vae, starts = sound_vae(STARTS[name]).train(training), torch.tensor(STARTS[name])
    x = random_images(TINY, (2,)).double().requires_grad_()
    z = random_normal(2, *vae.model.prior().event_shape).double().requires_grad_()
    out = vae.model.likelihood(z).parameters_at(x).flatten(1, 2)
    position = torch.arange(12) // 3
    for place in range(12):
        by_x, by_z = torch.autograd.grad(out[0, place].sum(), (x, z), retain_graph=True)
        seen = by_x.flatten(1) != 0
        assert seen[0].tolist() == [place - 8 <= other < place for other in range(12)]  # 2³ of them
        assert not seen[1].any()
        assert (by_z[0] != 0).any(1).tolist() == (starts <= position[place]).tolist()
        assert not by_z[1].any()
    mean = vae.guide.posterior(x).mean
    for t in range(len(starts)):
        (grad,) = torch.autograd.grad(mean[0, t].sum(), x, retain_graph=True)
        assert (grad[0].flatten() != 0).tolist() == (position >= starts[t]).tolist()
        assert not grad[1].any()


def test_all_latents_are_seen_under_full_conditioning() -> None:
    z = random_normal(1, 2, 2).double().requires_grad_()
    vae = sound_vae([1, 3], conditioning="full")
    out = vae.model.likelihood(z).parameters_at(random_images(TINY, (1,)))
    (grad,) = torch.autograd.grad(out[0, 0, 0].sum(), z)
    assert (grad != 0).any(-1).all()
    with pytest.raises(UserError, match=r"unknown likelihood.conditioning 'all'"):
        sound_vae([1, 3], conditioning="all")


def plainly(network: ConditionalWaveNet, x: Tensor, z: Tensor) -> Tensor:
    """The same parameters by torch's dilated convolutions, (B, T, 3K)."""
    v = conv1d(pad(x.flatten(1) * (2 / 7) - 1, (1, 0))[:, None, :-1], network.stem.weight[..., None], network.stem.bias)
    links = network.latents(z).repeat_interleave(x.shape[2], 1).mT.chunk(len(network.blocks), 1)
    said = torch.zeros_like(v)
    for k, (block, link) in enumerate(zip(network.blocks, links)):
        weight = torch.stack(block.conv.weight.chunk(2, 1), -1)  # the older sample first
        seen = conv1d(pad(v, (2**k, 0)), weight, block.conv.bias, dilation=2**k)
        a, b = (seen + link).chunk(2, 1)
        more, told = conv1d(a * b.sigmoid(), block.out.weight[..., None], block.out.bias).chunk(2, 1)
        v, said = v + more, said + told
    head = conv1d(silu(said), network.head.weight[..., None], network.head.bias)
    return conv1d(silu(head), network.out.weight[..., None], network.out.bias).mT


def test_the_network_is_a_stack_of_dilated_convolutions() -> None:
    vae, x, z = sound_vae([0, 2]), random_images(TINY, (3,)), random_normal(3, 2, 2).double()
    found = vae.model.likelihood(z).parameters_at(x)
    torch.testing.assert_close(found.flatten(1, 2), plainly(vae.model.likelihood.network, x.double(), z))


def test_probabilities_of_all_sounds_sum_to_one() -> None:
    """And draws are as often as that: all 4⁴ sounds of two positions of two samples, and those of one position."""
    spec = SoundSpec(2, samples=2, levels=4)
    likelihood = sound_vae([0, 1], spec, blocks=2).model.likelihood
    x = torch.tensor(list(product(range(4), repeat=4))).reshape(-1, 2, 2)
    z = random_normal(1, 2, 2).double()
    p = likelihood(z).log_prob(x).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    drawn = likelihood(z.expand(20_000, 2, 2)).sample()
    often = torch.bincount((drawn.flatten(1) * torch.tensor([64, 16, 4, 1])).sum(1), minlength=256) / len(drawn)
    assert ((often - p).abs() <= 5 * (p / len(drawn)).sqrt() + 1e-4).all()
    short = likelihood(z, torch.tensor([1])).log_prob(x).exp()
    torch.testing.assert_close(short.reshape(16, 16)[:, 0], p.reshape(16, 16).sum(1), rtol=0, atol=1)
    assert short.reshape(16, 16)[:, 0].sum().item() == pytest.approx(1, abs=1e-12)
    assert (short.reshape(16, 16) == short.reshape(16, 16)[:, :1]).all()


@pytest.mark.parametrize("blocks", [1, 3, 5])
def test_cached_samples_are_naive_ones(blocks: int) -> None:
    """With the same noise, sample by sample from whole passes: parameters to 1e-12, levels the same."""
    vae = sound_vae(STARTS["half"], blocks=blocks)
    for weight in vae.parameters():
        weight.data *= 0.5  # that the levels are not all at an end
    p = vae.model.likelihood(random_normal(4, 2, 2).double())
    uniforms = p.noise(4)
    found = p.sample(uniforms=uniforms)
    x, state = torch.zeros(4, 12, dtype=torch.int64), p.network.start(p.z)
    for i in range(12):
        naive = p.parameters_at(x.reshape(4, 4, 3)).flatten(1, 2)[:, i]
        cached = p.network.step(state, i, x[:, i - 1] if i else None)
        torch.testing.assert_close(cached, naive, rtol=1e-12, atol=1e-12)
        logits, mean, log_scale = naive.chunk(3, -1)
        u = uniforms.reshape(4, 12, 2)[:, i]
        picked = (u[:, :1] > logits.softmax(-1).cumsum(-1)[:, :-1]).sum(-1, keepdim=True)
        place = mean.gather(1, picked) + log_scale.clamp(-7, 7).gather(1, picked).exp() * u[:, 1:].logit()
        x[:, i] = ((place + 1) * 3.5).round().clamp(0, 7).long()[:, 0]
    assert torch.equal(found, x.reshape(4, 4, 3))
    assert len(x.unique()) > 2
    lengths = torch.tensor([1, 4, 3, 2])
    short = type(p)(p.network, p.z, lengths).sample(uniforms=uniforms)
    assert torch.equal(short, torch.where((torch.arange(4) < lengths[:, None])[..., None], found, 0))


@pytest.mark.parametrize("name", STARTS)
def test_nothing_is_heard_from_behind_the_end(name: str) -> None:
    vae, lengths = sound_vae(STARTS[name]), torch.tensor([2, 4, 1])
    starts, x, other = torch.tensor(STARTS[name]), random_images(TINY, (3,)), random_images(TINY, (3,), 1)
    y = torch.where((torch.arange(4) < lengths[:, None])[..., None], x, other)
    q, found = vae.guide.posterior(x, lengths).base_dist, vae.guide.posterior(y, lengths).base_dist
    padding = starts >= lengths[:, None]
    assert torch.equal(q.loc, found.loc)
    assert (q.loc[padding] == 0).all()
    assert (q.scale[padding] == 1).all()
    z = random_normal(3, *vae.model.prior().event_shape).double()
    score = vae.model.likelihood(z, lengths).log_prob
    assert torch.equal(score(x), score(y))
    assert torch.equal(score(x), vae.model.likelihood(torch.where(padding[..., None], -z, z), lengths).log_prob(x))
    whole = vae.model.likelihood(torch.where(padding[..., None], 0, z)).terms(x).reshape(3, 4, 3)
    expected = (whole.sum(-1) * (torch.arange(4) < lengths[:, None])).sum(-1)
    torch.testing.assert_close(score(x), expected)


def test_the_guide_hears_spectra() -> None:
    """By the definition, sum by sum; and a sound turned upside down, whose spectra are the same, sounds the same."""
    reader = sound_vae([0, 1, 2, 3]).guide.encoder.reader
    x = random_images(TINY, (1,))
    amplitude = expanded(x.double(), 8)[0]
    features = torch.zeros(4, 2, dtype=torch.float64)
    for position, f in product(range(4), range(2)):
        total = sum(
            math.sin(math.pi * (s + 0.5) / 3) ** 2 * amplitude[position, s].item() * np.exp(-2j * math.pi * f * s / 3)
            for s in range(3)
        )
        features[position, f] = (math.log(1e-4 + abs(total) ** 2) + 5) / 3
    torch.testing.assert_close(reader(x)[0], reader.spectrum(features))
    torch.testing.assert_close(reader(7 - x), reader(x))


def test_the_deviation_starts_at_that_of_the_least_rate() -> None:
    prior = AR1Prior(TINY, dims=2, alpha=0.7)
    guide = SpectralGuide(TINY, prior, hidden=5)
    x, lengths = random_images(TINY, (64,)), torch.full((64,), 4)
    guide.start_from(x, lengths)
    q = guide.posterior(x, lengths).base_dist
    expected = torch.tensor([1 - 0.49, (1 - 0.49) / (1 + 0.49)]).sqrt()[[0, 1, 1, 0], None]
    torch.testing.assert_close(q.scale, expected.expand(64, 4, 2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(q.loc.flatten(0, 1).mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match=r"x has shape \(4, 3\), that of one sound; give it a batch axis"):
        guide(x[0])


class SeesItself(ConditionalWaveNet):
    """Sample t hears itself."""

    def forward(self, x: Tensor, z_bnd: Tensor) -> Tensor:
        return super().forward(x.flatten(1).roll(-1, 1).reshape(x.shape), z_bnd)


class HearsAhead(ConditionalWaveNet):
    """Each position is told what only the next may know of z."""

    def _links(self, z_bnd: Tensor, batch: int) -> Tensor:
        return super()._links(z_bnd, batch).roll(-1, 1)


class Forwards(SpectrumReader):
    """Reads from the beginning."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


@pytest.mark.parametrize(
    ("part", "wrong", "title"),
    [
        ("model", None, None),
        ("model", SeesItself, "causality of the network"),
        ("model", HearsAhead, "causality of the conditioning"),
        ("guide", Forwards, "causality of the guide"),
    ],
    ids=["honest", "sees itself", "hears ahead", "forwards"],
)
def test_verify_knows_sounds(part: str, wrong: type | None, title: str | None) -> None:
    """Of more samples than are looked at one by one; and what is planted is found."""
    spec = SoundSpec(9, samples=4 if wrong else 120, levels=8)
    prior = AR1Prior(spec, dims=1, rate_nats=2.0)
    likelihood = WaveNetLikelihood(spec, prior, channels=2, blocks=2, mixtures=1)
    vae = VAE(DeltaVAE(prior, likelihood), SpectralGuide(spec, prior, hidden=3))
    if wrong is not None:
        (vae.guide.encoder.reader if part == "guide" else likelihood.network).__class__ = wrong
    certificate = verify(vae, spec, extras={"lengths": torch.tensor([3, 9, 5])})
    failed = {finding.name for finding in certificate.findings if finding.passed is False}
    assert failed - {"sites"} == ({title} if title else set())
    if title is None:
        assert certificate.delta_nats == pytest.approx(2.0, rel=1e-6)
        assert certificate.guarantee == "every datum, by its length"
        (found,) = [finding for finding in certificate.findings if finding.name == "causality of the network"]
        places = int(found.found.split(" of 1080 places")[0].split()[-1])
        assert 900 < places < 1024


# --- Bits a second ---


def test_a_bitrate_is_a_rate() -> None:
    spec = SoundSpec(50)
    assert spec.seconds == 1
    prior = AR1Prior(spec, dims=2, bitrate=20.0)
    assert ar1_committed_rate(prior.alpha, 50).item() == pytest.approx(20 * math.log(2), rel=1e-6)
    assert torch.equal(prior.alpha, AR1Prior(spec, dims=2, rate_nats=20 * math.log(2)).alpha)
    assert rate_of_bitrate(0.0, 1.0, 50, 2) == 0
    for options, sentence in (
        ({"bitrate": 48.0}, "a bitrate of 48 bits a second is not from 0 up to 48, at which 2 dimensions of 50 steps"),
        ({"bitrate": math.nan}, "a bitrate of nan bits"),
        ({"bitrate": -1.0}, "a bitrate of -1 bits"),
        ({"bitrate": 1.0, "rate_nats": 1.0}, "both of prior.rate_nats and prior.bitrate given; give just one."),
        ({}, "none of prior.alpha and prior.rate_nats given; give just one."),
    ):
        with pytest.raises(UserError) as caught:
            AR1Prior(spec, dims=2, **options)
        assert sentence in str(caught.value)


@pytest.mark.parametrize(("order", "limit"), [(1, 0.5 * math.log(2)), (2, 0.5 * math.log(6)), (3, 0.5 * math.log(20))])
def test_no_inner_step_commits_more_than_the_limit(order: int, limit: float) -> None:
    """½ ln C(2p, p) nats for AR(p), which its most correlated processes come near."""
    near = [0.999] + [-0.999] * (order - 1) if order == 1 else [0.995, -0.995, 0.995][:order]

    def rate(length: int, pacf: list[float]) -> float:
        return committed_rate(ARPrior(SoundSpec(length), dims=1, pacf=tuple(pacf))().expand([])).item()

    step = rate(41, near) - rate(40, near)
    assert 0.97 * limit < step < limit
    assert rate(41, [0.5] * order) - rate(40, [0.5] * order) < limit


# --- By the commands ---

SMALL = (
    "--dataset", "speech", "--data-root", "root", "--set", "data.length=5", "--set", "likelihood.channels=4",
    "--set", "likelihood.blocks=3", "--set", "likelihood.mixtures=2", "--set", "guide.hidden=8", "--set",
    "training.validations=1", "--set", "training.log_every=1", "--device", "cpu",
)  # fmt: skip


def test_from_training_to_samples_by_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of_speech(Path("root"))
    for arguments in (
        ("train", *SMALL, "--bitrate", 20, "--steps", 2, "--out", "run"),
        ("train", "--resume", "--steps", 3, "--out", "run"),
        ("evaluate", "run", "--images", 8, "--particles", 2),
        ("sample", "run", "--num", 3, "--out", "drawn.wav"),
        ("encode", "run", "drawn.wav", "--out", "z.nc"),
        ("reconstruct", "run", "drawn.wav", "--num", 3, "--decodings", 1, "--out", "back.wav"),
        ("reconstruct", "run", "test", "--num", 2, "--out", "test.wav"),
        ("interpolate", "run", "test", "--pairs", 1, "--steps", 3, "--out", "path.wav"),
        ("report", "run", "--out", "page.html"),
    ):
        code, out, err = call(*arguments)
        assert code == 0, (arguments, err)
        if arguments[0] == "train":
            assert "δ of a datum is that of its own length, 1.38629 nats for one of all steps" in out + err
        if arguments[0] == "evaluate":
            assert "bits/sample" in out
            assert "bits/second" in out
    for name in ("drawn", "back", "test", "path"):
        assert soundfile.info(f"{name}.wav").samplerate == 8000
        assert Path(f"{name}.png").stat().st_size > 0
    run = pyro_delta.load("run")
    test = run.data().test
    found = pyro_delta.check(run, images=36, told_images=8, told_samples=4).numbers
    assert found["floor_holds"] is True
    assert found["bits_per_second"] == pytest.approx(8000 * found["neg_elbo_bpd"])
    assert found["rate_bits_per_second"] == pytest.approx(8000 * found["rate_bpd"])
    lengths = test.extras["lengths"].double()
    alpha = run.vae.model.prior.alpha.double()
    by_hand = 0.5 * ((lengths[:, None] - 2) * (alpha**2).log1p() - (-(alpha**2)).log1p()).sum(-1)
    encoding, again = encode(run.vae, test), encode(run.vae, test, batch=7)
    torch.testing.assert_close(encoding.delta, torch.where(lengths > 1, by_hand, 0), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(again.rate, encoding.rate, rtol=1e-5, atol=0)
    assert encoding.scored == again.scored == 160 * lengths.mean().item()
    x, _ = run.spec.open(Path("drawn.wav"))
    assert (run.spec.beside(x)["lengths"] <= test.extras["lengths"][:3]).all()
    written(Path("long.wav"), wave_of(0.2))
    for arguments, sentence in (
        (("encode", "run", "long.wav", "--out", "y.nc"), "has 10 positions of 20 ms, and a sound here 5 at most"),
        (("sample", "run", "--num", 1, "--out", "x.mid"), "'x.mid' is not a .wav file; give a name that ends in .wav."),
        (("encode", "run", "z.nc", "--out", "y.nc"), "z.nc is not a sound that can be read"),
        (("train", *SMALL, "--bitrate", 900, "--steps", 1, "--out", "n"), "a bitrate of 900 bits a second is not from"),
        (("train", *SMALL[:4], "--set", "data.length=1", "--out", "n"), "a sound here 1 at most"),
        (
            ("train", *SMALL, "--guide", "gru", "--steps", 1, "--out", "n"),
            "takes sequences of tokens, and series, not",
        ),
        (
            ("train", "--dataset", "speech", "--data-root", "no", "--out", "n"),
            "there is no folder no/speech/digits;",
        ),
        (("check", "run", "--images", 1), "there is 1 datum; to compare latents takes 4, so give more."),
    ):
        code, _, err = call(*arguments)
        assert code == 2, (arguments, err)
        assert sentence in err
        assert not Path("n").exists()


def test_both_backends_agree_on_sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained run; and both draw the same."""
    pytest.importorskip("flax")
    monkeypatch.chdir(tmp_path)
    folder_of_speech(Path("root"), seconds=0.05)
    small = [part if part != "data.length=5" else "data.length=3" for part in SMALL]
    assert call("train", *small, "--steps", 2, "--set", "prior.rate_nats=2", "--out", "run")[0] == 0
    code, out, err = call("crosscheck", "run", "--images", 2, "--float64", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["agrees"] is True
    assert max(term["difference"] for term in found["terms"]) < 1e-9
    for backend in ("pyro", "numpyro"):
        assert call("sample", "run", "--num", 2, "--backend", backend, "--out", f"{backend}.wav")[0] == 0
    assert Path("pyro.wav").read_bytes() == Path("numpyro.wav").read_bytes()
