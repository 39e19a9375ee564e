"""Many jobs at once: each learns what it learns alone, whoever is beside it."""

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
from typing import Any

import pytest

from rango.adapters.config import LoraConfig
from rango.base.config import BaseConfig
from rango.data.config import DataConfig
from rango.errors import ConfigError, OutputExistsError, TargetError
from rango.tracking.events import read_events
from rango.training.config import TrainingConfig
from rango.training.many import fleet as fleets
from rango.training.many.config import JobConfig, ManyConfig
from rango.training.many.train import train_many
from rango.training.train import train

TRAINING = TrainingConfig(epochs=3, batch_size=8, learning_rate=1e-2, eval_every=4)


@pytest.fixture
def config(
    base_folder: Path, make_data: Callable[..., Path], tmp_path: Path
) -> Callable[..., ManyConfig]:
    """Four unlike jobs over a tiny base."""

    def make(output: str = "many", **options: Any) -> ManyConfig:
        numbers = {"ann": range(40), "bob": range(100, 122), "cat": range(7, 90, 3), "dan": [1, 2]}
        unlike = {
            "ann": (LoraConfig(r=4, lora_dropout=0.1), TRAINING),
            "bob": (
                LoraConfig(r=8, lora_alpha=8, target_modules="attention"),
                dataclasses.replace(
                    TRAINING,
                    learning_rate=3e-3,
                    weight_decay=0.1,
                    batch_size=3,
                    loraplus_lr_ratio=8,
                ),
            ),
            "cat": (
                LoraConfig(r=2, use_rslora=True),
                dataclasses.replace(TRAINING, schedule="cosine", adam_beta2=0.9, max_grad_norm=0.1),
            ),
            "dan": (
                LoraConfig(r=3),
                dataclasses.replace(
                    TRAINING, epochs=9, seed=5, learning_rate=3e-3, loraplus_lr_ratio=2
                ),
            ),
        }
        jobs = [
            JobConfig(
                name,
                DataConfig(
                    str(make_data(f"{name}.jsonl", numbers[name])),
                    valid_share=0.0 if name == "dan" else 0.2,
                ),
                adapter,
                training,
            )
            for name, (adapter, training) in unlike.items()
        ]
        given = {"rows": 3, "micro_tokens": 64, "round_tokens": 256} | options
        return ManyConfig(BaseConfig(str(base_folder)), jobs, str(tmp_path / output), **given)

    return make


def losses(folder: Path, event: str = "step") -> list[float]:
    found = read_events(folder / "events.jsonl")
    return [record["loss"] for record in found if record["event"] == event and "loss" in record]


def adapters(output: str | Path) -> dict[str, bytes]:
    files = Path(output).glob("jobs/*/adapter/adapter_model.safetensors")
    return {file.parts[-3]: file.read_bytes() for file in files}


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("packing", ["auto", "off"])
def test_each_job_learns_what_it_learns_alone(
    config: Callable[..., ManyConfig], packing: str, quantize: str, tmp_path: Path
) -> None:
    many = config()
    jobs = [
        dataclasses.replace(job, data=dataclasses.replace(job.data, packing=packing))
        for job in many.jobs
    ]
    base = dataclasses.replace(many.base, quantize=quantize)
    many = dataclasses.replace(many, jobs=jobs, base=base)
    result = train_many(many)
    assert result.failed == {}
    for job in many.jobs:
        alone = dataclasses.replace(many.run_config(job), output=str(tmp_path / job.name))
        single = train(alone)
        together = Path(many.output) / "jobs" / job.name
        for event in ("step", "evaluation"):
            expected = losses(Path(alone.output), event)
            assert losses(together, event) == pytest.approx(expected, rel=1e-5)
        assert len(losses(together)) == single.trained.steps == result.outcomes[job.name].steps
        loss = result.outcomes[job.name].loss
        assert (loss is None) == (job.name == "dan")
        assert loss is None or loss == pytest.approx(single.trained.adapted["loss"], rel=1e-5)
        facts = json.loads((together / "result.json").read_text())
        assert facts["proof"] == {"passed": True, "read_back": 0.0}
        assert facts["trainable"] == single.trained.trainable


def test_a_job_that_diverges_ends_alone(config: Callable[..., ManyConfig]) -> None:
    calm = config("calm")
    expected = train_many(calm)
    wild = config("wild")
    hot = dataclasses.replace(wild.jobs[1].training, learning_rate=1e30)
    wild.jobs[1] = dataclasses.replace(wild.jobs[1], training=hot)
    found = train_many(wild)
    assert list(found.failed) == ["bob"]
    assert "step 2" in found.failed["bob"]
    assert "learning_rate" in found.failed["bob"]
    for name in ("ann", "cat", "dan"):
        together = [losses(Path(many.output) / "jobs" / name) for many in (calm, wild)]
        assert together[1] == pytest.approx(together[0], rel=1e-5)
        assert found.outcomes[name].steps == expected.outcomes[name].steps
    assert not (Path(wild.output) / "jobs/bob/adapter").exists()


def test_rows_are_used_again(config: Callable[..., ManyConfig]) -> None:
    seen: list[tuple[list[str], list[int]]] = []

    def watch(fleet: fleets.Fleet) -> None:
        seen.append((list(fleet.jobs), [job.row for job in fleet.jobs.values()]))

    result = train_many(config(rows=2, round_tokens=1), watch=watch)
    assert result.failed == {}
    assert all(len(rows) == len(set(rows)) <= 2 and max(rows, default=0) < 2 for _, rows in seen)
    assert {tuple(names) for names, _ in seen} >= {("ann",), ("ann", "bob"), ()}
    rows = {name: row for names, rows in seen for name, row in zip(names, rows, strict=True)}
    assert rows["cat"] in (rows["ann"], rows["bob"])


def test_what_cannot_be_used_is_told_of_and_the_others_train(
    config: Callable[..., ManyConfig], tmp_path: Path
) -> None:
    many = config()
    many.jobs[2] = dataclasses.replace(many.jobs[2], data=DataConfig(str(tmp_path / "none.jsonl")))
    result = train_many(many)
    assert list(result.failed) == ["cat"]
    assert "none.jsonl" in result.failed["cat"]
    assert sorted(adapters(many.output)) == ["ann", "bob", "dan"]
    written = json.loads((Path(many.output) / "result.json").read_text())
    assert written["jobs"]["cat"]["status"] == "failed"
    assert written["jobs"]["ann"]["saved"] == str(Path(many.output) / "jobs/ann/adapter")


def test_early_stopping_is_each_jobs_own(config: Callable[..., ManyConfig]) -> None:
    many = config()
    restless = dataclasses.replace(
        TRAINING, epochs=200, learning_rate=0.3, patience=2, eval_every=1
    )
    many.jobs[0] = dataclasses.replace(many.jobs[0], training=restless)
    result = train_many(many)
    assert "no better held-out loss" in result.outcomes["ann"].detail
    assert result.outcomes["bob"].detail.startswith("All ")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"jobs": []}, "at least one"),
        ({"rows": 0}, "rows: expected at least 1"),
        ({"snapshot_seconds": 0}, "snapshot_seconds"),
        ({"name": "../x"}, "adapter name '../x'"),
        ({"name": "ANN"}, "twice"),
        ({"name": "ann"}, "twice"),
        ({"training": TrainingConfig(epochs=0)}, "job bob: training.epochs"),
        ({"training": TrainingConfig(micro_tokens=9)}, "micro_tokens is the whole run's"),
        ({"adapter": LoraConfig(modules_to_save=["lm_head"])}, "modules_to_save"),
        ({"training": TrainingConfig(method="full")}, "job bob: training.method full"),
        ({"data": DataConfig("-")}, "standard input"),
    ],
)
def test_what_makes_no_sense(
    config: Callable[..., ManyConfig], change: dict[str, Any], expected: str
) -> None:
    many = config()
    if change.keys() <= {"name", "training", "data", "adapter"}:
        many.jobs[1] = dataclasses.replace(many.jobs[1], **change)
    else:
        many = dataclasses.replace(many, **change)
    with pytest.raises(ConfigError, match=expected):
        train_many(many)
    assert not Path(many.output).exists()


def test_targets_are_checked_before_anything_is_written(config: Callable[..., ManyConfig]) -> None:
    many = config()
    many.jobs[3] = dataclasses.replace(many.jobs[3], adapter=LoraConfig(target_modules="q_prij"))
    with pytest.raises(TargetError, match="q_prij"):
        train_many(many)
    assert not Path(many.output).exists()


def test_a_head_is_refused(config: Callable[..., ManyConfig]) -> None:
    many = config()
    many.jobs[3] = dataclasses.replace(many.jobs[3], adapter=LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(TargetError, match="the head sees only some tokens"):
        train_many(many)
    assert not Path(many.output).exists()


def test_labels_are_not_learnt_beside_text(
    config: Callable[..., ManyConfig], tmp_path: Path
) -> None:
    many = config()
    lines = "".join(f'{{"text": "one two {i % 3}", "label": "l{i % 2}"}}\n' for i in range(9))
    (tmp_path / "labelled.jsonl").write_text(lines)
    data = DataConfig(str(tmp_path / "labelled.jsonl"), valid_share=0)
    many.jobs[1] = dataclasses.replace(many.jobs[1], data=data)
    result = train_many(many)
    assert list(result.failed) == ["bob"]
    assert "label" in result.failed["bob"]


def test_each_card_tells_of_its_own_job(config: Callable[..., ManyConfig]) -> None:
    many = config()
    plain = dataclasses.replace(many.jobs[3].training, learning_rate=None)
    many.jobs[3] = dataclasses.replace(many.jobs[3], training=plain)
    train_many(many)
    facts = {
        name: json.loads((Path(many.output) / "jobs" / name / "result.json").read_text())
        for name in ("ann", "bob", "dan")
    }
    assert any("mlp" in weight["name"] for weight in facts["bob"]["uncovered"])
    assert not any("mlp" in weight["name"] for weight in facts["ann"]["uncovered"])
    assert facts["dan"]["training"]["learning_rate"] == 2e-4
    assert facts["dan"]["training"]["eval_every"] is not None


class Stop(Exception):
    """Ends a run where a kill could."""


def test_going_on_gives_the_same_bytes(
    config: Callable[..., ManyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config("whole")
    train_many(whole)
    expected = adapters(whole.output)
    assert len(expected) == 4
    rounds = random.Random(0)
    many = config("parts", snapshot_seconds=1e-9)
    monkeypatch.setattr(fleets, "_SHARE_OF_SNAPSHOTS", 1e9)
    for attempt in range(100):
        left = rounds.randint(1, 4)

        def watch(fleet: fleets.Fleet) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Stop

        try:
            train_many(many, resume=attempt > 0, watch=watch)
        except Stop:
            continue
        break
    assert attempt >= 5
    assert adapters(many.output) == expected
    for name in expected:
        runs = [read_events(Path(m.output) / "jobs" / name / "events.jsonl") for m in (whole, many)]
        for run in runs:
            for record in run:
                for timed in ("time", "seconds", "tokens_per_second"):
                    record.pop(timed, None)
        assert runs[0] == runs[1]
    assert not (Path(many.output) / "snapshots").exists()
    with pytest.raises(OutputExistsError):
        train_many(many, resume=True)


def test_being_asked_to_stop_saves_and_going_on_gives_the_same_bytes(
    config: Callable[..., ManyConfig],
) -> None:
    whole = config("whole")
    train_many(whole)
    many, asked = config("asked"), 0

    def watch(fleet: fleets.Fleet) -> None:
        nonlocal asked
        if fleet.round in (2, 5) and asked < fleet.round:
            asked = fleet.round
            os.kill(os.getpid(), signal.SIGTERM)

    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            train_many(many, resume=resume, watch=watch)
    train_many(many, resume=True, watch=watch)
    assert adapters(many.output) == adapters(whole.output)


def test_a_killed_run_goes_on(config: Callable[..., ManyConfig], tmp_path: Path) -> None:
    """Killed between snapshots, with jobs that began or ended since the last one."""
    whole = config("whole")
    train_many(whole)
    many = config("killed")
    script = tmp_path / "run.py"
    script.write_text(
        "import pickle, sys, os, signal, torch\n"
        "from rango.training.many.train import train_many\n"
        "torch.set_num_threads(1)\n"
        "config, stop = pickle.load(open(sys.argv[1], 'rb')), int(sys.argv[2])\n"
        "def watch(fleet):\n"
        "    if fleet.round % 4 == 3: fleet._save()\n"
        "    if fleet.round >= stop: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train_many(config, resume=stop > 2, watch=watch)\n"
    )
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(many))
    for stop in (2, 9, 14):
        command = [sys.executable, str(script), str(tmp_path / "config.pickle"), str(stop)]
        assert subprocess.run(command, check=False, capture_output=True).returncode == -9
        (Path(many.output) / "snapshots").mkdir(exist_ok=True)
        (Path(many.output) / "snapshots" / ".round-00000099.tmp").mkdir()
    train_many(many, resume=True)
    assert adapters(many.output) == adapters(whole.output)
    assert not (Path(many.output) / "snapshots").exists()


def test_going_on_with_something_else_is_refused(config: Callable[..., ManyConfig]) -> None:
    many = config(snapshot_seconds=1e-9)

    def watch(fleet: fleets.Fleet) -> None:
        if fleet.round > 2:
            raise Stop

    with pytest.raises(Stop):
        train_many(many, watch=watch)
    other = dataclasses.replace(many.jobs[0].training, learning_rate=0.5)
    changed = [dataclasses.replace(many.jobs[0], training=other), *many.jobs[1:]]
    before = (Path(many.output) / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"jobs\.ann\.training\.learning_rate: 0\.01 then"):
        train_many(dataclasses.replace(many, jobs=changed), resume=True)
    with pytest.raises(ConfigError, match="order"):
        train_many(dataclasses.replace(many, jobs=many.jobs[::-1]), resume=True)
    assert (Path(many.output) / "config.yaml").read_text() == before
    data = Path(many.jobs[0].data.train)
    data.write_text("".join(data.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ConfigError, match="job ann: its samples are not those"):
        train_many(many, resume=True)
