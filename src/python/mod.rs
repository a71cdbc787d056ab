//! pyo3, the only place that names it: registration, conversion, errors. Decides nothing.
