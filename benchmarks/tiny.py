"""The smallest network that is still one of ours: for benchmarks that ask what becomes of a run, not how good it is."""

TINY = {
    "prior.dims": 2,
    "prior.rate_nats": 4.0,
    "likelihood.channels": [8],
    "likelihood.row_blocks": [1],
    "likelihood.pixel_blocks": 1,
    "guide.channels": [8],
    "guide.row_blocks": [1],
}
