"""The gradients of several jobs' steps in shared batches, each job's in its own row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from rango.adapters.attach import Adapted
from rango.adapters.routing import NO_ROW, Routing
from rango.data.samples import IGNORED, Batch, Sample
from rango.data.tokens.pack import Packed, collate, lengths_of, plan_batches
from rango.evaluation.loss import token_losses
from rango.training.many.job import Job
from rango.training.trainee import MOST_POSITIONS


@dataclass
class Share:
    """What one job's step came to."""

    loss: float
    """Sum over its targets, nats."""
    targets: int
    tokens: int


def add_gradients(
    adapted: Adapted, jobs: Sequence[Job], *, micro_tokens: int, packed: Packed, pad_id: int
) -> list[Share]:
    """Add to each job's row the gradient of its next step: of the mean over that step's own
    targets. Samples of different jobs share micro-batches; each token uses its own job's row.

    Returns the jobs' shares. Where a loss is not finite, the rest is left undone: no row's gradient
    is then to be used.
    """
    steps = [job.next_step() for job in jobs]
    samples = [
        job.run.samples[index] for job, step in zip(jobs, steps, strict=True) for index in step
    ]
    indices = torch.tensor([index for step in steps for index in step])  # within each job's data
    owners = torch.tensor([place for place, step in enumerate(steps) for _ in step])
    rows = torch.tensor([job.row for job in jobs])
    plan = _plan(samples, micro_tokens, packed)
    batches = [collate(samples, chosen, packed=packed, pad_id=pad_id) for chosen in plan]
    losses = torch.zeros(len(jobs), dtype=torch.float64)
    tokens, targets = (torch.zeros(len(jobs), dtype=torch.int64) for _ in range(2))
    for batch in batches:
        owner = _at_tokens(batch, owners)
        tokens += torch.bincount(owner[owner >= 0], minlength=len(jobs))
        targets += torch.bincount(owner[batch.targets != IGNORED], minlength=len(jobs))
    weights = 1.0 / targets
    for batch in batches:  # input_ids (B, S): B = 1 when packed
        owner = _at_tokens(batch, owners)
        used = torch.where(owner < 0, NO_ROW, rows[owner])
        with adapted.route(Routing.tokens(used)), _dropping(adapted, jobs, batch, indices):
            found = token_losses(adapted.model, batch)  # losses (K,)
            places = owners[torch.tensor(batch.indices)][found.samples.cpu()]  # (K,)
            losses.index_add_(0, places, found.losses.detach().double().cpu())
            if not losses.isfinite().all():
                break
            (found.losses * weights[places].to(found.losses.device)).sum().backward()
        del found  # its graph, before the next forward pass builds another
    return [
        Share(*of_job)
        for of_job in zip(losses.tolist(), targets.tolist(), tokens.tolist(), strict=True)
    ]


def _plan(samples: Sequence[Sample], micro_tokens: int, packed: Packed) -> list[list[int]]:
    """Micro-batches of places in `samples`, in which a job's samples lie side by side: what acts on
    a row of the bank then acts on one stretch of tokens."""
    if not packed:  # samples of like length share a batch
        plan = plan_batches(samples, range(len(samples)), micro_tokens=micro_tokens, packed=packed)
        return [sorted(batch) for batch in plan]
    # nothing is padded, so that a job's samples may stay together
    batches: list[list[int]] = []
    room = 0
    for place, length in enumerate(lengths_of(samples, range(len(samples))).tolist()):
        if not batches or length > room:
            batches.append([])
            room = micro_tokens
        batches[-1].append(place)
        room -= length
    return batches


def _at_tokens(batch: Batch, values: Tensor) -> Tensor:
    """(B, S): of the sample that each token belongs to; -1 on padding."""
    of_sample = values[torch.tensor(batch.indices)]
    return torch.where(batch.samples < 0, -1, of_sample[batch.samples])


@contextmanager
def _dropping(
    adapted: Adapted, jobs: Sequence[Job], batch: Batch, indices: Tensor
) -> Iterator[None]:
    """Dropout acts; what it drops of a job depends on its seed, step, sample and position alone."""
    if not any(site.dropouts[job.row] > 0 for site in adapted.sites.values() for job in jobs):
        yield
        return
    seeds, steps = [0] * adapted.bank.rows, [0] * adapted.bank.rows
    for job in jobs:
        seeds[job.row] = job.run.trainee.config.seed
        steps[job.row] = job.run.state.step
    ids = _at_tokens(batch, indices) * MOST_POSITIONS + batch.position_ids
    adapted.dropout_key(steps, job=seeds, token_ids=ids)
    adapted.train(True)
    try:
        yield
    finally:
        adapted.train(False)
