"""Integrations that wait: what a look-up finds is what it finds when ZenML activates all of them."""

import json
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("pandas")

EAGER = (
    "from zenml.integrations.registry import integration_registry as r; r.activate_integrations(); used = lambda: None"
)
LAZY = "from orchestrator.container.integrations import activate_lazily; used = activate_lazily()"


def answer_of(code: str, activation: str, folder) -> object:
    """Runs code in a Python of its own, in a folder of a user's modules; returns what it leaves in `answer`."""
    program = f"import json, sys\nsys.path.insert(0, {str(folder)!r})\n{activation}\n{textwrap.dedent(code)}\nprint(json.dumps(answer))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


ALL_TYPES = """
    from zenml.materializers.materializer_registry import materializer_registry
    name = lambda kind: f"{kind.__module__}.{kind.__qualname__}"
    answer = {name(key): name(value) for key, value in materializer_registry.materializer_types.items()}
"""


@pytest.fixture(scope="module")
def eager_types(tmp_path_factory):
    return answer_of(ALL_TYPES, EAGER, tmp_path_factory.mktemp("eager"))


@pytest.mark.parametrize("first", ["", "import pandas; used()", "import sklearn.svm"])
def test_in_the_end_the_same_types_have_the_same_materializers(first, eager_types, tmp_path):
    code = f"\n    {first}\n{ALL_TYPES}"
    lazy = answer_of(code, LAZY, tmp_path)
    assert lazy == eager_types
    assert {"PandasMaterializer", "SklearnMaterializer"} <= {name.rsplit(".", 1)[1] for name in lazy.values()}


def test_libraries_that_nobody_uses_are_not_imported(tmp_path):
    (tmp_path / "mine.py").write_text("class Mine: ...\n")
    code = """
        from mine import Mine
        used()
        from zenml.materializers.materializer_registry import materializer_registry
        found = [materializer_registry[kind].__name__ for kind in (int, dict, list, str, Mine)]
        answer = [found, [name for name in ("sklearn", "pandas", "pyarrow") if name in sys.modules]]
    """
    found, imported = answer_of(code, LAZY, tmp_path)
    assert imported == []
    assert found == answer_of(code, EAGER, tmp_path)[0]


@pytest.mark.parametrize(
    "module",
    ["import pandas\n", "def later():\n    import pandas\n", "def later():\n    from pandas import DataFrame\n"],
)
def test_libraries_of_the_user_s_modules_are_ready_before_the_step(module, tmp_path):
    (tmp_path / "mine.py").write_text(module)
    code = """
        import mine
        used()
        answer = [name for name in ("sklearn", "pandas") if name in sys.modules]
    """
    assert answer_of(code, LAZY, tmp_path) == ["pandas"]


@pytest.mark.parametrize("method", ["", "materializer_registry.register_and_overwrite_type(pandas.DataFrame, Mine)"])
@pytest.mark.parametrize("when", ["", "used()"])
def test_a_materializer_of_the_user_s_counts_as_much_as_ever(method, when, tmp_path):
    code = f"""
        import pandas
        from zenml.materializers.base_materializer import BaseMaterializer
        from zenml.materializers.materializer_registry import materializer_registry
        {when}
        class Mine(BaseMaterializer):
            ASSOCIATED_TYPES = (pandas.DataFrame, pandas.Timestamp)
        {method}
        class Frame(pandas.DataFrame): ...
        answer = [materializer_registry[kind].__name__ for kind in (pandas.DataFrame, pandas.Series, pandas.Timestamp, Frame)]
    """
    lazy = answer_of(code, LAZY, tmp_path)
    assert lazy == answer_of(code, EAGER, tmp_path)
    assert lazy[0] == ("Mine" if method else "PandasMaterializer")


def test_an_integration_that_is_broken_is_told_and_nothing_else_is_lost(tmp_path):
    code = """
        import logging
        import zenml.integrations.sklearn
        sys.modules["zenml.integrations.sklearn.materializers"] = None
        import pandas
        from zenml.materializers.materializer_registry import materializer_registry
        answer = materializer_registry[pandas.DataFrame].__name__
    """
    assert answer_of(code, LAZY, tmp_path) == "PandasMaterializer"
