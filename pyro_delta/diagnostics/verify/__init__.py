"""The certificate of a combination of prior, likelihood and guide, before any training.

Formulas and types certify a rate; a density that is probed does up to a cap; an optimiser can only refute. Everything
is asked of the sites that model and guide write, as `pyro_delta.diagnostics.trace` gives them: in both modes, for
several sizes of the batch, for random, blank and full data, of every class. What no test of finite time finds is listed
in docs/architecture.md.
"""

from pyro_delta.diagnostics.verify.case import COUNT, Finding, examples
from pyro_delta.diagnostics.verify.certificate import Certificate, verify

__all__ = ["COUNT", "Certificate", "Finding", "examples", "verify"]
