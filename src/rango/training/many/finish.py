"""The end of a job: its row is saved, read back and described, while the others train on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rango.adapters.attach import Adapted
from rango.adapters.files import CARD, TENSORS, read_adapter, save_adapter
from rango.adapters.peft_format import export_row, tensor_names
from rango.data.templates.choose import save_template
from rango.errors import VerificationError
from rango.evaluation.probe import make_probe, probe_ids
from rango.files.atomic import atomic_directory
from rango.report.card import model_card
from rango.report.html import write_report
from rango.tracking.events import json_numbers
from rango.training.finish import run_facts
from rango.training.many.job import Job
from rango.training.result import RunResult, Trained


def finish_job(adapted: Adapted, job: Job, trained: Trained) -> RunResult:
    """Write the job's adapter/, report.html and result.json, the last when all else is done.

    Raises StorageError, nothing being half-written; VerificationError, when all is written, if the
    file does not hold what was trained.
    """
    facts = run_facts(job.config, adapted, job.tokenizer, job.data, trained, job.uncovered)
    part = job.folder.clear("adapter")
    with atomic_directory(part) as working, job.run.trainee.learning():
        probe = {"proof": {"probe": make_probe(adapted, probe_ids(adapted.model))}}
        save_adapter(adapted, working, row=job.row, facts=json_numbers(facts | probe))
        save_template(job.tokenizer, working)
        stored = _is_stored(adapted, job.row, working)
        facts["proof"] = {"passed": stored, "read_back": 0.0 if stored else None}
        facts["adapter_bytes"] = (working / TENSORS).stat().st_size
        (working / CARD).write_text(model_card(facts), encoding="utf-8")
    job.run.recorder.event("end", trained.steps, proven=stored, seconds=trained.seconds)
    result = RunResult(str(job.folder.path), str(part), trained, facts)
    write_report(job.folder.path, result.as_dict())
    job.folder.finish(result.as_dict())
    if not stored:
        raise VerificationError(
            f"{part}: read back, its tensors are not finite, or not those that were trained"
        )
    return result


def _is_stored(adapted: Adapted, row: int, folder: Path) -> bool:
    """Whether the folder holds the row, bit for bit, and nothing that is not finite."""
    stored = read_adapter(folder).tensors
    expected: dict[str, Tensor] = {}
    for module in export_row(adapted, row):
        names = tensor_names(module.module, module.embedding)
        expected |= dict(zip(names, (module.lora_A, module.lora_B), strict=True))
    return stored.keys() == expected.keys() and all(
        bool(stored[name].isfinite().all()) and torch.equal(stored[name], tensor.detach().cpu())
        for name, tensor in expected.items()
    )
