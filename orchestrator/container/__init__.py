"""What runs inside step containers: warm workers. Pure Python, without `step_engine`, ZenML only inside functions.

A warm worker is a step container that is started ahead of need: it imports what its steps will need, says that it is
ready, and waits. `worker` is its main module; who says what on its streams stands in `channel`.
"""
