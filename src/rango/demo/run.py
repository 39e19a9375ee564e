"""The demo: LoRA, QLoRA, full fine-tuning and a control on one real task, compared honestly.

Each method is one ordinary run of `rango.train` on the same samples, read back from its folder and
judged on the same held-out test samples and general text. The control trains on shuffled pairs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

import rango
from rango.adapters.attach import Adapted
from rango.base.load import Base
from rango.base.tokenizer import load_tokenizer
from rango.data.reading.read import read_examples
from rango.data.samples import Example, Sample
from rango.data.tokens.tokenize import tokenize
from rango.demo.package_data import BASE, GENERAL, TEST, TRAIN, VALID, write_shuffled
from rango.errors import VerificationError
from rango.evaluation.compare import ComparisonRow, Measured, compare
from rango.evaluation.evaluate import Evaluation, evaluate
from rango.evaluation.forgetting import forgetting
from rango.export.merged import MergeReport
from rango.files.atomic import refuse_existing, write_text
from rango.generation.generate import generate
from rango.progress import Progress, silent
from rango.report.comparison import write_comparison
from rango.report.svg import Series, line_plot
from rango.tracking.events import read_events
from rango.training.config import RunConfig, TrainingConfig

MAX_LENGTH = 320
EPOCHS = 1.0
EVAL_EVERY = 35
MICRO_TOKENS = 512
"""In a model this small attention over long packed rows is what costs most."""
SHOWN = 6
"""Test questions whose answers are shown."""
ANSWER_TOKENS = 40
MERGED_LIMIT = 1e-4
"""Largest difference in test loss, in nats, between the adapter and its merged checkpoint."""


@dataclass(frozen=True)
class Method:
    """One way to train, as it differs from the others."""

    name: str
    method: Literal["lora", "full"] = "lora"
    quantize: Literal["none", "nf4"] = "none"
    learning_rate: float = 2e-3
    shuffled: bool = False

    @property
    def slug(self) -> str:
        """Folder name."""
        return self.name.lower().replace(" ", "-")


METHODS = (
    Method("LoRA"),
    Method("QLoRA", quantize="nf4"),
    Method("full", method="full", learning_rate=5e-4),
    Method("LoRA shuffled", shuffled=True),
)


@dataclass(frozen=True)
class DemoResult:
    """What the demo found. `samples` have question, expected, and an answer a method."""

    output: str
    rows: list[ComparisonRow]
    samples: list[dict[str, str]] = field(default_factory=list)
    merged: dict[str, Any] = field(default_factory=dict)
    """The merge of the LoRA adapter, and the test loss merged and unmerged."""
    seconds: float = 0.0
    """Training time of all runs together."""

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self) | {"rows": [row.as_dict() for row in self.rows]}


def run_demo(
    output: str | Path = "demo-run",
    *,
    seeds: Sequence[int] = (0,),
    methods: Sequence[Method] = METHODS,
    max_steps: int | None = None,
    progress: Progress = silent,
) -> DemoResult:
    """Train every method with every seed, compare, and write everything under `output`.

    Leaves a run folder a method and seed, merged/ (the LoRA adapter of the first seed in the base's
    weights), comparison.html and result.json. max_steps shortens the runs.
    Raises OutputExistsError if `output` is taken; VerificationError if the merged checkpoint does
    not compute what the adapter does.
    """
    output = Path(output)
    refuse_existing(output, "choose another --output")
    judge = _Judge(progress)
    measured = [judge.base("base"), judge.base("base in NF4", "nf4")]
    seconds = 0.0
    for seed in seeds:
        for method in methods:
            config = _config(method, seed, output, max_steps)
            result = rango.train(config, progress=_labelled(f"{method.name}: ", progress))
            seconds += result.trained.seconds
            measured.append(judge.run(method, result))
    merged = _check_merged(output, seeds[0], judge, progress) if METHODS[0] in methods else {}
    rows = compare(measured)
    demo = DemoResult(
        output=str(output),
        rows=rows,
        samples=judge.samples(),
        merged=merged,
        seconds=seconds,
    )
    text = json.dumps(demo.as_dict(), indent=2, ensure_ascii=False) + "\n"
    write_text(output / "result.json", text)
    write_comparison(
        output,
        [row.as_dict() for row in rows],
        title="LoRA, QLoRA and full fine-tuning on one task",
        notes=_NOTES,
        samples=demo.samples,
        curves=_curves(output, methods, seeds[0]),
    )
    return demo


_NOTES = (
    "The task: a Python function without its docstring, answered by how to call it and the "
    "docstring's first sentence. The base was pretrained on other files of the same library.",
    "Loss, accuracy and samples are on held-out functions from files that neither pretraining nor "
    "training saw; content leaves out the end-of-turn marker. Forgetting is the KL divergence "
    "from the base on held-out text of the kind it was pretrained on.",
    "The control learns the same answers dealt to other questions: what it gains is the form of an "
    "answer, and what the others gain beyond it comes from reading the question.",
)


class _Judge:
    """Judges every method on the same samples, against the same base."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tokenizer = load_tokenizer(BASE)
        self._shown: list[Example] = read_examples(TEST)[:SHOWN]
        self._test = self._samples(TEST, "completion")
        self._general = self._samples(GENERAL, "all")
        self._base = rango.load_base(BASE, dtype="fp32")
        self._answers: dict[str, list[str]] = {}

    def base(self, name: str, quantize: Literal["none", "nf4"] = "none") -> Measured:
        """The base as it is, or in 4 bits."""
        base = self._base if quantize == "none" else _load(quantize)
        return self._measure(name, base.model, **_sizes(base))

    def run(self, method: Method, result: Any) -> Measured:
        """A finished run, read back from its folder."""
        tuned = load_trained(method, result.saved)
        model = tuned.model
        return self._measure(
            method.name,
            model,
            trainable=result.trained.trainable,
            total=round(result.trained.trainable / result.trained.share),
            peak_memory=result.trained.peak_memory,
            seconds=result.trained.seconds,
            adapter_bytes=result.facts["adapter_bytes"],
        )

    def loss(self, model: nn.Module) -> float:
        """Loss on the test samples."""
        return evaluate(model, self._test, micro_tokens=MICRO_TOKENS, packed=True).loss

    def samples(self) -> list[dict[str, str]]:
        """Question, expected answer, and each method's."""
        return [
            {
                "question": example.messages[-2].content,
                "expected": example.messages[-1].content,
                **{name: answers[place] for name, answers in self._answers.items()},
            }
            for place, example in enumerate(self._shown)
        ]

    def _measure(self, name: str, model: nn.Module, **facts: Any) -> Measured:
        progress = _labelled(f"{name}: ", self._progress)
        how: dict[str, Any] = {"micro_tokens": MICRO_TOKENS, "packed": True, "progress": progress}
        if name not in self._answers:  # of several seeds, the first speaks
            questions = [example.messages[:-1] for example in self._shown]
            completions = generate(
                model,
                self._tokenizer,
                questions,
                max_new_tokens=ANSWER_TOKENS,
                progress=progress,
            )
            self._answers[name] = [completion.text.strip() for completion in completions]
        found = evaluate(model, self._test, **how)
        return Measured(
            method=name,
            evaluation=found if isinstance(found, Evaluation) else None,
            forgetting=forgetting(model, self._general, base=self._base.model, **how),
            **facts,
        )

    def _samples(self, path: Path, loss_on: Literal["completion", "all"]) -> Sequence[Sample]:
        return tokenize(
            read_examples(path),
            self._tokenizer,
            max_length=MAX_LENGTH,
            too_long="truncate",
            loss_on=loss_on,
            progress=self._progress,
        ).samples


def load_trained(method: Method, folder: str | Path) -> Adapted | Base:
    """What a method trained, over the base it was trained on."""
    if method.method == "full":
        return rango.load_base(folder, dtype="fp32")
    return rango.load_adapter(_load(method.quantize), folder)


def _load(quantize: Literal["none", "nf4"]) -> Base:
    return rango.load_base(BASE, dtype="fp32", quantize=quantize)


def _sizes(base: Base) -> dict[str, Any]:
    return {"total": sum(parameter.numel() for parameter in base.model.parameters())}


def _config(method: Method, seed: int, output: Path, max_steps: int | None) -> RunConfig:
    train = TRAIN
    if method.shuffled:
        train = output / f"shuffled-{seed}.jsonl"
        write_shuffled(TRAIN, train, seed)
    return RunConfig(
        base=rango.BaseConfig(model=str(BASE), dtype="fp32", quantize=method.quantize),
        data=rango.DataConfig(
            train=str(train),
            valid=str(VALID),
            general=str(GENERAL),
            max_length=MAX_LENGTH,
            too_long="truncate",
        ),
        output=str(_folder(output, method, seed)),
        training=TrainingConfig(
            method=method.method,
            epochs=EPOCHS,
            max_steps=max_steps,
            learning_rate=method.learning_rate,
            schedule="linear",
            micro_tokens=MICRO_TOKENS,
            eval_every=EVAL_EVERY if max_steps is None else None,
            seed=seed,
        ),
    )


def _folder(output: Path, method: Method, seed: int) -> Path:
    return output / f"{method.slug}-{seed}"


def _check_merged(output: Path, seed: int, judge: _Judge, progress: Progress) -> dict[str, Any]:
    """Merge the LoRA adapter and hold the merged checkpoint against it."""
    lora = METHODS[0]
    adapter = _folder(output, lora, seed) / "adapter"
    report: MergeReport = rango.merge_checkpoint(
        BASE, adapter, output / "merged", dtype="fp32", progress=progress
    )
    unmerged = judge.loss(load_trained(lora, adapter).model)
    merged = judge.loss(rango.load_base(output / "merged").model)
    if not abs(merged - unmerged) <= MERGED_LIMIT:
        raise VerificationError(
            f"{output / 'merged'}: test loss {merged} once merged, {unmerged} before; expected "
            f"within {MERGED_LIMIT}"
        )
    return report.as_dict() | {"loss_unmerged": unmerged, "loss_merged": merged}


def _curves(output: Path, methods: Sequence[Method], seed: int) -> list[str]:
    """Held-out loss and forgetting over the steps, a line a method."""
    drawn = []
    for key, title, label in (
        ("content_loss", "Held-out content loss", "nats a token"),
        ("kl", "Forgetting", "KL from the base, nats a token"),
    ):
        series = []
        for place, method in enumerate(methods):
            events = read_events(_folder(output, method, seed) / "events.jsonl")
            points = [
                (float(event["step"]), float(event[key]))
                for event in events
                if event["event"] == "evaluation" and event.get(key) is not None
            ]
            # the colour that the bars give the method, two rows of bases being before it
            series.append(Series(method.name, points, colour=place + 2))
        drawn.append(line_plot(title, series, y_label=label))
    return drawn


def _labelled(label: str, progress: Progress) -> Progress:
    def report(task: str, done: float, total: float, unit: str = "", note: str = "") -> None:
        progress(f"{label}{task}", done, total, unit, note)

    return report
