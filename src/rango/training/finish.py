"""The end of a run: what was trained is saved, read back, proven and described."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rango.adapters.attach import Adapted
from rango.adapters.files import CARD, FACTS, TENSORS, save_adapter
from rango.base.load import Base, base_from_model, load_base
from rango.base.roles import Uncovered
from rango.base.save import save_base
from rango.data.templates.choose import save_template, template_facts
from rango.errors import VerificationError
from rango.evaluation.checks import READ_BACK_LIMIT
from rango.evaluation.probe import difference, make_probe, observe, probe_ids, unit_of
from rango.evaluation.proof import prove, write_proof
from rango.files.atomic import atomic_directory
from rango.progress import Progress
from rango.report.card import model_card
from rango.report.html import write_report
from rango.tracking.events import json_numbers
from rango.training.config import RunConfig
from rango.training.monitor import FORGETTING
from rango.training.prepare import Samples
from rango.training.recorder import Recorder
from rango.training.result import RunResult, Trained, Values
from rango.training.run_folder import SKIPPED, RunFolder

_PROVEN_ON = 4
"""Samples whose outputs are compared, in training and read back."""
_FEW = 30
"""With fewer held-out samples, the card calls their figures rough."""


def finish(
    folder: RunFolder,
    config: RunConfig,
    model: Adapted | Base,
    tokenizer: Any,
    samples: Samples,
    trained: Trained,
    recorder: Recorder,
    progress: Progress,
) -> RunResult:
    """Write adapter/ (or model/), result.json and report.html; adapters are detached after it.

    Raises StorageError, nothing being half-written; VerificationError, when all is written, if
    what was saved does not compute what was trained.
    """
    facts = run_facts(config, model, tokenizer, samples, trained)
    some = [s.input_ids for s in (samples.valid or samples.train.samples)[:_PROVEN_ON]]
    expected = observe(model.model, some)
    part = folder.clear("adapter" if isinstance(model, Adapted) else "model")
    with atomic_directory(part) as working:
        if isinstance(model, Adapted):
            failure = _save_adapter(model, tokenizer, working, facts, some, expected, progress)
        else:
            failure = _save_model(model, tokenizer, working, facts, some, expected, progress)
    recorder.event("end", trained.steps, proven=failure is None, seconds=trained.seconds)
    result = RunResult(str(folder.path), str(part), trained, facts)
    # the report first: result.json says that the run is finished, and nothing is done after it
    write_report(folder.path, result.as_dict())
    folder.finish(result.as_dict())
    if failure is not None:
        raise VerificationError(f"{part}: {failure}") from failure
    return result


def _save_adapter(
    adapted: Adapted,
    tokenizer: Any,
    working: Path,
    facts: Values,
    samples: list[tuple[int, ...]],
    expected: list[Tensor],
    progress: Progress,
) -> VerificationError | None:
    """Save, detach, read back, prove. The proof goes into the files and into `facts`."""
    probe = {"proof": {"probe": make_probe(adapted, probe_ids(adapted.model))}}
    save_adapter(adapted, working, facts=json_numbers(facts | probe))
    save_template(tokenizer, working)
    module = adapted.detach()
    proof = prove(
        adapted.base or module, working, samples=samples, expected=expected, progress=progress
    )
    write_proof(working, proof)
    facts["proof"] = proof.as_dict()
    facts["adapter_bytes"] = (working / TENSORS).stat().st_size
    (working / CARD).write_text(model_card(facts), encoding="utf-8")
    try:
        proof.require()
    except VerificationError as failure:
        return failure
    return None


def _save_model(
    base: Base,
    tokenizer: Any,
    working: Path,
    facts: Values,
    samples: list[tuple[int, ...]],
    expected: list[Tensor],
    progress: Progress,
) -> VerificationError | None:
    """Save the trained base, which has a fingerprint of its own, and read it back."""
    own = base_from_model(base.model).fingerprint
    save_base(dataclasses.replace(base, fingerprint=own), working, progress=progress)
    save_template(tokenizer, working, overwrite=True)
    again = load_base(working, compute="auto" if base.compute == torch.float32 else "as stored")
    error = difference(observe(again.model, samples), expected, unit_of(again.model))
    facts["proof"] = {"passed": error <= READ_BACK_LIMIT, "read_back": error}
    facts["adapter_bytes"] = sum(file.stat().st_size for file in working.glob("*.safetensors"))
    path = working / FACTS
    noted = json.loads(path.read_text(encoding="utf-8"))
    more = {name: value for name, value in facts.items() if name not in noted}
    text = json.dumps(json_numbers(noted | more), indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
    if error <= READ_BACK_LIMIT:
        return None
    return VerificationError(
        f"the model failed its proof: read back, its outputs differ by {error}, limit "
        f"{READ_BACK_LIMIT}"
    )


def run_facts(
    config: RunConfig,
    model: Adapted | Base,
    tokenizer: Any,
    samples: Samples,
    trained: Trained,
    uncovered: list[Uncovered] | None = None,
) -> Values:
    """What rango.json, result.json, the card and the report tell, the proof left out.

    uncovered: what the adapter leaves as it is; by default what all rows of the bank do.
    """
    base = model.base if isinstance(model, Adapted) else model
    if uncovered is None:
        uncovered = model.uncovered if isinstance(model, Adapted) else []
    facts: Values = {
        "rango_version": version("rango"),
        "data": samples.facts(config.data),
        "training": dataclasses.asdict(config.training),
        "steps": trained.steps,
        "best_step": trained.best_step,
        "stop": trained.stop,
        "stopped": trained.stopped(config.training),
        "trainable": trained.trainable,
        "share": trained.share,
        "seconds": trained.seconds,
        "tokens_per_second": trained.tokens_per_second,
        "peak_memory": trained.peak_memory,
        "packed": trained.packed,
        "evaluation": {"base": trained.base, "adapted": trained.adapted},
        "train_loss": trained.train_loss,
        "gap": trained.gap,
        "limits": _limits(uncovered, samples, trained),
        "chat_template": template_facts(tokenizer),
    }
    if base is not None:
        facts["base"] = {
            "model": config.base.model,
            "source": base.source,
            "revision": config.base.revision,
            "fingerprint": base.fingerprint,
            "dtype": str(base.dtype).removeprefix("torch."),
            "compute": str(base.compute).removeprefix("torch."),
            "quantize": base.quantize,
            "double_quant": base.double_quant,
        }
    if isinstance(model, Adapted):
        facts["adapter"] = dataclasses.asdict(config.adapter)
        facts["uncovered"] = [dataclasses.asdict(weight) for weight in uncovered]
    if "kl" in trained.adapted:
        facts["forgetting"] = {
            "base_loss": trained.adapted["general_base_loss"],
            "loss": trained.adapted["general_loss"],
            "kl": trained.adapted["kl"],
            "on": samples.general_on,
        }
    return facts


def _limits(uncovered: list[Uncovered], samples: Samples, trained: Trained) -> list[str]:
    """What a reader should know before trusting the figures, as sentences."""
    limits = []
    held_out = len(samples.valid)
    if not held_out:
        limits.append("No samples were held out, so nothing is known of how it generalises.")
    elif held_out < _FEW:
        limits.append(f"Only {held_out} samples were held out, so the figures on them are rough.")
    if held_out and not trained.adapted["loss"] < trained.base["loss"]:
        limits.append("Its held-out loss is not better than the base's.")
    if trained.stop == FORGETTING and trained.best_step is None:
        limits.append("Its KL divergence from the base is above training.max_forgetting.")
    if samples.skipped:
        limits.append(f"{samples.skipped} samples were left out as too long.")
    if samples.bad:
        limits.append(f"{len(samples.bad)} entries of the data could not be used; see {SKIPPED}.")
    if samples.train.truncated:
        limits.append(f"{samples.train.truncated} training samples were cut to the limit.")
    if uncovered:
        names = [weight.name for weight in uncovered]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        limits.append(f"Not adapted: {', '.join(names[:5])}{more}.")
    return limits
