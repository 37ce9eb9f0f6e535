"""What a classifier's predictions say: entropy, divergence, likelihood, calibration, mutual information.

Everything is in nats. Formulas: docs/math.md; a tour with experiments: docs/information.md.
"""

from .calibration import Reliability, expected_calibration_error, reliability
from .divergence import kl_divergence
from .entropy import entropy
from .likelihood import bits_of, bits_per_token, perplexity, perplexity_of
from .mutual import mutual_information

__all__ = [
    "Reliability",
    "bits_of",
    "bits_per_token",
    "entropy",
    "expected_calibration_error",
    "kl_divergence",
    "mutual_information",
    "perplexity",
    "perplexity_of",
    "reliability",
]
