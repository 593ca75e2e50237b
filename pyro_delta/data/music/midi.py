"""Scores as MIDI files, and back, by mido."""

from __future__ import annotations

from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_delta.data.music.spec import ScoreSpec
from pyro_delta.errors import UserError
from pyro_delta.files import written_whole

NAMES = ("soprano", "alto", "tenor", "bass")
"""Of four voices."""
MARK = "score "
"""What the marker at the start of each score says before its number."""
REST = 4
"""Quarter notes of silence between scores."""
LONGEST = 100_000
"""Quarter notes of a file that is read: a day of music."""
TEMPO = 750_000
"""Microseconds of a quarter note: 80 in a minute."""


def save_midi(spec: ScoreSpec, x: Tensor, path: Path) -> None:
    """Writes scores (N, T, K) one after the other, each from a marker on, silence at its end left out.

    A pitch that stays is one long note: the grid does not say whether it is struck again.

    Raises:
        UserError: if the path cannot be written.
    """
    from mido import Message, MetaMessage, MidiFile, MidiTrack

    scores = [_without_end(score) for score in x.detach().cpu().long().numpy()]
    starts = np.cumsum([0, *(len(score) + REST for score in scores)])
    file = MidiFile(type=1)
    tick = file.ticks_per_beat
    marks = [(start * tick, MetaMessage("marker", text=f"{MARK}{i}")) for i, start in enumerate(starts[:-1])]
    file.tracks.append(MidiTrack(_timed([(0, MetaMessage("set_tempo", tempo=TEMPO)), *marks])))
    for voice in range(spec.voices):
        name = NAMES[voice] if spec.voices == len(NAMES) else f"voice {voice}"
        events = [(0, MetaMessage("track_name", name=name))]
        for start, score in zip(starts, scores):
            for token, first, end in _held(score[:, voice]):
                note: dict[str, Any] = {"note": spec.lowest + token - 1, "channel": min(voice, 15)}
                events.append(((start + first) * tick, Message("note_on", velocity=80, **note)))
                events.append(((start + end) * tick, Message("note_off", velocity=0, **note)))
        file.tracks.append(MidiTrack(_timed(events)))
    try:
        with written_whole(path) as opened:
            file.save(file=opened)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); give another path.") from None


def _without_end(score_tk: np.ndarray) -> np.ndarray:
    """A score up to its last note."""
    sounding = np.flatnonzero(score_tk.any(1))
    return score_tk[: sounding[-1] + 1 if sounding.size else 0]


def _held(token_t: np.ndarray) -> list[tuple[int, int, int]]:
    """Runs of a token that is no rest: token, first step and the step after the last."""
    found, start = [], 0
    for token, run in groupby(token_t.tolist()):
        end = start + len(list(run))
        if token:
            found.append((token, start, end))
        start = end
    return found


def _timed(events: list[tuple[int, Any]]) -> list[Any]:
    """Messages with the time since the one before."""
    times = [0, *(int(time) for time, _ in events)]
    return [message.copy(time=after - before) for (before, after), (_, message) in zip(pairwise(times), events)]


def read_midi(spec: ScoreSpec, path: Path, count: int | None) -> tuple[Tensor, list[str]]:
    """The scores of a MIDI file, (N, T, K), and their names: what sounds at the beginning of each quarter note.

    Where `save_midi` has left its markers, a score begins at each and is filled up with rests. Otherwise the file is
    cut into windows of T from its beginning, and what is left over is dropped; or it is a whole piece, if scores are.

    Raises:
        UserError: if it cannot be read, has other voices or pitches, or is too short.
    """
    import mido

    try:
        file = mido.MidiFile(path)
        tick = file.ticks_per_beat
        if file.type == 2 or tick < 1:
            raise ValueError("its time is not in quarter notes from one beginning")
        voices = [notes for track in file.tracks if (notes := _notes(track))]
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); give a MIDI file.") from None
    except (EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = str(error).rstrip(".") or "it ends too early"
        raise UserError(f"{path} is not a MIDI file that can be read: {reason}; give another.") from None
    if len(voices) > spec.voices or not voices:
        raise UserError(
            f"{path} has notes in {len(voices)} tracks; give {spec.voices}, a track for each voice from the highest."
        )
    end = max(-(-off // tick) for notes in voices for _, _, off in notes)
    if end > LONGEST:
        raise UserError(f"{path} has {end} quarter notes, and {LONGEST} at most are read; give a shorter one.")
    marks = sorted({time // tick for track in file.tracks for time, text in _markers(track) if text.startswith(MARK)})
    if len(voices) < spec.voices and not marks:
        raise UserError(
            f"{path} has notes in {len(voices)} tracks; give {spec.voices}, a track for each voice from the highest."
        )
    return _cut(spec, _grid(spec, voices, end, tick, path), marks, path, count)


def _cut(spec: ScoreSpec, x_tk: Tensor, marks: list[int], path: Path, count: int | None) -> tuple[Tensor, list[str]]:
    """Scores from what stands between the marks, or in a file that has none: filled up, or in windows if longer."""
    found = []
    for start, end in pairwise([*(marks or [0]), len(x_tk)]):
        part = x_tk[start:end]
        if marks or spec.whole:  # may be shorter, and is filled up
            part = part[: len(_without_end(part.numpy()))]
            part = torch.cat((part, part.new_zeros(max(0, spec.length - len(part)), spec.voices)))
        if len(part) < spec.length:
            raise UserError(
                f"{path} has {len(part)} quarter notes, and a score of this model {spec.length}; give a longer one."
            )
        if spec.whole and len(part) > spec.length:
            raise UserError(
                f"{path} has {len(part)} quarter notes, and a piece of this model {spec.length} at most; give a "
                "shorter one."
            )
        found += part[: len(part) // spec.length * spec.length].split(spec.length)
    x = torch.stack(found[:count])
    return x, [f"{path.name}/{number}" for number in range(len(x))]


def _grid(spec: ScoreSpec, voices: list[list[tuple[int, int, int]]], end: int, tick: int, path: Path) -> Tensor:
    """Tokens (end, K): of each voice the highest note that sounds at the beginning of a quarter note."""
    pitches = [pitch for notes in voices for pitch, _, _ in notes]
    if min(pitches) < spec.lowest or max(pitches) > spec.highest:
        wrong = min(pitches) if min(pitches) < spec.lowest else max(pitches)
        raise UserError(
            f"{path} has the pitch {wrong}, and scores of this model {spec.lowest} to {spec.highest}; transpose it."
        )
    x_tk = torch.zeros(end, spec.voices, dtype=torch.uint8)
    for voice, notes in enumerate(voices):
        for pitch, on, off in sorted(notes):  # the highest comes last
            x_tk[-(-on // tick) : -(-off // tick), voice] = pitch - spec.lowest + 1
    return x_tk


def _notes(track: Any) -> list[tuple[int, int, int]]:
    """Pitch, beginning and end, in ticks, of the notes of a track; one that is never let go ends with it."""
    time, sounding, found = 0, dict[tuple[int, int], int](), list[tuple[int, int, int]]()
    for message in track:
        time += message.time
        if message.type not in ("note_on", "note_off"):
            continue
        key = (message.channel, message.note)
        if key in sounding:
            found.append((message.note, sounding.pop(key), time))
        if message.type == "note_on" and message.velocity:
            sounding[key] = time
    found += [(pitch, on, time) for (_, pitch), on in sounding.items()]
    return [(pitch, on, off) for pitch, on, off in found if off > on]


def _markers(track: Any) -> list[tuple[int, str]]:
    time, found = 0, []
    for message in track:
        time += message.time
        if message.type == "marker":
            found.append((time, message.text))
    return found
