"""The largest numbers that settings and options take: beyond them nothing is meant, and torch or the memory fails."""

LARGEST_SEED = 2**63 - 1
LARGEST_LENGTH = 10**9
LARGEST_DIMS = 10**6
LARGEST_LEVELS = 2**31
