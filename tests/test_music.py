"""Scores: MIDI and pictures, the chorales, and a run of them by the commands."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import mido
import numpy as np
import pytest
import torch
from mido import Message, MetaMessage, MidiFile, MidiTrack
from PIL import Image
from test_cli import call

import pyro_delta
from pyro_delta.data import load
from pyro_delta.data.music import ScoreSpec
from pyro_delta.data.music.chorales import KEYS, SAME_MELODY, melodies, read_pieces, split_pieces, windows
from pyro_delta.diagnostics.bounds import encode
from pyro_delta.diagnostics.trace import committed, evaluating
from pyro_delta.errors import UserError
from pyro_delta.rate import ar1_committed_rate

SPEC = ScoreSpec(4, 47)
TICK = 480


# --- MIDI and pictures ---


def test_what_is_shown_can_be_opened(tmp_path: Path) -> None:
    """Silence at the beginning, in between, at the end and all along comes back, too."""
    x = torch.randint(0, 3, (6, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8) * 23
    x[0], x[1], x[2, 2:], x[3, :2] = 0, 46, 0, 0
    path = tmp_path / "x.mid"
    SPEC.show(x, path, columns=3)
    back, names = SPEC.open(path)
    assert torch.equal(back, x)
    assert back.dtype == torch.uint8
    assert names == [f"x.mid/{number}" for number in range(6)]
    assert torch.equal(SPEC.open(path, 2)[0], x[:2])
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (3 * 4 * 4 + 4 * 2, 2 * 46 * 4 + 3 * 2)
        assert picture.getpixel((2 + 16 + 2 + 1, 3))[:3] == (
            214,
            69,
            65,
        )  # the soprano of score 1


def test_what_is_written_is_what_is_played(tmp_path: Path) -> None:
    """By mido's own clock: pitches, beginnings and ends in quarter notes."""
    spec = ScoreSpec(3, 47, voices=2)
    spec.show(torch.tensor([[[1, 0], [1, 46], [5, 46]]]), tmp_path / "x.mid", columns=1)
    file = MidiFile(tmp_path / "x.mid")
    played = []
    for track in file.tracks:
        time = 0
        for message in track:
            time += message.time
            if message.type in ("note_on", "note_off"):
                played.append((message.type, message.note, time / file.ticks_per_beat))
    assert played == [
        ("note_on", 36, 0), ("note_off", 36, 2), ("note_on", 40, 2), ("note_off", 40, 3),
        ("note_on", 81, 1), ("note_off", 81, 3),
    ]  # fmt: skip


def test_longer_scores_are_cut_and_shorter_ones_filled_up(tmp_path: Path) -> None:
    """Those that a model of another length has drawn."""
    x = torch.arange(1, 41).reshape(1, 10, 4).repeat(2, 1, 1)
    ScoreSpec(10, 47).show(x, tmp_path / "x.mid", columns=1)
    assert torch.equal(SPEC.open(tmp_path / "x.mid")[0], x[:, :8].reshape(4, 4, 4).to(torch.uint8))
    for spec in (ScoreSpec(12, 47), ScoreSpec(12, 47, whole=True)):
        longer, _ = spec.open(tmp_path / "x.mid")
        assert torch.equal(longer[:, :10], x.to(torch.uint8))
        assert not longer[:, 10:].any()
    with pytest.raises(UserError, match="has 10 quarter notes, and a piece of this model 9 at most; give a shorter"):
        ScoreSpec(9, 47, whole=True).open(tmp_path / "x.mid")


def written(path: Path, *voices: list[tuple[int, float, float]], kind: int = 1) -> Path:
    """A MIDI file with a track for each voice, of notes: pitch, beginning and end in quarter notes."""
    file = MidiFile(type=kind, ticks_per_beat=TICK)
    file.tracks.append(MidiTrack([MetaMessage("set_tempo", tempo=500_000)]))
    for notes in voices:
        events = [(on, Message("note_on", note=pitch, velocity=64)) for pitch, on, _ in notes]
        events += [(off, Message("note_on", note=pitch, velocity=0)) for pitch, _, off in notes]
        track, before = MidiTrack(), 0
        for time, message in sorted(events, key=lambda event: (event[0], event[1].velocity)):
            track.append(message.copy(time=round(time * TICK) - before))
            before = round(time * TICK)
        file.tracks.append(track)
    file.save(path)
    return path


def held(pitch: int, end: float = 9) -> list[tuple[int, float, float]]:
    return [(pitch, 0, end)]


def test_files_of_others_are_cut_into_windows(tmp_path: Path) -> None:
    soprano = [(72, 0, 1), (74, 1, 1.5), (76, 1.5, 3), (77, 2, 3), (79, 4.5, 9)]
    path = written(tmp_path / "x.mid", soprano, held(60), held(55), held(36))
    x, names = SPEC.open(path)
    # What sounds at the beginning of each quarter note, the highest note; the ninth is left over.
    assert x[:, :, 0].tolist() == [[37, 39, 42, 0], [0, 44, 44, 44]]
    assert (x[..., 1:] == torch.tensor([25, 20, 1])).all()
    assert names == ["x.mid/0", "x.mid/1"]


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda p: written(p, held(72, 1e6), held(60), held(55), held(48)),
         "has 1000000 quarter notes, and 100000 at most are read; give a shorter one."),
        (lambda p: written(p, held(72, 3), held(60, 2), held(55, 2), held(48, 2)),
         "has 3 quarter notes, and a score of this model 4; give a longer one."),
        (lambda p: written(p, held(72), held(60)), "has notes in 2 tracks; give 4, a track for each voice from the"),
        (lambda p: written(p, *[held(60)] * 5), "has notes in 5 tracks; give 4, a track for each voice from the"),
        (lambda p: written(p), "has notes in 0 tracks; give 4, a track for each voice from the highest."),
        (lambda p: written(p, held(82), held(60), held(55), held(48)),
         "has the pitch 82, and scores of this model 36 to 81; transpose it."),
        (lambda p: written(p, held(72), held(60), held(55), held(35)), "has the pitch 35, and scores of this model"),
        (lambda p: written(p, held(72), held(60), held(55), held(48), kind=2), "is not a MIDI file that can be read"),
        (lambda p: p.write_bytes(b"MThd"), "is not a MIDI file that can be read: it ends too early; give another."),
        (lambda p: p.write_bytes(b"RIFF0000"), ""),
        (lambda p: p.mkdir(), "cannot read"),
        (lambda p: None, "cannot read"),
    ],
)  # fmt: skip
def test_files_that_are_no_scores(write: Callable[[Path], object], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "x.mid"
    write(path)
    with pytest.raises(UserError) as caught:
        SPEC.open(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


def test_any_damage_is_said_in_a_sentence(tmp_path: Path) -> None:
    path = written(tmp_path / "x.mid", held(72), held(60), held(55), held(48))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            x, _ = SPEC.open(path)
        except UserError:
            continue
        assert x.shape[1:] == SPEC.shape


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^cannot write \S+x.mid \(No such file or directory\); give another path\.$"):
        SPEC.show(torch.zeros(1, 4, 4), tmp_path / "nowhere" / "x.mid", columns=1)


# --- The chorales ---


def test_no_melody_is_in_two_splits() -> None:
    """By brute force: no 16 notes in a row of a soprano of one split, in any key, are those of another split's."""
    pieces, _ = read_pieces()
    parts = split_pieces(melodies(pieces))
    assert sorted(chain.from_iterable(parts)) == list(range(362))
    sung = []
    for part in parts:
        sopranos = [pieces[i][:, 0].int().diff().tolist() for i in part]
        sung.append({tuple(s[t : t + SAME_MELODY]) for s in sopranos for t in range(len(s) - SAME_MELODY + 1)})
    assert min(map(len, sung)) > 1000
    assert not sung[0] & sung[1]
    assert not sung[0] & sung[2]
    assert not sung[1] & sung[2]


def test_training_windows_alone_are_transposed() -> None:
    plain, moved = load("chorales", transpose=0), load("chorales")
    assert torch.equal(plain.test.x, moved.test.x)
    assert torch.equal(plain.validation.x, moved.validation.x)
    counted = [(x.tobytes(), y) for x, y in zip(moved.train.x.numpy(), moved.train.labels.tolist(), strict=True)]
    assert {(x.tobytes(), y) for x, y in zip(plain.train.x.numpy(), plain.train.labels.tolist())} <= set(counted)
    assert len(plain.train) < len(moved.train) <= 7 * len(plain.train)
    assert int(moved.train.x.max()) < 47


def test_a_window_and_its_transpositions_by_hand() -> None:
    piece = torch.tensor([[46, 30, 20, 2], [45, 0, 20, 3], [44, 30, 20, 4]], dtype=torch.uint8)
    split = windows([piece, piece[:1]], [0, 3], 2, stride=1, semitones=range(-1, 3))
    # the first window cannot go up, nor the second by two; C major, a semitone down, is B major, with five sharps
    assert split.x.tolist() == [
        [[45, 29, 19, 1], [44, 0, 19, 2]], [[46, 30, 20, 2], [45, 0, 20, 3]],
        [[44, 0, 19, 2], [43, 29, 19, 3]], [[45, 0, 20, 3], [44, 30, 20, 4]], [[46, 0, 21, 4], [45, 31, 21, 5]],
    ]  # fmt: skip
    assert [KEYS[label] for label in split.labels] == ["5 sharps", "none", "5 sharps", "none", "5 flats"]
    rests = windows([0 * piece], [0], 2, stride=2, semitones=range(-1, 2))
    assert (rests.x.tolist(), len(rests.labels)) == ([[[0] * 4] * 2] * 3, 3)


def test_a_window_is_of_the_pieces() -> None:
    """The first quarter notes of BWV 10.7, as printed."""
    pieces, fifths = read_pieces()
    assert (pieces[0][:2].int() + 35).tolist() == [[74, 67, 58, 55]] * 2
    assert KEYS[fifths[0] + 5] == "2 flats"
    assert sum(map(len, pieces)) == 19759


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"length": 97}, "data.length=97 is longer than the chorales of a split; give 96 at most."),
        ({"length": 0}, "length"),
        ({"transpose": 7}, "transpose"),
        ({"validation": 63}, "chorales has 62 validation windows, not 63; ask for 1 to 62."),
    ],
)
def test_options_of_nothing(options: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load("chorales", **options)
    assert sentence in str(caught.value)


# --- By the commands ---

SMALL = (
    "--dataset", "chorales", "--set", "data.length=8", "--set", "data.transpose=0", "--set", "likelihood.hidden=8",
    "--set", "guide.hidden=8", "--set", "training.validations=1", "--set", "training.batch=8", "--device", "cpu",
)  # fmt: skip


def test_from_training_to_samples_by_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ("train", *SMALL, "--steps", 2, "--out", "run"),
        ("train", "--resume", "--steps", 3, "--out", "run"),
        ("evaluate", "run", "--images", 8, "--particles", 2),
        ("sample", "run", "--num", 3, "--out", "drawn.mid"),
        ("encode", "run", "drawn.mid", "--out", "z.nc"),
        ("reconstruct", "run", "drawn.mid", "--num", 3, "--decodings", 1, "--out", "back.mid"),
        ("reconstruct", "run", "test", "--num", 2, "--out", "test.mid"),
        ("interpolate", "run", "test", "--pairs", 1, "--steps", 3, "--out", "path.mid"),
    ):
        code, _, err = call(*arguments)
        assert code == 0, (arguments, err)
    code, out, _ = call("check", "run", "--images", 40, "--told-images", 8, "--told-samples", 4)
    assert code in (0, 1)
    assert "bits/note" in out
    for name in ("drawn", "back", "test", "path"):
        assert mido.MidiFile(f"{name}.mid").length > 0
        assert Path(f"{name}.png").stat().st_size > 0
    assert len(list(Path("run/samples").glob("*.mid"))) == len(list(Path("run/samples").glob("*.png"))) == 2
    for arguments, sentence in (
        (("sample", "run", "--num", 1, "--out", "x.png"), "'x.png' is not a .mid file; give a name that ends in .mid."),
        (("encode", "run", "z.nc", "--out", "y.nc"), "cannot read z.nc"),
        (
            ("train", "--dataset", "chorales", "--guide", "anti_causal", "--out", "n"),
            "takes images, not data of Score",
        ),
        (
            ("train", "--dataset", "chorales", "--set", "data.length=200", "--out", "n"),
            "data.length=200 is longer than",
        ),
        (("check", "run", "--images", 1), "there is 1 datum; to compare latents takes 4, so give more."),
    ):
        code, _, err = call(*arguments)
        assert code == 2, (arguments, err)
        assert sentence in err
        assert err.count("\n") <= 3
        assert not Path("n").exists()


def test_whole_pieces_by_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its length: in training, check, samples, and files of one's own."""
    monkeypatch.chdir(tmp_path)
    whole = [*SMALL, "--set", "data.whole=true", "--set", "prior.alpha=0.8"]
    for arguments in (
        ("train", *whole, "--steps", 2, "--set", "training.log_every=1", "--out", "run"),
        ("sample", "run", "--num", 3, "--out", "drawn.mid"),
        ("encode", "run", "drawn.mid", "--out", "z.nc"),
        ("reconstruct", "run", "drawn.mid", "--num", 2, "--out", "back.mid"),
        ("report", "run", "--out", "page.html"),
    ):
        code, out, err = call(*arguments)
        assert code == 0, (arguments, err)
        if arguments[0] == "train":
            assert "δ of a datum is that of its own length, 49.4858 nats for one of all steps" in out + err
    run = pyro_delta.load("run")
    test = run.data().test
    found = pyro_delta.check(run, images=12, told_images=8, told_samples=4).numbers
    assert found["floor_holds"] is True
    assert found["delta_guarantee"] == "every datum, by its length"
    lengths = test.extras["lengths"]
    by_hand = 0.5 * ((lengths.double() - 2) * np.log(1.64) - np.log(0.36))
    encoding, again = encode(run.vae, test), encode(run.vae, test, batch=7)
    torch.testing.assert_close(encoding.delta, by_hand, rtol=1e-6, atol=0)
    torch.testing.assert_close(again.rate, encoding.rate, rtol=1e-5, atol=0)
    assert encoding.scored == again.scored == 4 * lengths.double().mean().item()
    x, _ = run.spec.open(Path("drawn.mid"))
    assert (run.spec.beside(x)["lengths"] <= lengths[:3]).all()
    silent = lengths - run.spec.beside(test.x)["lengths"]  # some end with a rest
    assert silent.unique().tolist() == [0, 1]
    written(Path("long.mid"), *[held(pitch, 201) for pitch in (72, 60, 55, 48)])
    for arguments, sentence in (
        (
            ("encode", "run", "long.mid", "--out", "y.nc"),
            "has 201 quarter notes, and a piece of this model 200",
        ),
        (("encode", "run", "back.mi", "--out", "y.nc"), "cannot read back.mi"),
        (("check", "run", "--images", 1), "there is 1 datum; to compare latents takes 4, so give more."),
    ):
        code, _, err = call(*arguments)
        assert code == 2, (arguments, err)
        assert sentence in err


def test_both_backends_agree_on_data_with_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained run of each: windows of voices, and pieces of lengths; and both draw the same."""
    pytest.importorskip("flax")
    monkeypatch.chdir(tmp_path)
    for name, more in (("windows", []), ("whole", ["--set", "data.whole=true", "--set", "prior.alpha=0.8"])):
        assert call("train", *SMALL, *more, "--steps", 2, "--out", name)[0] == 0
        code, out, err = call("crosscheck", name, "--images", 2, "--float64", "--json")
        assert code == 0, err
        found = json.loads(out)
        assert found["agrees"] is True
        assert max(term["difference"] for term in found["terms"]) < 1e-9
        for backend in ("pyro", "numpyro"):
            assert call("sample", name, "--num", 2, "--backend", backend, "--out", f"{backend}.mid")[0] == 0
        assert Path("pyro.mid").read_bytes() == Path("numpyro.mid").read_bytes()


def test_numpyro_programs_are_looked_at_by_lengths() -> None:
    """As those of Pyro are: what is scored, what is committed, and what differs from datum to datum."""
    nnx = pytest.importorskip("flax.nnx")
    from pyro_delta.twin import build, priors
    from pyro_delta.twin.diagnose import NumPyroVAE
    from pyro_delta.twin.sequences import gru

    spec, rngs = ScoreSpec(4, 5, voices=2), nnx.Rngs(0)
    prior = priors.AR1Prior(spec, dims=1, rate_nats=1.0)
    model = build.DeltaVAE(prior, gru.GRULikelihood(spec, prior, rngs=rngs, hidden=3))
    vae = NumPyroVAE(model, gru.GRUGuide(spec, prior, rngs=rngs, hidden=3), None)
    batch = {"x": torch.ones(3, 4, 2, dtype=torch.uint8), "lengths": torch.tensor([2, 4, 1])}
    found = encode(vae, batch)
    assert found.scored == pytest.approx(2 * 7 / 3)
    expected = [ar1_committed_rate(float(prior.alpha[0]), length).item() for length in (2, 4, 1)]
    assert found.delta is not None
    assert found.delta.tolist() == pytest.approx(expected, rel=1e-6)
    with evaluating(vae, 0):
        known = committed(vae, batch)
    assert (known.guarantee, known.nats) == ("every datum, by its length", pytest.approx(1.0, rel=1e-6))

    prior = priors.StandardNormalPrior(spec, dims=1)
    model = build.DeltaVAE(prior, gru.GRULikelihood(spec, prior, rngs=rngs, hidden=3))
    vae = NumPyroVAE(model, gru.GRUGuide(spec, prior, rngs=rngs, hidden=3, rate_nats=1.0), None)
    found = encode(vae, batch)
    assert found.delta is not None
    assert found.delta.tolist() == [0.5, 1.0, 0.25]
    with evaluating(vae, 0):
        known = committed(vae, batch)
    assert (known.guarantee, known.nats, known.claimed) == ("every datum, by its length", 1.0, True)


def test_the_example_of_independent_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = Path(__file__).parents[1] / "examples" / "independent_notes.py"
    own = [part for part in SMALL if "likelihood.hidden" not in str(part)]
    own = [part for i, part in enumerate(own) if part != "--set" or own[i + 1 : i + 2] != ["--set"]]
    prior = ("--prior", "standard_normal", "--set", "prior.dims=2")
    code, _, err = call(
        "train", *own, *prior, "--likelihood", f"{example}:IndependentNotes", "--steps", 1, "--out", "run"
    )
    assert code == 0, err
    assert call("sample", "run", "--num", 1, "--out", "x.mid")[0] == 0
