"""scikit-learn: softmax regression as an estimator. Needs scikit-learn and SciPy: the extra `sklearn`."""

try:
    import scipy
    import sklearn
except ImportError as exc:
    raise ImportError(
        f"sce.sklearn needs scikit-learn and SciPy ({exc}): pip install 'sce[sklearn]'."
    ) from exc

from .estimator import SoftmaxRegression

__all__ = ["SoftmaxRegression"]
