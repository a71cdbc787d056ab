"""Measures a classifier."""

from typing import Annotated

import numpy as np
from sklearn.base import ClassifierMixin
from zenml import step


@step
def evaluator(x_test: np.ndarray, y_test: np.ndarray, model: ClassifierMixin) -> Annotated[float, "accuracy"]:
    """Measures the accuracy on the test data.

    Args:
        x_test: Pixels (n, 64).
        y_test: Labels (n,).
        model: The trained model.

    Returns:
        Share of test digits that the model labels rightly, 0 to 1.
    """
    accuracy = float(model.score(x_test, y_test))
    print(f"Test accuracy: {accuracy:.4f}")
    return accuracy
