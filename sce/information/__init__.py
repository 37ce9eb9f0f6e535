"""What a classifier's predictions say: calibration. Formulas: docs/math.md; a tour: docs/information.md."""

from .calibration import Reliability, expected_calibration_error, reliability

__all__ = ["Reliability", "expected_calibration_error", "reliability"]
