"""The end of a job: its row is saved, read back and described, while the others train on."""

from __future__ import annotations

import math
from pathlib import Path

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
    facts = run_facts(job.config, adapted, job.tokenizer, job.data, trained)
    part = job.folder.clear("adapter")
    with atomic_directory(part) as working, job.run.trainee.learning():
        probe = {"proof": {"probe": make_probe(adapted, probe_ids(adapted.model))}}
        save_adapter(adapted, working, row=job.row, facts=json_numbers(facts | probe))
        save_template(job.tokenizer, working)
        error = _difference(adapted, job.row, working)
        facts["proof"] = {"passed": error == 0, "read_back": error}
        facts["adapter_bytes"] = (working / TENSORS).stat().st_size
        (working / CARD).write_text(model_card(facts), encoding="utf-8")
    job.run.recorder.event("end", trained.steps, proven=error == 0, seconds=trained.seconds)
    result = RunResult(str(job.folder.path), str(part), trained, facts)
    write_report(job.folder.path, result.as_dict())
    job.folder.finish(result.as_dict())
    if error != 0:
        raise VerificationError(
            f"{part}: read back, its tensors differ by {error} from what was trained"
        )
    return result


def _difference(adapted: Adapted, row: int, folder: Path) -> float:
    """Largest difference of an element on disk from the row; infinite where one is missing."""
    stored = read_adapter(folder).tensors
    expected: dict[str, Tensor] = {}
    for module in export_row(adapted, row):
        names = tensor_names(module.module, module.embedding)
        expected |= dict(zip(names, (module.lora_A, module.lora_B), strict=True))
    if stored.keys() != expected.keys():
        return math.inf
    return max(
        float((stored[name] - tensor.detach().cpu()).abs().max())
        if stored[name].shape == tensor.shape
        else math.inf
        for name, tensor in expected.items()
    )
