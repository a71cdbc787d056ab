//! bollard, the only place that names it: containers on one Docker engine.
