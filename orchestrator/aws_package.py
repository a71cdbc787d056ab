"""The part of this package that ZenML imports in a task, as text for the task definition.

ZenML loads the stack's flavors in every step container. The source root that it downloads there may not hold this
package, and no image has to. A task definition may have 64 KiB; this takes less than a quarter of them, and less than
half for dynamic pipelines.
"""

from __future__ import annotations

import base64
import functools
import json
import zlib
from pathlib import Path

MODULES = (
    "__init__",
    "names",
    "my_aws_orchestrator",
    "my_aws_orchestrator_flavor",
    "container/__init__",
    "container/memory",
    "container/task",
)

DYNAMIC_MODULES = (*MODULES, "aws_isolated_steps", "aws_secrets", "container/begin", "container/isolated")
"""What the orchestration of a dynamic pipeline needs; its isolated steps have the same definition."""


@functools.cache
def packed(dynamic: bool = False) -> str:
    """Packs the modules.

    Args:
        dynamic: Whether they are for a dynamic pipeline.

    Returns:
        A JSON object of paths and texts, compressed, in base64; the same for the same modules.
    """
    folder = Path(__file__).parent
    texts = {
        f"{folder.name}/{name}.py": (folder / f"{name}.py").read_text(encoding="utf-8")
        for name in (DYNAMIC_MODULES if dynamic else MODULES)
    }
    return base64.b64encode(zlib.compress(json.dumps(texts, sort_keys=True).encode(), 9)).decode()
