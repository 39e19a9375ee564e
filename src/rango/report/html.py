"""The report of a run: report.html in its folder, from what the run wrote there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rango import __version__
from rango.errors import DataError
from rango.files.atomic import write_text
from rango.report.classes import (
    CLASS_MEASURES,
    LABEL_COLUMNS,
    confusion_rows,
    is_classification,
    label_rows,
)
from rango.report.curves import run_curves
from rango.report.format import MISSING, decimal, duration, integer, percent, size
from rango.report.page import facts, page, plots, samples_table, section, table, text, tiles
from rango.report.proof import proof_rows, proof_verdict
from rango.tracking.events import read_events

Measure = tuple[str, str, Callable[[float | None], str]]

MEASURES: tuple[Measure, ...] = (
    ("loss, nats a token", "loss", decimal),
    ("perplexity", "perplexity", decimal),
    ("token accuracy", "token_accuracy", percent),
    ("loss on content tokens", "content_loss", decimal),
    ("accuracy on content tokens", "content_accuracy", percent),
    ("exact match", "exact_match", percent),
)
"""(label, key, how to write) of an evaluation's measures, in the order of every table."""


def measures_of(evaluations: Iterable[Mapping[str, Any] | None]) -> tuple[Measure, ...]:
    """The measures of evaluations of one kind: of a model that writes, or of a classifier."""
    return CLASS_MEASURES if any(map(is_classification, evaluations)) else MEASURES


def write_report(run_folder: str | Path, result: Mapping[str, Any] | None = None) -> Path:
    """Write report.html into a run's folder, replacing an earlier one, and return its path.

    Reads config.yaml, events.jsonl and (unless `result` is given) result.json there, and nothing
    else; any of them may be missing (an unfinished run has no result). Raises DataError where one
    is malformed.
    """
    folder = Path(run_folder)
    config = _mapping(folder / "config.yaml")
    result = _mapping(folder / "result.json") if result is None else result
    events_path = folder / "events.jsonl"
    events = list(read_events(events_path)) if events_path.exists() else []
    path = folder / "report.html"
    write_text(path, report_page(folder.name, config, events, result), overwrite=True)
    return path


def report_page(
    name: str,
    config: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
) -> str:
    """The page's HTML. `result` has the keys that `rango.report.card.model_card` describes, and
    stopped (a sentence), best_step, trainable, share, peak_memory, adapter_bytes, samples."""
    base = result.get("base") or config.get("base") or {}
    body = [
        f"<h1>{text(name)}</h1>",
        f'<p class="soft">{text(_subtitle(base, config, result))}</p>',
        tiles(_headline(result)),
        section("Curves", plots(run_curves(events))),
        section("Held-out samples, before and after", _evaluation(result.get("evaluation") or {})),
        section("Forgetting", _forgetting(result.get("forgetting") or {})),
        section("Proof", _proof(result.get("proof") or {})),
        section("Samples", _samples(result.get("samples") or [])),
        section("Data", facts(result.get("data") or {})),
        section("Base", facts(base)),
        section("Configuration", facts(config)),
        f'<p class="soft">Written by Rango {text(__version__)}.</p>',
    ]
    return page(f"Rango: {name}", body)


def _mapping(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = path.read_text(encoding="utf-8")
        value = json.loads(content) if path.suffix == ".json" else yaml.safe_load(content)
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not readable as {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value


def _subtitle(base: Mapping[str, Any], config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    method = (config.get("training") or {}).get("method", "lora")
    named = {"lora": "QLoRA" if base.get("quantize") == "nf4" else "LoRA", "full": "Full tuning"}
    model = base.get("source") or base.get("model") or "a base model"
    line = f"{named.get(method, method)} of {model}"
    if not result:
        return f"{line}. Unfinished: this run has no result yet."
    stopped = result.get("stopped")
    return f"{line}. {stopped}" if stopped else f"{line}."


def _headline(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    evaluation = result.get("evaluation") or {}
    before, after = evaluation.get("base") or {}, evaluation.get("adapted") or {}
    loss = decimal(after.get("loss"), 3)
    if before.get("loss") is not None:
        loss = f"{decimal(before['loss'], 3)} → {loss}"
    entries = [
        ("held-out loss", loss),
        ("content accuracy", percent(after.get("content_accuracy"))),
        ("held-out accuracy", percent(after.get("accuracy"))),
        ("macro F1", percent(after.get("macro_f1"))),
        ("forgetting, KL nats a token", decimal((result.get("forgetting") or {}).get("kl"))),
        ("trainable parameters", integer(result.get("trainable"))),
        ("of the model's parameters", percent(result.get("share"), 2)),
        ("adapter on disk", size(result.get("adapter_bytes"))),
        ("peak memory", size(result.get("peak_memory"))),
        ("steps", integer(result.get("steps"))),
        ("time", duration(result.get("seconds"))),
    ]
    return [entry for entry in entries if entry[1] != MISSING]


def _evaluation(evaluation: Mapping[str, Any]) -> str:
    names = [name for name in ("base", "adapted") if evaluation.get(name)]
    rows = []
    for label, key, write in measures_of(evaluation.values()):
        cells = [write((evaluation[name] or {}).get(key)) for name in names]
        if any(cell != MISSING for cell in cells):
            rows.append([label, *cells])
    return table(["", *names], rows) + _labels(evaluation.get("adapted") or {})


def _labels(evaluation: Mapping[str, Any]) -> str:
    if not is_classification(evaluation):
        return ""
    columns, rows = confusion_rows(evaluation)
    return table(LABEL_COLUMNS, label_rows(evaluation)) + (table(columns, rows) if rows else "")


def _forgetting(values: Mapping[str, Any]) -> str:
    if values.get("kl") is None:
        return ""
    line = (
        f"On {values.get('on') or 'general text'} the adapted model's distribution is "
        f"{decimal(values['kl'])} nats a token (KL) from the base's"
    )
    if values.get("loss") is not None and values.get("base_loss") is not None:
        line += f"; its loss there is {decimal(values['loss'])}, the base's "
        line += decimal(values["base_loss"])
    return f"<p>{text(line)}.</p>"


def _proof(proof: Mapping[str, Any]) -> str:
    if not proof:
        return ""
    kind = "good" if proof.get("passed") else "bad"
    return f'<p class="{kind}">{text(proof_verdict(proof))}</p>' + table(
        ["check", "", "found", "limit", ""],
        [
            [name, sign, found, limit, detail]
            for sign, name, found, limit, detail in proof_rows(proof)
        ],
        numbers=(2, 3),
    )


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    columns = [
        key
        for key in ("prompt", "expected", "base", "adapted")
        if any(sample.get(key) is not None for sample in samples)
    ]
    return samples_table(columns, [[str(s.get(key) or "") for key in columns] for s in samples])
