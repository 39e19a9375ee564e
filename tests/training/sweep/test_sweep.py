"""A whole sweep on a tiny base: what it finds, leaves behind, and gives again after a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml

from rango.adapters.config import LoraConfig
from rango.base.config import BaseConfig
from rango.cli.parsing import parse_values
from rango.data.config import DataConfig
from rango.errors import (
    ConfigError,
    DataError,
    NonFiniteLossError,
    OutputExistsError,
    StorageError,
    TargetError,
)
from rango.tracking.events import read_events
from rango.training.config import RunConfig, TrainingConfig
from rango.training.many import fleet as fleets
from rango.training.many.config import JobConfig, ManyConfig
from rango.training.many.train import train_many
from rango.training.sweep.candidate import Candidate
from rango.training.sweep.config import SweepConfig
from rango.training.sweep.result import SweepResult
from rango.training.sweep.source import Candidates
from rango.training.sweep.sweep import sweep
from rango.training.sweep.written import parse_space
from rango.training.train import train

SPACE = {"learning_rate": "1e-4..1e-1", "r": "2,4", "lora_dropout": "0,0.1"}


@pytest.fixture
def config(
    base_folder: Path, make_data: Callable[..., Path], tmp_path: Path
) -> Callable[..., SweepConfig]:
    """Ten candidates on four rows; three epochs of five steps."""
    train = str(make_data("train.jsonl", range(40)))
    valid = str(make_data("valid.jsonl", range(60, 72)))

    def make(output: str = "sweep", **options: Any) -> SweepConfig:
        given: dict[str, Any] = {
            "space": SPACE,
            "candidates": 10,
            "rows": 4,
            "training": TrainingConfig(epochs=3, batch_size=8, micro_tokens=64),
        }
        return SweepConfig(
            base=BaseConfig(str(base_folder)),
            data=DataConfig(train, valid),
            output=str(tmp_path / output),
            **given | options,
        )

    return make


def outcome(result: SweepResult) -> tuple[bytes, dict[str, Any]]:
    """What has to be the same again: the best adapter's file and, times and places left out, the
    result."""
    found = result.as_dict()
    for name in ("seconds", "output", "saved", "recipe"):
        found.pop(name)
    for row in found["candidates"]:
        row.pop("seconds")
    return (Path(result.saved) / "adapter_model.safetensors").read_bytes(), found


def trials_of(output: Path) -> list[Any]:
    """What Optuna reads from the file."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{output / 'study.db'}")
    study = optuna.load_study(study_name="sweep", storage=storage)
    trials = study.trials
    storage.engine.dispose()
    return trials


def test_interrupted_while_candidates_begin(config: Callable[..., SweepConfig]) -> None:
    """No round of some of them: they would reach the rungs ahead of those that they belong with."""
    whole = outcome(sweep(config("whole")))

    def stop(fleet: fleets.Fleet) -> None:
        if fleet.round == 0 and len(fleet.jobs) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        sweep(config(), watch=stop)
    assert outcome(sweep(config(), resume=True)) == whole


def test_one_that_diverged_later_holds_nobody_back(
    config: Callable[..., SweepConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = config()
    study: Any = SimpleNamespace(follow=lambda candidates: None)
    source = Candidates(told, parse_space(told.space), 10, study, samples=40, packed=True, pad_id=0)
    for _ in range(2):
        source.next()
    source.all[0].losses, source.all[0].status = [1.0], "failed"

    def measure(self: Candidates, candidate: Candidate, job: object) -> bool:
        candidate.losses.append(2.0)
        return True

    monkeypatch.setattr(Candidates, "_measure", measure)
    run = SimpleNamespace(plan=SimpleNamespace(total=15), state=SimpleNamespace(step=2))
    job: Any = SimpleNamespace(name=source.all[1].name, run=run)
    assert source.after_round([job]) == {}


def test_the_winner_its_recipe_and_the_study(config: Callable[..., SweepConfig]) -> None:
    told = config()
    result = sweep(told)
    output = Path(told.output)
    assert len(result.candidates) == 10
    best = result.candidates[0]
    assert (best.rank, best.candidate.status) == (1, "finished")
    assert result.base_loss is not None
    assert best.candidate.losses[-1] < result.base_loss - 0.1
    statuses = [one.candidate.status for one in result.candidates]
    assert set(statuses) <= {"finished", "pruned", "failed"}
    assert statuses.count("pruned") >= 5
    assert result.as_dict() == json.loads((output / "result.json").read_text())
    assert not (output / "snapshots").exists()

    # losers keep their events and no adapter; their last step is that of the rung
    for one in result.candidates:
        folder = output / "jobs" / one.candidate.name
        assert (folder / "adapter").exists() == (one.candidate.status == "finished")
        steps = [e["step"] for e in read_events(folder / "events.jsonl") if e["event"] == "step"]
        expected = [2, 5, 15][len(one.candidate.losses) - 1]
        assert max(steps) == one.candidate.steps == expected

    # Optuna finds the same trials in the file
    trials = trials_of(output)
    values = {trial.number: trial.value for trial in trials if trial.state.name == "COMPLETE"}
    assert min(values, key=lambda number: values[number]) == best.candidate.number
    by_number = {one.candidate.number: one.candidate for one in result.candidates}
    for trial in trials:
        candidate = by_number[trial.number]
        assert trial.params == candidate.params
        assert [*trial.intermediate_values.values()] == candidate.losses
        state = {"finished": "COMPLETE", "pruned": "PRUNED"}[candidate.status]
        assert (trial.state.name, trial.value) == (state, candidate.losses[-1])

    # the recipe, alone, comes to the same loss
    written = yaml.safe_load((output / "recipe.yaml").read_text())
    again = train(parse_values(RunConfig, written, "recipe"))
    loss = again.trained.adapted["loss"]
    assert loss == pytest.approx(best.candidate.losses[-1], rel=1e-5)
    assert again.trained.steps == best.candidate.steps

    with pytest.raises(OutputExistsError):
        sweep(told)
    with pytest.raises(OutputExistsError, match="finished"):
        sweep(told, resume=True)


def test_candidates_learn_what_they_learn_among_other_jobs(
    config: Callable[..., SweepConfig],
) -> None:
    """A sweep without pruning is many jobs with these options."""
    told = config(halvings=0, candidates=5)
    result = sweep(told)
    assert {one.candidate.status for one in result.candidates} == {"finished"}
    jobs = []
    for one in result.candidates:
        params = dict(one.candidate.params)
        training = dataclasses.replace(
            TrainingConfig(epochs=3, batch_size=8, eval_every=15),
            learning_rate=params.pop("learning_rate"),
        )
        jobs.append(JobConfig(one.candidate.name, told.data, LoraConfig(**params), training))
    many = ManyConfig(told.base, jobs, f"{told.output}-many", rows=2, micro_tokens=64)
    together = train_many(many)
    for one in result.candidates:
        found = together.outcomes[one.candidate.name]
        assert found.loss == pytest.approx(one.candidate.losses[-1], rel=1e-5)
        assert found.base_loss == result.base_loss


def test_equal_seeds_give_equal_sweeps_and_others_do_not(
    config: Callable[..., SweepConfig],
) -> None:
    first, second, other = (
        outcome(sweep(config(name, candidates=6, seed=seed)))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == second
    assert first != other


def test_candidates_are_paired(config: Callable[..., SweepConfig]) -> None:
    """The base is evaluated once, and the first step's loss is the same for all: same samples."""
    told = config(candidates=5)
    sweep(told)
    first, base = set(), set()
    for folder in (Path(told.output) / "jobs").iterdir():
        events = read_events(folder / "events.jsonl")
        # dropout acts once lora_B has moved, and it begins at zero
        first.add(round(next(e["loss"] for e in events if e["event"] == "step"), 5))
        base.add(next(e["loss"] for e in events if e["event"] == "evaluation"))
    assert len(first) == len(base) == 1


class Stop(Exception):
    """Ends a sweep where a kill could."""


def test_going_on_gives_the_same(
    config: Callable[..., SweepConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outcome(sweep(config("whole")))
    rounds = random.Random(1)
    told = config("parts", snapshot_seconds=1e-9)
    monkeypatch.setattr(fleets, "_SHARE_OF_SNAPSHOTS", 1e9)
    for attempt in range(100):
        left = rounds.randint(1, 12)

        def watch(fleet: fleets.Fleet) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Stop

        try:
            result = sweep(told, resume=attempt > 0, watch=watch)
        except Stop:
            continue
        break
    assert attempt >= 4
    assert outcome(result) == expected


def test_a_killed_sweep_goes_on(config: Callable[..., SweepConfig], tmp_path: Path) -> None:
    """Killed between snapshots: the study on disk is then ahead of the last one."""
    expected = outcome(sweep(config("whole")))
    told = config("killed")
    script = tmp_path / "run.py"
    script.write_text(
        "import pickle, sys, os, signal, torch\n"
        "from rango.training.sweep.sweep import sweep\n"
        "torch.set_num_threads(1)\n"
        "config, stop = pickle.load(open(sys.argv[1], 'rb')), int(sys.argv[2])\n"
        "def watch(fleet):\n"
        "    if fleet.round % 4 == 3: fleet._save()\n"
        "    if fleet.round >= stop: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sweep(config, resume=stop > 2, watch=watch)\n"
    )
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(told))
    for stop in (2, 6, 13):
        command = [sys.executable, str(script), str(tmp_path / "config.pickle"), str(stop)]
        assert subprocess.run(command, check=False, capture_output=True).returncode == -9
    result = sweep(told, resume=True)
    assert outcome(result) == expected
    assert len(trials_of(Path(told.output))) == 10


def test_going_on_with_something_else_is_refused(config: Callable[..., SweepConfig]) -> None:
    told = config(snapshot_seconds=1e-9)

    def watch(fleet: fleets.Fleet) -> None:
        if fleet.round > 2:
            raise Stop

    with pytest.raises(Stop):
        sweep(told, watch=watch)
    with pytest.raises(ConfigError, match=r"space\.learning_rate\.low: 0\.0001 then"):
        sweep(dataclasses.replace(told, space=SPACE | {"learning_rate": "1e-3..1e-1"}), resume=True)
    assert len(trials_of(Path(told.output))) == 6  # a refusal leaves the study as it is
    with pytest.raises(ConfigError, match="the folder of a sweep"):
        train_many(ManyConfig(told.base, [JobConfig("a", told.data)], told.output), resume=True)
    sweep(dataclasses.replace(told, snapshot_seconds=60.0), resume=True)


def test_one_that_diverges_is_the_worst_and_stops_nobody(
    config: Callable[..., SweepConfig],
) -> None:
    told = config(
        space={"learning_rate": [1e-3, 1e30, 1e-2, 1e29]}, sampler="grid", candidates=None
    )
    result = sweep(told)
    assert [one.candidate.status for one in result.candidates[-2:]] == ["failed"] * 2
    assert result.best.params == {"learning_rate": 1e-2}
    assert "learning_rate" in result.candidates[-1].candidate.detail
    assert any("2 of 4 candidates failed" in line for line in result.advice)


def test_all_diverge(config: Callable[..., SweepConfig]) -> None:
    told = config(space={"learning_rate": [1e29, 1e30]}, candidates=None)
    with pytest.raises(NonFiniteLossError, match="none of 2 candidates"):
        sweep(told)
    written = json.loads((Path(told.output) / "result.json").read_text())
    assert {one["status"] for one in written["candidates"]} == {"failed"}
    assert not (Path(told.output) / "best").exists()


def test_batch_sizes_are_judged_after_as_many_samples(
    config: Callable[..., SweepConfig],
) -> None:
    told = config(space={"batch_size": "2,4,8", "r": "2,4"}, sampler="grid", candidates=None)
    result = sweep(told)
    assert len(result.candidates) == 6
    for one in result.candidates:
        batch = one.candidate.params["batch_size"]
        total = 3 * 40 // batch
        expected = [-(-total // 9), -(-total // 3), total]
        assert one.candidate.steps == expected[len(one.candidate.losses) - 1]


def test_losers_are_those_with_the_larger_losses(config: Callable[..., SweepConfig]) -> None:
    """Whoever was judged in a round went on exactly if it was among the best third by then."""
    told = config()
    rounds: list[list[tuple[int, int, float]]] = []
    alive: dict[int, int] = {}

    def watch(fleet: fleets.Fleet) -> None:
        assert isinstance(fleet.source, Candidates)
        new = [
            (one.number, len(one.losses), one.losses[-1])
            for one in fleet.source.all
            if len(one.losses) > alive.get(one.number, 0)
        ]
        alive.update({number: count for number, count, _ in new})
        if new:
            rounds.append(new)

    result = sweep(told, watch=watch)
    reached = {one.candidate.number: len(one.candidate.losses) for one in result.candidates}
    seen: dict[int, list[float]] = {}
    for arrived in rounds:
        for _, rung, loss in arrived:
            seen.setdefault(rung, []).append(loss)
        for number, rung, loss in arrived:
            if rung < 3:
                best = sorted(seen[rung])[: -(-len(seen[rung]) // 3)]
                assert (loss in best) == (reached[number] > rung)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"space": {}}, "nothing to try"),
        ({"eta": 1}, "eta: expected at least 2"),
        ({"rows": 0}, "rows: expected at least 1"),
        ({"candidates": 0}, "candidates: expected at least 1"),
        ({"snapshot_seconds": 0}, "snapshot_seconds"),
        ({"sampler": "grid", "candidates": None}, "a range has no end of points"),
        ({"sampler": "grid", "space": {"r": [1, 2]}}, "leave candidates out"),
        ({"training": TrainingConfig(patience=3)}, "training.patience: a sweep judges"),
        ({"training": TrainingConfig(method="full")}, "training.method full"),
        ({"training": TrainingConfig(epochs=0)}, "training.epochs"),
        (
            {"training": TrainingConfig(max_steps=9), "space": {"batch_size": [1, 2]}},
            "larger batch_size would see more samples",
        ),
        ({"training": TrainingConfig(max_steps=5)}, "a run of 5 steps .* is too short"),
        ({"data": DataConfig("x.jsonl", valid_share=0)}, "judges on held-out samples"),
        ({"data": DataConfig("-")}, "standard input"),
        ({"adapter": LoraConfig(modules_to_save=["x"])}, "modules_to_save"),
    ],
)
def test_what_makes_no_sense(
    config: Callable[..., SweepConfig], change: dict[str, Any], expected: str
) -> None:
    told = config(**change) if "data" not in change else dataclasses.replace(config(), **change)
    with pytest.raises(ConfigError, match=expected):
        sweep(told)
    assert not Path(told.output).exists()


def test_data_and_targets_are_checked_before_anything_is_written(
    config: Callable[..., SweepConfig], make_data: Callable[..., Path]
) -> None:
    told = config()
    with pytest.raises(TargetError, match="q_prij"):
        sweep(dataclasses.replace(told, space={"target_modules": ["attention", "q_prij"]}))
    data = DataConfig(str(make_data("one.jsonl", [1])))
    with pytest.raises(DataError, match="0 samples are held out"):
        sweep(dataclasses.replace(told, data=data))
    assert not Path(told.output).exists()


def test_a_full_disk_is_told_of(
    config: Callable[..., SweepConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    def refuse(*arguments: Any, **named: Any) -> None:
        raise OperationalError("insert", {}, Exception("database or disk is full"))

    monkeypatch.setattr(optuna.storages.RDBStorage, "create_new_trial", refuse)
    with pytest.raises(StorageError, match=r"study\.db: cannot be written: .*full"):
        sweep(config())


def test_without_optuna_it_says_what_to_install(
    config: Callable[..., SweepConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'rango\[sweep\]'"):
        sweep(config())
    assert not Path(config().output).exists()
