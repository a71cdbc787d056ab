"""The tutorial's pipeline: digits, a support vector machine, its accuracy."""

from zenml import pipeline

from steps.data_loader import data_loader
from steps.evaluator import evaluator
from steps.trainer import trainer


@pipeline
def sklearn_pipeline() -> None:
    """Loads data, trains a model on one half and evaluates it on the other."""
    x_train, x_test, y_train, y_test = data_loader()
    model = trainer(x_train=x_train, y_train=y_train)
    evaluator(x_test=x_test, y_test=y_test, model=model)
