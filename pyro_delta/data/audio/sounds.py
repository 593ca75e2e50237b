"""Sounds as files, and back, by soundfile and soxr."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_delta.data.audio.companding import compressed, expanded
from pyro_delta.data.audio.spec import SoundSpec
from pyro_delta.data.folders import LOG, list_files, names_of, readable
from pyro_delta.errors import UserError, in_a_line
from pyro_delta.files import written_whole

SUFFIXES = (".wav", ".flac", ".ogg")
FULL = 2**15
"""What 1 is in a file of 16 bits."""
PAUSE = 4
"""Of a second between sounds: one part of so many, of zeros, which no level stands for."""
LOUDEST = 2.0
"""What samples of a file may reach: decoders of lossy formats go a little beyond 1, and what does is counted."""
UNKNOWN = 2**32 - 1
"""Size of a wav file that was written into a pipe."""


@dataclass
class Clipped:
    """Of sounds that are read, the samples beyond full scale, which count as ±1.

    Attributes:
        samples: beyond it.
        of: samples of the files that have such.
        files: that have such.
        peak: the largest, without its sign.
        loudest: the file that has it.
    """

    samples: int = 0
    of: int = 0
    files: int = 0
    peak: float = 1.0
    loudest: Path = Path()

    def note(self, path: Path, amplitude: Tensor) -> None:
        """Counts those of a file's samples, as they are at the spec's rate, of its channels' mean."""
        size = amplitude.abs()
        if beyond := int((size > 1).sum()):
            self.samples, self.of, self.files = self.samples + beyond, self.of + len(size), self.files + 1
            if (peak := size.max().item()) > self.peak:
                self.peak, self.loudest = peak, path

    def tell(self, title: Path) -> None:
        """Says in a line what was clipped of a file or a folder, if anything was."""
        if not self.samples:
            return
        of_files = f" of {self.files} files, the loudest of them" if self.files > 1 else " of"
        where = "" if self.loudest == title else f"{of_files} {readable(self.loudest)},"
        LOG.warning(
            "%s: %d of %d samples%s lie beyond full scale, up to %.3g, and count as ±1; if these are more than a "
            "decoder's overshoot, divide by the largest",
            *(readable(title), self.samples, self.of, where, self.peak),
        )


# --- Writing ---


def lengths_of(x: Tensor) -> Tensor:
    """Positions of sounds (N, P, S) up to the last that is not level 0 throughout, one at least: (N,)."""
    steps = torch.arange(1, x.shape[1] + 1, device=x.device)
    return torch.where((x > 0).any(-1), steps, 1).amax(-1)


def save_sounds(spec: SoundSpec, x: Tensor, path: Path) -> None:
    """Writes sounds (N, P, S), each of its length, one after the other, a quarter of a second of zeros between.

    Raises:
        UserError: if the path cannot be written.
    """
    import soundfile

    x = x.detach().cpu()
    pause = np.zeros(spec.rate // PAUSE, np.int16)
    parts = [pause]
    for sound, length in zip(x, lengths_of(x).tolist()):
        parts += [_in_16_bits(sound[:length].flatten(), spec.levels), pause]
    try:
        with written_whole(path) as file:
            soundfile.write(file, np.concatenate(parts[1:-1]), spec.rate, subtype="PCM_16", format="WAV")
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); give another path.") from None


def _in_16_bits(level: Tensor, levels: int) -> np.ndarray:
    amplitude = expanded(level.double(), levels).numpy()
    return np.minimum(np.rint(amplitude * FULL), FULL - 1).astype(np.int16)


# --- Reading ---


def read_sounds(spec: SoundSpec, path: Path, count: int | None) -> tuple[Tensor, list[str]]:
    """The sounds of a file or a folder, uint8 (N, P, S), and their names.

    Raises:
        UserError: if there is none, or one cannot be read, is too long or has several channels.
    """
    clipped = Clipped()
    if path.is_dir():
        files, account = list_files(path, "sounds", SUFFIXES, count)
        found = torch.cat([filled(spec, read_levels(spec, path / name, clipped)) for name in files])
        account.tell(path)
        clipped.tell(path)
        return found, names_of(files).tolist()
    amplitude = read_amplitudes(spec, path)
    parts = _shown(spec, amplitude) or [amplitude]
    x = torch.cat([filled(spec, _levels(spec, path, part, clipped)) for part in parts[:count]])
    clipped.tell(path)
    return x, [path.name] if len(parts) == 1 else [f"{path.name}/{number}" for number in range(len(x))]


def _shown(spec: SoundSpec, amplitude: Tensor) -> list[Tensor]:
    """The sounds between the pauses of a file of `save_sounds`; none if it is another, by what its samples are."""
    whole, pause = amplitude.numpy() * FULL, spec.rate // PAUSE
    edges = np.flatnonzero(np.diff(np.concatenate(([True], whole == 0, [True]))))
    starts, ends = edges[::2], edges[1::2]
    sounds = [amplitude[start:end] for start, end in zip(starts, ends)]
    written = bool(sounds) and all(
        len(sound) % spec.samples == 0
        and np.array_equal(_in_16_bits(compressed(sound, spec.levels), spec.levels), sound.numpy() * FULL)
        for sound in sounds
    )
    gaps = [starts[0], *(starts[1:] - ends[:-1]), len(whole) - ends[-1]] if written else []
    return sounds if written and gaps == [0, *[pause] * (len(sounds) - 1), 0] else []


def read_levels(spec: SoundSpec, path: Path, clipped: Clipped, *, cut: bool = False) -> Tensor:
    """A file as μ-law levels, (samples,).

    Args:
        spec: of the sounds: samples a second, levels, channels.
        path: of the file.
        clipped: where its samples beyond full scale are counted.
        cut: whether it may have more than P positions.

    Raises:
        UserError: as `read_amplitudes`, or if it is too long.
    """
    return _levels(spec, path, read_amplitudes(spec, path), clipped, cut)


def _levels(spec: SoundSpec, path: Path, amplitude: Tensor, clipped: Clipped, cut: bool = False) -> Tensor:
    if (positions := -(-len(amplitude) // spec.samples)) > spec.length and not cut:
        raise UserError(
            f"{path} has {positions} positions of {1000 * spec.samples / spec.rate:g} ms, and a sound here "
            f"{spec.length} at most; give a shorter one, or train with a larger data.length, or with data.cut=true, "
            "which cuts."
        )
    clipped.note(path, amplitude)
    return compressed(amplitude, spec.levels)


def read_amplitudes(spec: SoundSpec, path: Path) -> Tensor:
    """The samples of a file, of all channels' mean if the spec is of mono, at the spec's rate, float64.

    Raises:
        UserError: if it cannot be read, is cut off, holds nothing or what is no sound, or has several channels.
    """
    import soundfile

    try:
        with path.open("rb") as opened, soundfile.SoundFile(opened) as file:
            rate, frames = file.samplerate, file.frames
            sound = file.read(dtype="float64", always_2d=True)
        with path.open("rb") as opened:
            head = opened.read(8)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or in_a_line(error)}); give a sound file.") from None
    except (RuntimeError, ValueError, TypeError) as error:  # LibsndfileError is the first of these
        reason = str(error).rpartition(": ")[2].rstrip(".")
        raise UserError(f"{path} is not a sound that can be read ({reason}); give a wav, flac or ogg file.") from None
    size = int.from_bytes(head[4:], "little")
    cut_off = head[:4] == b"RIFF" and size != UNKNOWN and size + 8 > path.stat().st_size
    if cut_off or len(sound) < frames:
        raise UserError(f"{path} ends before what its header says; fetch it again.")
    if not len(sound):
        raise UserError(f"{path} holds no samples; give a sound.")
    if wrong := int((~np.isfinite(sound)).sum()):
        raise UserError(f"{path} has {wrong} of {sound.size} samples that are NaN or infinite; put 0 in their place.")
    if (peak := np.abs(sound).max()) > LOUDEST:
        raise UserError(f"{path} has samples of {peak:.3g}, where full scale is 1; divide them by that.")
    if sound.shape[1] > 1 and not spec.mono:
        raise UserError(f"{path} has {sound.shape[1]} channels; mix it down to one, or average them by data.mono=true.")
    found = sound.mean(1)
    if rate != spec.rate:
        import soxr

        found = soxr.resample(found, rate, spec.rate)
        if not len(found):
            raise UserError(f"{path} is shorter than a sample at {spec.rate} Hz; give a longer sound.")
    return torch.from_numpy(found)


def filled(spec: SoundSpec, level: Tensor) -> Tensor:
    """Levels (samples,) as sounds (N, P, S): as many as it takes, the last position filled up with silence."""
    positions = -(-len(level) // spec.samples)
    silent = torch.full((positions * spec.samples - len(level),), spec.levels // 2, dtype=torch.uint8)
    position_ps = torch.cat((level, silent)).reshape(positions, spec.samples)
    position_ps[(position_ps == 0).all(-1), 0] = 1  # level 0 throughout is what lies behind an end
    missing = -positions % spec.length
    return torch.cat((position_ps, position_ps.new_zeros(missing, spec.samples))).reshape(-1, *spec.shape)
