"""The wheel as a stranger gets it: an empty environment, an empty folder, a pipeline of the user's own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from conftest import FLAVOR

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=1800)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def empty_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of a virtual environment into which nothing but the wheel was installed."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
    programs = folder / "bin"
    subprocess.run([programs / "pip", "install", "-q", "--disable-pip-version-check", wheel], check=True, timeout=1800)
    return programs


def test_the_wheel_holds_the_packages_and_nothing_of_the_repository(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"orchestrator/__init__.py", "orchestrator/container/worker.py", "step_engine/cli/__init__.py"} <= set(names)
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"orchestrator", "step_engine", next(top for top in tops if top.endswith(".dist-info"))}
    # The stable ABI: one wheel for every Python from the oldest that is supported on.
    assert "-cp310-abi3-" in wheel.name
    assert not [name for name in names if "__pycache__" in name]


def test_a_pipeline_of_the_users_own_in_an_empty_folder(empty_environment: Path, image: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "PATH": f"{empty_environment}{os.pathsep}{os.environ['PATH']}",
        "ZENML_CONFIG_PATH": str(tmp_path / "config"),
    }

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    run("zenml", "init")
    run("zenml", "orchestrator", "flavor", "register", FLAVOR)
    run("zenml", "orchestrator", "register", "my_docker_orchestrator", "-f", "my_docker")
    run("zenml", "stack", "register", "my_stack", "-o", "my_docker_orchestrator", "-a", "default")
    run("zenml", "stack", "set", "my_stack")
    (folder / "own.py").write_text(
        textwrap.dedent("""\
            from pathlib import Path

            from zenml import pipeline, step
            from zenml.config import DockerSettings


            @step
            def words() -> list[str]:
                return ["a", "few", "words"]


            @step
            def count(words: list[str]) -> int:
                print(f"there are {len(words)} in container {Path('/.dockerenv').exists()}")
                return len(words)


            @pipeline(settings={"docker": DockerSettings(parent_image="@IMAGE@", skip_build=True)})
            def own():
                count(words())


            if __name__ == "__main__":
                print("the result is", own().steps["count"].output.load())
            """).replace("@IMAGE@", image)
    )
    output = run("python", "own.py")
    assert "count | there are 3 in container True" in output
    assert "the result is 3" in output
    assert "Run completed in" in output
    # `step-engine` is installed too, and finds the run.
    assert "own" in run("step-engine", "runs")
    assert sorted(path.name for path in folder.iterdir()) == [".zen", "own.py"]
