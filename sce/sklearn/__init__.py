"""scikit-learn: softmax regression as an estimator. Needs scikit-learn and SciPy: the extra `sklearn`."""

try:
    import scipy  # noqa: F401
    import sklearn  # noqa: F401
except ImportError as exc:
    raise ImportError(f"sce.sklearn needs scikit-learn ({exc}). Try: pip install 'sce[sklearn]'") from exc

from .estimator import SoftmaxRegression

__all__ = ["SoftmaxRegression"]
