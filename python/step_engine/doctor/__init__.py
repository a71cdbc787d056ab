"""Looks at an AWS account before a first run: what is missing there, and what mends it. Knows nothing of ZenML.

Only reads. `boto3` does the calls; it is imported when an examination begins, so that nothing else needs it.
"""

from __future__ import annotations

from step_engine.doctor.examination import Examination
from step_engine.doctor.target import Finding, Statement, Target

__all__ = ["Examination", "Finding", "Statement", "Target"]
