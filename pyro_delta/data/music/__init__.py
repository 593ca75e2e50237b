"""Music in voices on a grid of quarter notes: its spec, the chorales, MIDI and pictures."""

from pyro_delta.data.music.spec import ScoreSpec

__all__ = ["ScoreSpec"]
