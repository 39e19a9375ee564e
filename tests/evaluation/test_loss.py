"""Token losses against the plain statement: all logits, then cross-entropy."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rango.data.pack import collate
from rango.data.samples import IGNORED, Batch, Origin, Sample
from rango.evaluation.loss import forward_logits, token_logits, token_losses


def sample(length: int, first: int, seed: int = 0) -> Sample:
    """Supervised from token `first` on; the last is the end of turn, so no content."""
    ids = models.inputs(1, length, seed)[0].tolist()
    supervised = [place >= first for place in range(length)]
    content = [*supervised[:-1], False]
    return Sample(tuple(ids), tuple(supervised), tuple(content), Origin("data.jsonl", 1))


SAMPLES = [sample(12, 7, 1), sample(5, 1, 2), sample(9, 8, 3)]


def plain(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    output = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
    )
    wanted = batch.targets != IGNORED
    logits = output.logits[wanted].float()
    return logits, cross_entropy(logits, batch.targets[wanted], reduction="none")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", models.CAUSAL)
def test_equals_the_plain_statement_with_its_gradients(name: str, packed: bool) -> None:
    model = models.build(name)
    batch = collate(SAMPLES, [0, 1, 2], packed=packed)
    logits, expected = plain(model, batch)
    expected.sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    found = token_losses(model, batch)
    found.losses.sum().backward()
    torch.testing.assert_close(found.losses, expected)
    for grad, p in zip(grads, (p for p in model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-5)
    wanted = batch.targets != IGNORED
    assert found.losses.shape == (batch.supervised,)
    assert found.correct.tolist() == (logits.argmax(-1) == batch.targets[wanted]).tolist()
    assert found.content.tolist() == batch.content[wanted].tolist()
    assert found.samples.tolist() == batch.samples[wanted].tolist()


def test_only_supervised_positions_reach_the_head() -> None:
    model = models.build("llama")
    seen: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda _m, args, _o: seen.append(tuple(args[0].shape)))
    token_losses(model, collate(SAMPLES, [0, 1, 2], packed=True))
    assert seen == [(1, 5 + 4 + 1, 32)]
    token_losses(model, collate(SAMPLES, [0, 1], packed=False))
    assert seen[1] == (2, 4 + 5, 32)  # the columns that either row needs


def test_half_precision_models_get_a_loss_in_fp32() -> None:
    model = models.build("llama").to(torch.bfloat16)
    batch = collate(SAMPLES, [0], packed=True)
    assert token_logits(model, batch).dtype == torch.bfloat16
    found = token_losses(model, batch).losses
    assert found.dtype == torch.float32
    logits = token_logits(model, batch).float()
    torch.testing.assert_close(
        found, cross_entropy(logits, batch.targets[batch.targets != IGNORED], reduction="none")
    )


def test_no_supervised_token_gives_empty_tensors() -> None:
    model = models.build("llama")
    unsupervised = Sample((3, 4, 5), (False,) * 3, (False,) * 3, Origin("data.jsonl", 1))
    found = token_losses(model, collate([unsupervised], [0], packed=True))
    assert found.losses.shape == found.correct.shape == (0,)


class Plain(nn.Module):
    """A model of one's own: no options, logits returned as a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 128)

    def forward(self, input_ids: Tensor) -> Any:
        return self.embedding(input_ids)


def test_a_model_without_options_takes_the_plain_path() -> None:
    torch.manual_seed(0)
    model = Plain()
    batch = collate(SAMPLES, [0, 1, 2], packed=False)
    wanted = batch.targets != IGNORED
    expected = cross_entropy(
        model(batch.input_ids)[wanted], batch.targets[wanted], reduction="none"
    )
    torch.testing.assert_close(token_losses(model, batch).losses, expected)
    assert forward_logits(model, batch.input_ids, columns=torch.tensor([2, 4])).shape == (3, 2, 128)
