"""Images: their spec, data sets, folders and pictures."""

from pyro_delta.data.images.spec import ImageSpec

__all__ = ["ImageSpec"]
