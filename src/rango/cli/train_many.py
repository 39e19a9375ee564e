"""`rango train JOBS`: many adapters over one base, at once."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

import rango
from rango.adapters.config import LoraConfig
from rango.base.config import BaseConfig
from rango.cli.fleet import FleetView
from rango.cli.output import print_json, show
from rango.cli.parsing import (
    add_json_flag,
    new_parser,
    parse_given,
    parse_values,
    say,
    with_columns,
)
from rango.data.config import DataConfig
from rango.errors import ConfigError, JobsFailedError
from rango.training.config import TrainingConfig
from rango.training.many.config import SHARED, JobConfig, ManyConfig
from rango.training.many.files import Values, named_data, overlaid, read_many
from rango.training.many.train import ManyResult

DESCRIPTION = """\
Trains many adapters over one base at once. JOBS is a YAML file with a list of jobs, or a folder
with a data set for each (customers/*.jsonl: an adapter for each file). The jobs share batches, each
token using its own job's adapter, so that the base is read once for all; each learns what it would
learn alone. Flags of adapter, data and training are every job's, whatever the file says.

In a path of data {name} is the job's name: --data.valid 'held-out/{name}.jsonl' judges each by a
file of its own. Each job's folder is OUTPUT/jobs/NAME, as that of a run alone. An interrupted run
continues with the same command and --resume."""

EXAMPLE = """\
  rango train customers/ --base.model BASE --adapter.r 8 --output runs/customers
  rango train many.yaml --output runs/many"""


def parser() -> ArgumentParser:
    """The flags of `rango train JOBS`."""
    made = new_parser("train", DESCRIPTION, EXAMPLE, "JOBS ")
    made.add_argument("jobs", metavar="JOBS", help="a YAML file, or a folder of data sets")
    made.add_argument(
        "--resume", action="store_true", help="continue the interrupted run in the output folder"
    )
    add_json_flag(made, "the result")
    made.add_argument("--output", help="folder of the run, which must not exist yet")
    made.add_argument("--base.model", help="the base: a folder, or a name of the Hub")
    made.add_class_arguments(BaseConfig, "base", skip={"model"})
    made.add_class_arguments(ManyConfig, skip={"base", "jobs", "output"})
    made.add_class_arguments(LoraConfig, "adapter")
    made.add_class_arguments(DataConfig, "data", skip={"train"})
    made.add_class_arguments(TrainingConfig, "training", skip={*SHARED})
    return made


def main(words: Sequence[str]) -> None:
    """Parse, train, print."""
    given = parse_given(parser(), [*with_columns(words)])
    jobs, resume, as_json = given.pop("jobs"), given.pop("resume", False), given.pop("json", False)
    config = _config(read_many(Path(jobs)), given)
    with FleetView() as view:
        result = rango.train_many(config, resume=resume, watch=view.watch, progress=view.progress)
    if as_json:
        print_json(result)
    else:
        _print(config, result)
    if result.failed:
        names = ", ".join(list(result.failed)[:5])
        more = f" and {len(result.failed) - 5} more" if len(result.failed) > 5 else ""
        raise JobsFailedError(
            f"{len(result.failed)} of {len(config.jobs)} jobs failed ({names}{more}); the reasons "
            f"are in {config.output}/result.json"
        )


def _config(written: Values, given: Values) -> ManyConfig:
    """The file with the flags over it, its values checked."""
    job_flags: Values = {
        name: given.pop(name) for name in ("adapter", "data", "training") if name in given
    }
    kept = {"data": {"cache": True}}
    jobs = []
    for job in written.pop("jobs", []):
        own = job_flags
        if "data" in job_flags:
            own = job_flags | {"data": named_data(job_flags["data"], job.get("name"))}
        jobs.append(overlaid(overlaid(kept, job), own))
    values = overlaid(written, given)
    values["base"] = {"cache": True} | (values.get("base") or {})
    for name, flag in (("base", "--base.model"), ("output", "--output")):
        missing = not values.get(name) or (name == "base" and not values["base"].get("model"))
        if missing:
            raise ConfigError(f"{flag} is missing: give the flag, or write it into the file")
    made: list[JobConfig] = []
    known: dict[str, JobConfig] = {}
    for job in jobs:
        # hundreds of jobs that differ in their data alone are checked once
        plain = {key: value for key, value in job.items() if key != "name"}
        data = dict(plain.pop("data", None) or {})
        train, valid = data.pop("train", None), data.get("valid")
        if job.get("name") is None:
            raise ConfigError(f"a job over {train} has no name; give it one")
        if not isinstance(train, str):
            raise ConfigError(
                f"job {job.get('name')}: data.train: expected a file, found {train!r}"
            )
        if isinstance(valid, str):
            data["valid"] = "one"
        key = repr((plain, data))
        if key not in known:
            whole = {"name": "job", "data": data | {"train": train}} | plain
            known[key] = parse_values(JobConfig, whole, f"job {job.get('name')}")
        like = known[key]
        own_data = replace(like.data, train=train, valid=valid)
        made.append(replace(like, name=str(job.get("name")), data=own_data))
    run = {name: value for name, value in values.items() if name != "base"}
    base = parse_values(BaseConfig, values["base"], "base")
    return ManyConfig(base=base, jobs=made, **_checked(run))


def _checked(run: Values) -> Values:
    """The run's own options, each of its type."""
    kinds: dict[str, Any] = {
        "output": str,
        "rows": int,
        "round_tokens": int,
        "micro_tokens": int,
        "gradient_checkpointing": bool,
        "snapshot_seconds": (int, float),
    }
    for name, value in run.items():
        if not isinstance(value, kinds[name]) or (kinds[name] is int and value is True):
            raise ConfigError(f"{name}: expected {_named(kinds[name])}, found {value!r}")
    return run


def _named(kind: Any) -> str:
    return {str: "a path", int: "a whole number", bool: "true or false"}.get(kind, "a number")


def _print(config: ManyConfig, result: ManyResult) -> None:
    from rango.report.jobs import jobs_table

    show(jobs_table([{"name": name} | vars(one) for name, one in result.outcomes.items()]))
    trained = [one for one in result.outcomes.values() if one.saved]
    say(f"trained: {len(trained)} of {len(config.jobs)}, each in {config.output}/jobs/NAME/adapter")
    losses = [(one.loss, one.base_loss) for one in trained]
    judged = [(own, base) for own, base in losses if own is not None and base is not None]
    if judged:
        better = sum(own < base for own, base in judged)
        say(f"better than the base on what was held out: {better} of {len(judged)}")
    if trained:
        saved = str(trained[0].saved)
        chat = ["rango", "chat", "--base", config.base.model, "--adapter", saved, "--compare"]
        say(f"next: {shlex.join(chat)}")
