"""Series of real numbers in several variables: their spec, files and pictures, and the Japanese vowels."""

from pyro_delta.data.series.spec import SeriesSpec

__all__ = ["SeriesSpec"]
