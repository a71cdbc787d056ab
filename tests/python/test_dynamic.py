"""Real dynamic pipelines: their orchestration in a container, isolated steps in others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Project

everywhere = pytest.mark.parametrize("project", ["sqlite", "server"], indirect=True)
MODULE = "dynamic_scenarios.py"


def test_inline(project: Project) -> None:
    code, output = project.run("inline_map", module=MODULE)
    print(output)
    assert code == 0, output
    run = project.ended("inline_map")
    assert run.status == "completed"
    assert run.containers == []
