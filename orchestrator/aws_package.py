"""The part of this package that ZenML imports in a task, as text for the task definition.

ZenML loads the stack's flavors in every step container. The source root that it downloads there may not hold this
package, and no image has to. A task definition may have 64 KiB; this takes less than a quarter of them.
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
    "aws_isolated_steps",
    "aws_secrets",
    "my_aws_orchestrator",
    "my_aws_orchestrator_flavor",
    "container/__init__",
    "container/begin",
    "container/isolated",
    "container/memory",
    "container/task",
)


@functools.cache
def packed() -> str:
    """Packs the modules.

    Returns:
        A JSON object of paths and texts, compressed, in base64; the same for the same modules.
    """
    folder = Path(__file__).parent
    texts = {f"{folder.name}/{name}.py": (folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES}
    return base64.b64encode(zlib.compress(json.dumps(texts, sort_keys=True).encode(), 9)).decode()
