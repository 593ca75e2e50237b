"""Sound in positions of some milliseconds: its spec, μ-law, files, spectrograms, and speech."""

from pyro_delta.data.audio.spec import SoundSpec

__all__ = ["SoundSpec"]
