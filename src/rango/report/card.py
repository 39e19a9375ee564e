"""The model card: README.md beside an adapter, as Hugging Face reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rango.report.classes import LABEL_COLUMNS, confusion_rows, is_classification, label_rows
from rango.report.format import MISSING, decimal, duration, integer, printable, sentence
from rango.report.html import measures_of
from rango.report.proof import proof_rows, proof_verdict

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def model_card(facts: Mapping[str, Any]) -> str:
    """Markdown with YAML front matter for an adapter's folder.

    `facts` are what rango.json holds; every key may be missing, and its lines are then left out:
    ``base`` (source, revision, fingerprint, quantize, dtype), ``adapter`` (LoraConfig's fields),
    ``data`` (digest, train_samples, valid_samples, train_tokens, skipped, labels), ``training``
    (TrainingConfig's fields), ``steps``, ``seconds``, ``evaluation`` ({"base": …, "adapted": …},
    each with loss, perplexity, token_accuracy, content_loss, content_accuracy), ``gap``,
    ``forgetting`` (base_loss, loss, kl, on), ``proof`` (passed, …), ``limits`` (sentences),
    ``rango_version``. Paths of this machine are not written.
    """
    base = facts.get("base") or {}
    model = str(base.get("source") or "")
    parts = [
        _front_matter(facts, model),
        f"# A LoRA adapter for {_shown(model) or 'a base model'}",
        _made_with(facts),
        _section("Trained on", _data_lines(facts.get("data") or {})),
        _section("Settings", _settings_lines(facts)),
        _evaluation(facts),
        _forgetting(facts.get("forgetting") or {}),
        _section("Checks", _proof_lines(facts.get("proof") or {})),
        _section("Limits", _limit_lines(facts)),
        _loading(model, (facts.get("data") or {}).get("labels") or []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(facts: Mapping[str, Any], model: str) -> str:
    tags = ["lora", "rango"]
    if (facts.get("base") or {}).get("quantize") == "nf4":
        tags.append("qlora")
    fields: dict[str, Any] = {"library_name": "peft", "tags": tags}
    if _on_hub(model):
        fields = {"base_model": model, **fields}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _on_hub(model: str) -> bool:
    return bool(_HUB_NAME.fullmatch(model)) and not Path(model).exists()


def _shown(model: str) -> str:
    """A hub name as it is; of a local folder only its own name."""
    if not model:
        return ""
    return _plain(model if _on_hub(model) else Path(model).name)


def _plain(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    line = " ".join(printable(str(text)).split())
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", line)


def _made_with(facts: Mapping[str, Any]) -> str:
    version = facts.get("rango_version")
    steps = facts.get("steps")
    text = f"Trained with Rango{f' {version}' if version else ''}"
    if steps:
        text += f" in {integer(steps)} steps"
    if facts.get("seconds"):
        text += f" and {duration(facts['seconds'])}"
    fingerprint = (facts.get("base") or {}).get("fingerprint")
    if fingerprint:
        text += f", over the base with fingerprint `{fingerprint}`"
    return text + "."


def _section(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


def _data_lines(data: Mapping[str, Any]) -> list[str]:
    names = {
        "train_samples": "training samples",
        "train_tokens": "training tokens",
        "supervised_tokens": "supervised tokens",
        "valid_samples": "held-out samples",
        "skipped": "samples skipped as too long",
    }
    lines = [f"{integer(data[key])} {name}" for key, name in names.items() if data.get(key)]
    if data.get("loss_on"):
        lines.append(f"loss on: {_plain(data['loss_on'])}")
    if data.get("labels"):
        lines.append(f"labels: {_plain(', '.join(data['labels']))}")
    if data.get("digest"):
        lines.append(f"digest of the tokenized samples: `{data['digest']}`")
    return lines


def _settings_lines(facts: Mapping[str, Any]) -> list[str]:
    base = facts.get("base") or {}
    lines = []
    if base.get("quantize"):
        quantized = {"nf4": "NF4 (QLoRA)", "int8": "int8"}
        held = quantized.get(base["quantize"]) or sentence(base.get("dtype"))
        lines.append(f"base held in: {_plain(held)}")
    for group in ("adapter", "training"):
        for key, value in (facts.get(group) or {}).items():
            if value not in (None, [], {}):
                lines.append(f"{key}: {_plain(sentence(value))}")
    return lines


def _evaluation(facts: Mapping[str, Any]) -> str:
    results = facts.get("evaluation") or {}
    columns = [
        (key, results[key])
        for key in ("base", "adapted")
        if (results.get(key) or {}).get("loss") is not None
    ]
    if not columns:
        return ""
    rows = measures_of(result for _, result in columns)
    names = {"base": "base", "adapted": "with the adapter"}
    lines = [
        "| on the held-out samples | " + " | ".join(names[key] for key, _ in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for label, key, write in rows:
        values = [write(result.get(key)) for _, result in columns]
        if any(value != MISSING for value in values):
            lines.append(f"| {label} | " + " | ".join(values) + " |")
    text = "## Evaluation\n\n" + "\n".join(lines)
    text += _by_label(results.get("adapted") or {})
    if facts.get("gap") is not None:
        text += f"\n\nHeld-out loss is {decimal(facts['gap'])} above the training loss."
    return text


def _by_label(evaluation: Mapping[str, Any]) -> str:
    if not is_classification(evaluation):
        return ""
    parts = [_table(LABEL_COLUMNS, label_rows(evaluation))]
    columns, rows = confusion_rows(evaluation)
    if rows:
        parts.append(_table(columns, rows))
    return "".join(f"\n\n{part}" for part in parts)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)]]
    cells = [*([_plain(cell) for cell in row] for row in (columns, *rows))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], lines[1], *cells[1:]))


def _forgetting(forgetting: Mapping[str, Any]) -> str:
    if forgetting.get("kl") is None:
        return ""
    on = _plain(forgetting.get("on") or "general text")
    text = f"KL divergence from the base on {on}: {decimal(forgetting['kl'])} nats a token"
    if forgetting.get("loss") is not None and forgetting.get("base_loss") is not None:
        text += (
            f"; loss there {decimal(forgetting['loss'])}, base {decimal(forgetting['base_loss'])}"
        )
    return f"## Forgetting\n\n{text}."


def _proof_lines(proof: Mapping[str, Any]) -> list[str]:
    if not proof:
        return []
    return [
        _plain(proof_verdict(proof)),
        *(
            _plain(f"{sign} {name}: {found}{f' (limit {limit})' if limit != MISSING else ''}")
            for sign, name, found, limit, _ in proof_rows(proof)
        ),
    ]


def _limit_lines(facts: Mapping[str, Any]) -> list[str]:
    return [
        *(_plain(limit) for limit in facts.get("limits") or ()),
        "It was measured only on samples like its training data, and on the general text above "
        "where there is any; nothing is known of it elsewhere.",
        "It has the knowledge, faults and licence terms of its base and of its data.",
    ]


def _loading(model: str, labels: Sequence[str]) -> str:
    base = model if _on_hub(model) else "BASE"
    auto, more = "AutoModelForCausalLM", ""
    command = f"rango chat --base {base} --adapter ADAPTER"
    if labels:
        auto, more = "AutoModelForSequenceClassification", f", num_labels={len(labels)}"
        command = f"rango classify --base {base} --adapter ADAPTER --text TEXT"
        numbered = ", ".join(f"{number} {_plain(label)}" for number, label in enumerate(labels))
    return f"""## Use

In Rango:

```python
import rango

base = rango.load_base_for("ADAPTER", "{base}")  # held as in training
adapted = rango.load_adapter(base, "ADAPTER")
```

or `{command}`. In PEFT:

```python
from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained("{base}"{more})
model = PeftModel.from_pretrained(base, "ADAPTER")
```

`ADAPTER` is this folder{"" if base == model else " and `BASE` the folder of the base"}.""" + (
        f" The logits are those of: {numbered}." if labels else ""
    )
