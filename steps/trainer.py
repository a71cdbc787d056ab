"""Trains a classifier."""

from typing import Annotated

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.svm import SVC
from zenml import step


@step
def trainer(x_train: np.ndarray, y_train: np.ndarray) -> Annotated[ClassifierMixin, "model"]:
    """Trains a support vector machine.

    Args:
        x_train: Pixels (n, 64).
        y_train: Labels (n,).

    Returns:
        The trained model.
    """
    model = SVC(gamma=0.001)
    model.fit(x_train, y_train)
    print(f"Trained on {len(x_train)} digits.")
    return model
