"""ZenML orchestrators on the step engine.

ZenML imports this package inside step containers, too: modules here need only the standard library, ZenML and pydantic
when they are imported. `step_engine` is imported inside functions.
"""
