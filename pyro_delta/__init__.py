"""δ-VAEs as probabilistic programs in Pyro.

Importing this package is cheap: torch and Pyro are loaded by the submodules that need them
(`pyro_delta.distributions`, `pyro_delta.rate`, `pyro_delta.models`, `pyro_delta.guides`, …).
"""

__version__ = "0.1.0"
