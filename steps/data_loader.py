"""Loads the digits data set."""

from typing import Annotated

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from zenml import step


@step
def data_loader() -> tuple[
    Annotated[np.ndarray, "x_train"],
    Annotated[np.ndarray, "x_test"],
    Annotated[np.ndarray, "y_train"],
    Annotated[np.ndarray, "y_test"],
]:
    """Loads 1797 handwritten digits of 8x8 pixels and splits them in halves, in order.

    Returns:
        Pixels (n, 64) and labels (n,) for training and for testing.
    """
    digits = load_digits()
    pixels = digits.images.reshape((len(digits.images), -1))
    x_train, x_test, y_train, y_test = train_test_split(pixels, digits.target, test_size=0.5, shuffle=False)
    return x_train, x_test, y_train, y_test
