"""Compiled machines executed by moto's interpreter and read by statelint."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
from statelint.linter import Linter
from step_engine import asl_report, compile_asl, draw_asl, errors

sys.path.insert(0, str(Path(__file__).parent))
from interpreter import Run, execute

OPTIONS = {
    "signals": {"bucket": "bucket"},
    "task": {
        "cluster": "c",
        "task_definition": "t:1",
        "container": "main",
        "launch_type": "FARGATE",
        "command": ["run", {"input": "snapshot_id"}],
    },
}
N = {"a": [], "b": [], "c": ["a"], "d": ["a", "b"]}
MODES = ["fail_fast", "stop_on_failure", "continue_on_failure"]


def compiled(
    dag: dict[str, list[str]],
    mode: str = "continue_on_failure",
    way: str = "exact",
    limit: int | None = None,
    **options,
) -> dict:
    steps = [{"name": name, "upstream": upstream} for name, upstream in dag.items()]
    plan = {"pipeline": "p", "execution_mode": mode, "steps": steps, "max_parallelism": limit}
    return compile_asl(plan, {**OPTIONS, "synchronization": way, **options})


def keeps_order(dag: dict[str, list[str]], run: Run) -> None:
    for step, upstream in dag.items():
        for up in upstream:
            if step in run.started:
                assert run.ended[up] <= run.started[step], f"{step} started before {up} ended"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "seconds",
    [{"a": 0.2, "b": 0.8, "c": 0.8}, {"a": 0.8, "b": 0.2, "c": 0.2}, {"a": 0.0, "b": 0.8, "c": 0.8}],
    ids=["waiter is late", "waiter is early", "upstream is over at once"],
)
def test_the_n_graph_in_every_order_of_arrival(mode: str, seconds: dict[str, float]) -> None:
    run = execute(compiled(N, mode), seconds)
    assert (run.status, set(run.started)) == ("SUCCEEDED", set(N)), run.cause
    keeps_order(N, run)


@pytest.mark.parametrize("mode", MODES)
def test_a_waiter_looks_again_ever_less_often(mode: str) -> None:
    # `d` waits for `a` from the beginning: it looks at 0, 1 and 5 seconds, and would at 21 were it not told before.
    run = execute(compiled(N, mode, recheck_seconds=1), {"a": 12})
    assert (run.status, set(run.started)) == ("SUCCEEDED", set(N)), run.cause
    keeps_order(N, run)
    entered = [event["stateEnteredEventDetails"]["name"] for event in run.events if "stateEnteredEventDetails" in event]
    assert entered.count("d: is a over") == 3
    assert entered.count("d: longer wait for a") == 2


def random_dag(seed: int) -> dict[str, list[str]]:
    source = random.Random(seed)
    names = [f"s{at}" for at in range(source.randint(3, 8))]
    return {name: [up for up in names[:at] if source.random() < 0.35] for at, name in enumerate(names)}


def most_at_once(run: Run) -> int:
    """Steps that ran at the same time; one that ends when another begins does not count with it."""
    moments = [(moment, 1) for moment in run.started.values()] + [(moment, -1) for moment in run.ended.values()]
    now = most = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


@pytest.mark.parametrize("limit", [None, 1, 2], ids=["no limit", "one at a time", "two at a time"])
@pytest.mark.parametrize("seed", range(30))
def test_random_machines_end_as_their_mode_says(seed: int, limit: int | None) -> None:
    dag, source = random_dag(seed), random.Random(seed + 1000)
    mode, way = MODES[seed % 3], ["exact", "exact", "barrier", "auto"][seed % 4]
    fails = {source.choice(list(dag))} if seed % 2 else set()
    run = execute(compiled(dag, mode, way, limit), {name: source.uniform(0.0, 0.1) for name in dag}, fails)
    keeps_order(dag, run)
    assert limit is None or most_at_once(run) <= limit
    if not fails:
        assert (run.status, set(run.started)) == ("SUCCEEDED", set(dag)), run.cause
        return
    assert run.status == "FAILED"
    assert fails <= set(run.started)
    if mode == "fail_fast":
        assert run.error == "States.TaskFailed"
        return
    lists = json.loads(run.cause or "")
    failed, skipped = (set(filter(None, lists[field].split(","))) for field in ("failed", "skipped"))
    assert (failed, skipped) == (fails, set(dag) - set(run.started))
    if mode == "continue_on_failure":
        below = set(fails)
        for step, upstream in dag.items():
            if below & set(upstream):
                below.add(step)
        assert skipped == below - fails


@pytest.mark.parametrize("fails", [set(), {"a"}, {"y"}], ids=["none", "one that many wait for", "one of a row"])
def test_several_that_wait_for_one_are_told_what_became_of_it(fails: set[str]) -> None:
    # `a`, and the row of `x` and `y`, are awaited by many that share nothing else.
    dag = {"a": [], "b": [], "c": [], "x": [], "y": ["x"], "a1": ["a"], "b1": ["b"], "c1": ["c"]}
    dag |= {f"w{up}": ["a", "y", up] for up in ("b", "c")} | {"v": ["a", "b"], "u": ["y", "c"]}
    machine = compiled(dag)
    assert '"Type":"Map"' in machine["machines"][-1]["definition"], "one list of waiters"
    run = execute(machine, dict.fromkeys(dag, 0.05), fails)
    keeps_order(dag, run)
    below = set(fails)
    for step, upstream in dag.items():
        if below & set(upstream):
            below.add(step)
    assert set(run.started) == set(dag) - (below - fails), run.cause
    if fails:
        lists = json.loads(run.cause or "")
        assert set(filter(None, lists["skipped"].split(","))) == below - fails


@pytest.mark.parametrize("mode", MODES)
def test_machines_inside_machines(mode: str) -> None:
    dag = {f"s{at}": [f"s{at - 1}"] if at else [] for at in range(6)} | {"t": ["s0"], "u": ["s0", "s3"]}
    steps = [{"name": name, "upstream": upstream} for name, upstream in dag.items()]
    options = {**OPTIONS, "account": {"id": "123456789012"}, "limits": {"events": 40}}
    nested = compile_asl({"pipeline": "p", "execution_mode": mode, "steps": steps}, options)
    assert len(nested["machines"]) > 1
    with_machines = {machine["name"] for machine in nested["machines"]}
    assert len(with_machines) == len(nested["machines"])
    assert all(machine["events"] <= 40 for machine in nested["machines"])


def test_statelint_finds_nothing() -> None:
    for seed in range(40):
        for mode in MODES:
            for machine in compiled(random_dag(seed), mode, ["exact", "barrier"][seed % 2])["machines"]:
                assert Linter.validate(json.loads(machine["definition"])) == []


def test_statelint_finds_what_the_checks_in_rust_count_on() -> None:
    definitions = json.loads((Path(__file__).parent / "definitions.json").read_text())
    found = {name for name, definition in definitions.items() if Linter.validate(definition)}
    assert len(found) == 29
    assert not [name for name in found if name.startswith("good")]
    # What the checks in Rust accept (`ACCEPTED` in tests/rust/asl/structure.rs): statelint parses paths and intrinsics.
    assert {"bad_bad_intrinsic", "bad_bad_jsonpath"} <= found


def test_errors_carry_their_numbers() -> None:
    with pytest.raises(errors.AslLimitError) as limit:
        compile_asl({"steps": [{"name": "a"}]}, {"task": {**OPTIONS["task"], "command": ["x" * 9000]}})
    assert (limit.value.limit, limit.value.step) == (8192, "a")
    assert limit.value.actual > 9000
    with pytest.raises(errors.AslError, match=r"set signals.bucket"):
        compile_asl({"steps": [{"name": n, "upstream": u} for n, u in N.items()]}, {"task": OPTIONS["task"]})
    with pytest.raises(errors.PlanError, match="clutser"):
        compile_asl({"steps": [{"name": "a"}]}, {"task": {"clutser": "c"}})


def test_pictures_and_report() -> None:
    plan = {"pipeline": "p", "steps": [{"name": n, "upstream": u} for n, u in N.items()]}
    assert draw_asl(plan, OPTIONS, "mermaid").startswith("flowchart LR")
    assert draw_asl(plan, OPTIONS, "svg").startswith("<svg")
    assert "token edge" in asl_report(plan, OPTIONS)
