"""Tables for the terminal: evaluation, proof, inspection, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE, SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rango.report.classes import LABEL_COLUMNS, confusion_rows, label_rows
from rango.report.format import MISSING, decimal, integer, percent, printable, sentence, size
from rango.report.html import measures_of
from rango.report.page import flat
from rango.report.proof import proof_rows, proof_verdict

Facts = Mapping[str, Any]


def evaluation_table(results: Mapping[str, Facts]) -> Table:
    """One column a model (``{"base": …, "adapted": …}``), one row a measure that some column has:
    loss, perplexity, token_accuracy, content_loss, content_accuracy, exact_match; of a classifier
    loss, accuracy, macro_f1."""
    table = _table("Held-out samples", "", *results, numbers=True)
    for label, key, write in measures_of(results.values()):
        cells = [write(result.get(key)) for result in results.values()]
        if any(cell != MISSING for cell in cells):
            table.add_row(label, *cells)
    return table


def labels_view(evaluation: Facts) -> RenderableType:
    """Precision, recall and F1 by label, and which label is taken for which."""
    scores = _table("By label", *LABEL_COLUMNS, numbers=True)
    for row in label_rows(evaluation):
        scores.add_row(*(Text(cell) for cell in row))
    columns, rows = confusion_rows(evaluation)
    if not rows:
        return scores
    taken = _table("Answers", *columns, numbers=True)
    for row in rows:
        taken.add_row(*(Text(cell) for cell in row))
    return Group(scores, taken)


def classified_table(found: Sequence[Facts]) -> Table:
    """One row a text: its beginning, its label, and how likely that is."""
    table = _table("", "text", "label", "probability", numbers=True)
    for entry in found:
        text = " ".join(printable(entry["text"]).split())
        shown = text if len(text) <= 70 else f"{text[:69]}…"
        table.add_row(Text(shown), Text(printable(entry["label"])), percent(entry["probability"]))
    return table


def forgetting_table(forgetting: Facts) -> Table:
    """Base and adapted loss on general text and the divergence between the two."""
    table = _table(
        f"Forgetting on {forgetting.get('on') or 'general text'}",
        "",
        "base",
        "adapted",
        numbers=True,
    )
    table.add_row(
        "loss, nats a token", decimal(forgetting.get("base_loss")), decimal(forgetting.get("loss"))
    )
    table.add_row("KL(base ‖ adapted)", "", decimal(forgetting.get("kl")))
    return table


def facts_table(title: str, facts: Facts) -> Table:
    """Names and values, nested mappings as dotted names; long lists by their length."""
    table = _table(title, "", "")
    for name, value in flat({key: _brief(key, value) for key, value in facts.items()}):
        table.add_row(Text(printable(name)), Text(value))
    return table


def records_table(title: str, records: Sequence[Facts], *, most: int = 60) -> RenderableType:
    """One row a record (a layer, a module), one column a key; those after `most` are counted."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    table = _table(title, *(column.replace("_", " ") for column in columns), numbers=True)
    for record in records[:most]:
        table.add_row(*(_cell(key, record.get(key)) for key in columns))
    if len(records) <= most:
        return table
    return Group(table, Text(f"… and {len(records) - most} more (--json lists all)", style="dim"))


def proof_view(proof: Facts) -> RenderableType:
    """The checks of a proof, what it covers, and its verdict."""
    table = _table("Proof", "", "check", "found", "limit", "")
    for row in proof_rows(proof):
        table.add_row(*(Text(printable(cell)) for cell in row))
    passed = bool(proof.get("passed"))
    return Group(table, Text(proof_verdict(proof), style="green" if passed else "red"))


def inspection_view(title: str, facts: Facts) -> RenderableType:
    """Facts of a base or an adapter: its plain values, then each list of records as a table.

    ``kernels`` (a KernelFacts as a mapping) becomes one line, ``paths`` (module name -> the path it
    takes) a table with one row for the modules that differ only in the number of their layer.
    """
    facts = dict(facts)
    if facts.get("kernels"):
        facts["kernels"] = kernels_line(facts["kernels"])
    if facts.get("paths"):
        facts["paths"] = path_records(facts["paths"])
    plain = {
        key: value
        for key, value in facts.items()
        if not _is_records(value) and value not in (None, [], {})
    }
    records = [(key, value) for key, value in facts.items() if _is_records(value)]
    return Group(
        facts_table(title, plain),
        *(records_table(key.replace("_", " "), value) for key, value in records),
    )


def kernels_line(kernels: Facts) -> str:
    """Which kernels run: ``avx2, 2 threads`` or ``reference (why), 1 thread``."""
    threads = kernels["threads"]
    reason = f" ({kernels['reason']})" if kernels.get("reason") else ""
    return f"{kernels['in_use']}{reason}, {threads} thread{'' if threads == 1 else 's'}"


def path_records(paths: Mapping[str, str]) -> list[Facts]:
    """One record for all layers' modules of a name that take the same path; ``*`` stands for the
    layers' numbers."""
    alike: dict[tuple[str, str], list[str]] = {}
    for module, path in paths.items():
        pattern = ".".join("*" if part.isdecimal() else part for part in module.split("."))
        alike.setdefault((pattern, path), []).append(module)
    return [
        {"module": names[0] if len(names) == 1 else pattern, "path": path, "count": len(names)}
        for (pattern, path), names in alike.items()
    ]


def answers_view(prompts: Sequence[str], answers: Mapping[str, Sequence[str]]) -> RenderableType:
    """Each prompt with what every model answers; the answers alone where there is one of each."""
    if len(prompts) == 1 and len(answers) == 1:
        return Text(printable(next(iter(answers.values()))[0]))
    parts: list[Text] = []
    for index, prompt in enumerate(prompts):
        parts += [Text("prompt", style="dim"), Text(printable(prompt))]
        for name, found in answers.items():
            parts += [Text(printable(name), style="bold"), Text(printable(found[index]))]
        parts.append(Text())
    return Group(*parts[:-1])


def _table(title: str, *columns: str, numbers: bool = False) -> Table:
    table = Table(
        title=Text(printable(title), style="bold"),  # a path is no markup
        title_justify="left",
        show_header=any(columns),
        box=SIMPLE_HEAD if any(columns) else SIMPLE,
    )
    for index, column in enumerate(columns):
        table.add_column(
            Text(printable(column)),
            justify="right" if numbers and index else "left",
            overflow="fold",
        )
    return table


def _is_records(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Mapping)


def _brief(key: str, value: Any) -> Any:
    """Counts and sizes as people read them; long lists and mappings by their length."""
    if isinstance(value, (list, tuple)) and len(value) > 12:
        return f"{len(value)}: {sentence(value[:6])}, …"
    if isinstance(value, Mapping):
        if len(value) > 24:
            return f"{len(value)} entries (--json lists all)"
        return {name: _brief(f"{key}.{name}", item) for name, item in value.items()}
    if isinstance(value, int) and not isinstance(value, bool):
        if key.endswith("bytes"):
            return size(value)
        return integer(value) if key.partition(".")[0] == "parameters" else value
    return value


def _cell(key: str, value: Any) -> Text:
    if key == "shape":
        return Text("×".join(str(side) for side in value))
    if isinstance(value, float):
        return Text(percent(value, 2) if key.endswith(("share", "zeros")) else decimal(value))
    return Text(sentence(_brief(key, value)))
