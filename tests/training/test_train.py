"""Whole runs: the folder they leave, what they refuse, and going on after an interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import rango
from rango.adapters.config import LoraConfig
from rango.base.config import BaseConfig
from rango.base.tokenizer import load_tokenizer
from rango.data.config import DataConfig
from rango.errors import (
    AdapterError,
    ConfigError,
    DataError,
    OutputExistsError,
    StorageError,
    TargetError,
    VerificationError,
)
from rango.tracking.events import read_events
from rango.training.config import RunConfig, TrainingConfig
from rango.training.prepare import prepare_samples
from rango.training.run_folder import deciding
from rango.training.train import train

TRAINING = TrainingConfig(
    epochs=2, batch_size=8, learning_rate=1e-2, eval_every=3, checkpoint_every=2, micro_tokens=64
)


@pytest.fixture
def config(base_folder: Path, data_file: Path, tmp_path: Path) -> RunConfig:
    return RunConfig(
        base=BaseConfig(str(base_folder)),
        data=DataConfig(str(data_file), valid_share=0.2),
        output=str(tmp_path / "run"),
        adapter=LoraConfig(r=4, lora_dropout=0.1),
        training=TRAINING,
    )


def change(config: RunConfig, **parts: Any) -> RunConfig:
    """The config with some options of its parts changed: training={"epochs": 1}, output=…"""
    changed = {
        name: dataclasses.replace(getattr(config, name), **value)
        if isinstance(value, dict)
        else value
        for name, value in parts.items()
    }
    return dataclasses.replace(config, **changed)


def adapter_bytes(config: RunConfig) -> bytes:
    return (Path(config.output) / "adapter" / "adapter_model.safetensors").read_bytes()


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_leaves_everything_in_its_folder(config: RunConfig) -> None:
    result = train(config)
    folder = Path(config.output)
    assert listing(folder) == [
        "adapter",
        "checkpoints",
        "config.yaml",
        "events.jsonl",
        "report.html",
        "result.json",
    ]
    assert listing(folder / "checkpoints") == [f"step-{result.trained.steps:08d}"]
    assert listing(folder / "adapter") == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "rango.json",
    ]
    assert result.saved == str(folder / "adapter")
    written = json.loads((folder / "result.json").read_text())
    assert written == json.loads(json.dumps(result.as_dict()))
    facts = json.loads((folder / "adapter" / "rango.json").read_text())
    for found in (written, facts):
        assert found["proof"]["passed"] is True
        assert found["evaluation"]["adapted"]["loss"] < found["evaluation"]["base"]["loss"]
        assert found["forgetting"]["kl"] > 0
        assert found["forgetting"]["on"] == "the prompts of the held-out samples"
        assert found["data"]["digest"].startswith("sha256:")
        assert found["base"]["fingerprint"].startswith("blake3:")
        assert found["gap"] == pytest.approx(
            found["evaluation"]["adapted"]["loss"] - found["train_loss"]
        )
    assert "probe" in facts["proof"]
    assert "Trained with Rango" in (folder / "adapter" / "README.md").read_text()
    assert "<svg" in (folder / "report.html").read_text()
    events = [event["event"] for event in read_events(folder / "events.jsonl")]
    assert events[:2] == ["start", "evaluation"]
    assert events[-1] == "end"
    assert "stop" in events


def test_the_config_is_written_as_resolved(config: RunConfig) -> None:
    train(change(config, training={"learning_rate": None, "eval_every": None, "max_steps": 3}))
    written = yaml.safe_load((Path(config.output) / "config.yaml").read_text())
    assert written["training"]["learning_rate"] == 2e-4
    assert written["training"]["eval_every"] == 1
    assert written["adapter"]["target_modules"] == "all-linear"
    assert set(written) == {"base", "data", "output", "adapter", "training"}


def test_the_adapter_is_the_best_by_held_out_loss(config: RunConfig) -> None:
    result = train(change(config, training={"learning_rate": 5e-2, "epochs": 8}))
    trained = result.trained
    looks = {values["step"]: values["loss"] for values in trained.evaluations if values["step"]}
    assert trained.best_step == min(looks, key=looks.__getitem__)
    adapted = rango.load_adapter(rango.load_base(config.base.model), result.saved)
    samples = prepare_samples(config.data, load_tokenizer(config.base.model))
    again = rango.evaluate(adapted.model, samples.valid)
    assert again.loss == pytest.approx(looks[trained.best_step], rel=1e-5)


def test_qlora_runs_over_a_quantized_base(config: RunConfig, tmp_path: Path) -> None:
    result = train(change(config, base={"quantize": "nf4"}, training={"max_steps": 2}))
    assert result.facts["base"]["quantize"] == "nf4"
    assert result.facts["proof"]["passed"] is True
    assert result.trained.share < 1


def test_full_fine_tuning_leaves_a_model_with_its_own_fingerprint(config: RunConfig) -> None:
    config = change(
        config, training={"method": "full", "learning_rate": 5e-3}, base={"dtype": "as stored"}
    )
    result = train(config)
    folder = Path(config.output)
    assert Path(result.saved) == folder / "model"
    model = rango.load_base(folder / "model")
    base = rango.load_base(config.base.model)
    assert model.fingerprint != base.fingerprint
    assert model.dtype == torch.float32
    assert result.trained.share == 1.0
    assert result.facts["proof"]["passed"] is True
    assert result.facts["forgetting"]["kl"] > 0
    assert (folder / "model" / "tokenizer.json").is_file()
    assert yaml.safe_load((folder / "config.yaml").read_text())["base"]["dtype"] == "fp32"


def test_full_fine_tuning_in_bf16_on_request(config: RunConfig) -> None:
    training = {"method": "full", "learning_rate": 5e-3, "max_steps": 2}
    result = train(change(config, training=training, base={"dtype": "bf16"}))
    assert result.facts["base"]["dtype"] == "bfloat16"
    assert rango.load_base(result.saved).dtype == torch.bfloat16
    assert result.facts["proof"]["passed"] is True


def test_general_text_from_a_file(config: RunConfig, tmp_path: Path) -> None:
    text = tmp_path / "general.txt"
    text.write_text("one two three four five six seven\n\nnine ten one two\n")
    result = train(change(config, data={"general": str(text)}, training={"max_steps": 2}))
    assert result.facts["forgetting"]["on"] == "general text"


# ---------------------------------------------------------------- what is refused


def test_an_existing_folder_is_refused_before_anything_else(config: RunConfig) -> None:
    folder = Path(config.output)
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(OutputExistsError, match="already exists"):
        train(change(config, base={"model": "/nowhere"}))
    assert listing(folder) == ["mine.txt"]


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ({"training": {"batch_size": 0}}, ConfigError, r"training\.batch_size"),
        (
            {"training": {"method": "full"}, "base": {"quantize": "nf4"}},
            ConfigError,
            "QLoRA",
        ),
        ({"data": {"train": "/nowhere.jsonl"}}, DataError, "no such file"),
        ({"adapter": {"target_modules": ["q_porj"]}}, TargetError, "q_proj"),
        (
            {"training": {"patience": 1}, "data": {"valid_share": 0.0}},
            ConfigError,
            "no samples are held out",
        ),
        ({"data": {"max_length": 3}}, DataError, "over the limit of 3"),
        ({"data": {"max_length": 3, "too_long": "skip"}}, DataError, "no samples are left"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    config: RunConfig, parts: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        train(change(config, **parts))
    assert not Path(config.output).exists()


def test_an_encoder_is_refused(config: RunConfig, make_base: Callable[..., Path]) -> None:
    encoder = make_base("encoder", "bert")
    with pytest.raises(ConfigError, match=r"an encoder \(BertModel\)"):
        train(change(config, base={"model": str(encoder)}))


def test_tokens_and_lengths_that_the_base_has_no_room_for(
    config: RunConfig, make_base: Callable[..., Path]
) -> None:
    small = make_base("small", vocab_size=9)
    with pytest.raises(DataError, match=r"train\.jsonl:\d+: token id 1\d, .* for 0 to 8"):
        train(change(config, base={"model": str(small)}))
    short = make_base("short", max_position_embeddings=6)
    with pytest.raises(DataError, match=r"tokens, and .* positions for 6; set max_length"):
        train(change(config, base={"model": str(short)}))
    assert not Path(config.output).exists()


def test_a_full_disk_leaves_nothing_half_written(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rango.training.checkpoint as checkpoint

    save, written = checkpoint.save_file, []

    def full(tensors: Any, path: Path, **options: Any) -> None:
        written.append(path)
        if len(written) == 3:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, **options)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StorageError, match="the disk is full"):
        train(config)
    folder = Path(config.output)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.setattr(checkpoint, "save_file", save)
    result = train(config, resume=True)
    assert result.facts["proof"]["passed"] is True


def test_a_failed_proof_is_an_error_and_recorded(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rango.training.finish as finish

    observe = finish.observe
    monkeypatch.setattr(
        finish, "observe", lambda *args: [values + 1.0 for values in observe(*args)]
    )
    with pytest.raises(VerificationError, match="read back"):
        train(config)
    result = json.loads((Path(config.output) / "result.json").read_text())
    assert result["proof"]["passed"] is False


# ---------------------------------------------------------------- interruption and resumption


class Interrupted(Exception):
    pass


def stop_at(step: int) -> Callable[..., None]:
    def progress(task: str, done: float, total: float, unit: str = "", note: str = "") -> None:
        if task == "train" and done == step:
            raise Interrupted

    return progress


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_interruption_at_any_step_changes_nothing(config: RunConfig, method: str) -> None:
    rate = 1e-2 if method == "lora" else 1e-3
    config = change(config, training={"method": method, "learning_rate": rate})
    whole = train(config)
    saved = Path(whole.saved).name
    weights = {
        "lora": "adapter_model.safetensors",
        "full": "model.safetensors",
    }[method]
    expected = (Path(whole.saved) / weights).read_bytes()
    log = [
        {key: value for key, value in event.items() if key in ("event", "step", "loss", "kl")}
        for event in read_events(Path(config.output) / "events.jsonl")
    ]
    # before the first checkpoint, just before one, between two, before and at the end
    assert whole.trained.steps == 8
    for step in (1, 2, 5, 7, 8) if method == "lora" else (3, 8):
        other = dataclasses.replace(config, output=f"{config.output}-{step}")
        with pytest.raises(Interrupted):
            train(other, progress=stop_at(step))
        train(other, resume=True)
        assert (Path(other.output) / saved / weights).read_bytes() == expected
        again = [
            {key: value for key, value in event.items() if key in ("event", "step", "loss", "kl")}
            for event in read_events(Path(other.output) / "events.jsonl")
        ]
        for kind in ("step", "evaluation"):
            assert [e for e in again if e["event"] == kind] == [
                e for e in log if e["event"] == kind
            ]


SERVER = """
import json, os, sys
import torch
torch.set_num_threads(1)
from rango.adapters.config import LoraConfig
from rango.base.config import BaseConfig
from rango.data.config import DataConfig
from rango.training.config import RunConfig, TrainingConfig
from rango.training.train import train
kinds = {"base": BaseConfig, "data": DataConfig, "adapter": LoraConfig, "training": TrainingConfig}
for line in sys.stdin:
    given = json.loads(line)
    child = os.fork()  # what is imported is shared, so that a run starts at once
    if child == 0:
        parts = {name: kind(**given["config"][name]) for name, kind in kinds.items()}
        train(RunConfig(output=given["config"]["output"], **parts), resume=given["resume"])
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def kill_later(child: int, log: Path, moments: random.Random) -> None:
    """Kill -9 some events and milliseconds later, unless the run ends before."""
    size = log.stat().st_size if log.exists() else 0
    grown = size + moments.randrange(1, 3000)
    with contextlib.suppress(ProcessLookupError):
        while not (log.exists() and log.stat().st_size > grown):
            os.kill(child, 0)
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)


def test_kill_9_at_random_changes_nothing(config: RunConfig) -> None:
    config = change(config, training={"epochs": 6, "checkpoint_every": 3})
    train(config)
    expected = adapter_bytes(config)
    other = dataclasses.replace(config, output=f"{config.output}-killed")
    folder = Path(other.output)
    moments = random.Random()  # another place every time
    exits = []
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as server:
        assert server.stdin
        assert server.stdout
        while not (folder / "result.json").exists():
            request = {"config": dataclasses.asdict(other), "resume": folder.exists()}
            print(json.dumps(request), file=server.stdin, flush=True)
            child = int(server.stdout.readline())
            if len(exits) < 3:
                kill_later(child, folder / "events.jsonl", moments)
            exits.append(int(server.stdout.readline()))
            assert exits[-1] in (0, -signal.SIGKILL)
        server.stdin.close()
    assert -signal.SIGKILL in exits
    assert adapter_bytes(other) == expected
    steps = [e["step"] for e in read_events(folder / "events.jsonl") if e["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert not list(folder.rglob(".*"))


def test_ctrl_c_tells_how_to_go_on(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(task: str, done: float, total: float, unit: str = "", note: str = "") -> None:
        if task == "train" and done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as info:
        train(config, progress=interrupt)
    path = Path(config.output) / "config.yaml"
    assert str(info.value) == (
        f"interrupted after step 3 of 8; to continue: rango train --config {path} --resume"
    )
    assert listing(path.parent / "checkpoints") == ["step-00000003"]
    train(config, resume=True)


def test_resuming_before_the_first_checkpoint_starts_anew(config: RunConfig) -> None:
    with pytest.raises(Interrupted):
        train(config, progress=stop_at(1))
    train(config, resume=True)
    events = read_events(Path(config.output) / "events.jsonl")
    assert [event["event"] for event in events].count("start") == 1


def test_a_run_cut_in_its_last_moments_is_finished(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rango.training.finish as finish

    def broken(*args: Any, **options: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(finish.RunFolder, "finish", broken)
        with pytest.raises(Interrupted):
            train(config)
    before = adapter_bytes(config)
    result = train(config, resume=True)
    assert adapter_bytes(config) == before
    assert result.trained.stop == "completed"
    events = [event["event"] for event in read_events(Path(config.output) / "events.jsonl")]
    assert events[-3:] == ["start", "stop", "end"]
    with pytest.raises(OutputExistsError, match="finished"):
        train(config, resume=True)


def test_resume_refuses_what_differs_naming_it(
    config: RunConfig, make_base: Callable[..., Path], make_data: Callable[..., Path]
) -> None:
    with pytest.raises(Interrupted):
        train(config, progress=stop_at(3))
    events = (Path(config.output) / "events.jsonl").read_bytes()

    def refused(words: str, **parts: Any) -> None:
        with pytest.raises(ConfigError, match=words):
            train(change(config, **parts), resume=True)

    refused(r"training\.learning_rate: 0\.01 then, 0\.02 now", training={"learning_rate": 0.02})
    refused(r"adapter\.r: 4 then, 8 now", adapter={"r": 8})
    refused("the samples: sha256:", data={"train": str(make_data("other.jsonl", range(1, 41)))})
    refused("the base's weights: blake3:", base={"model": str(make_base("another", seed=9))})
    assert (Path(config.output) / "events.jsonl").read_bytes() == events


def test_a_run_without_a_checkpoint_starts_anew_with_its_new_config(config: RunConfig) -> None:
    with pytest.raises(Interrupted):
        train(config, progress=stop_at(1))
    run = Path(config.output)
    assert not list((run / "checkpoints").glob("step-*"))
    result = train(change(config, training={"learning_rate": 0.02}), resume=True)
    assert result.facts["training"]["learning_rate"] == 0.02
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["learning_rate"] == 0.02


def test_what_a_killed_run_was_replacing_comes_back(config: RunConfig) -> None:
    with pytest.raises(Interrupted):
        train(config, progress=stop_at(3))
    checkpoints = Path(config.output) / "checkpoints"
    (checkpoint,) = checkpoints.glob("step-*")
    retired = checkpoints / f".{checkpoint.name}.x.old"
    retired.mkdir()
    checkpoint.rename(retired / checkpoint.name)
    (checkpoints / f".{checkpoint.name}.x.tmp").mkdir()
    train(config, resume=True)
    starts = [
        e["step"]
        for e in read_events(Path(config.output) / "events.jsonl")
        if e["event"] == "start"
    ]
    assert starts == [0, 2]
    assert not [left for left in checkpoints.iterdir() if left.name.startswith(".")]


def test_a_run_and_its_files_may_be_moved(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(config, progress=stop_at(3))
    moved = {
        name: str(Path(path).rename(tmp_path / f"moved-{name}{Path(path).suffix}"))
        for name, path in [
            ("run", config.output),
            ("base", config.base.model),
            ("data", config.data.train),
        ]
    }
    other = change(
        config,
        output=moved["run"],
        base={"model": moved["base"]},
        data={"train": moved["data"]},
        training={"checkpoint_every": 50, "keep_checkpoints": 2},
    )
    result = train(other, resume=True)
    assert result.facts["proof"]["passed"] is True


def test_resume_needs_a_run(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        train(config, resume=True)
    Path(config.output).mkdir()
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        train(config, resume=True)


def test_a_damaged_checkpoint_is_refused(config: RunConfig) -> None:
    with pytest.raises(Interrupted):
        train(config, progress=stop_at(3))
    tensors = Path(config.output) / "checkpoints" / "step-00000002" / "tensors.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(AdapterError, match="is not what was written"):
        train(config, resume=True)


def test_kept_data_give_the_same_run(config: RunConfig, tmp_path: Path, monkeypatch: Any) -> None:
    config = change(config, data={"cache": str(tmp_path / "kept")})
    train(config)
    monkeypatch.setattr("rango.data.tokens.chunk.ChunkEncoder.encode", None)  # fails if called
    monkeypatch.setattr("rango.training.prepare.HeldOut", None)
    again = change(config, output=str(tmp_path / "again"))
    train(again)
    assert adapter_bytes(again) == adapter_bytes(config)


def test_where_data_are_kept_decides_nothing(config: RunConfig, tmp_path: Path) -> None:
    options = dataclasses.asdict(config)
    moved = change(config, data={"cache": str(tmp_path / "kept"), "cache_gb": 1.0})
    assert deciding(dataclasses.asdict(moved)) == deciding(options)
    other = change(config, data={"max_length": 99})
    assert deciding(dataclasses.asdict(other)) != deciding(options)
