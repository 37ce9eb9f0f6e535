"""The conformance suite, shipped: is this backend right, on this machine? Needs NumPy alone.

>>> from sce import conformance
>>> few = [case for case in conformance.cases() if case.group == "closed forms"]
>>> conformance.check("reference", few).failures
()

A backend that is not registered is passed as an object. `sce.conformance.bounds` states how near an answer
must be and why; `export` writes the cases down for other languages and machines.
"""

from .archive import export
from .case import Case
from .catalogue import cases
from .run import Failure, Report, check

__all__ = ["Case", "Failure", "Report", "cases", "check", "export"]
