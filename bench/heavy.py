"""A step whose module imports what takes long to import."""

import pandas
import pyarrow
import sklearn.ensemble
from works import waits
from zenml import pipeline, step


@step
def uses_libraries(value: int) -> int:
    table = pyarrow.Table.from_pandas(pandas.DataFrame({"value": [value]}))
    return value + table.num_rows + (sklearn.ensemble is None)


@pipeline
def heavy() -> None:
    uses_libraries(waits())
