"""Micro-batches: every sample once, capacity, boundaries, targets, and the loss of a real model."""

from __future__ import annotations

import models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rango.data.pack import collate, epoch_order, plan_batches
from rango.data.samples import IGNORED, Batch, Origin, Sample
from rango.errors import ConfigError


@st.composite
def sample_lists(draw, largest=20, count=24):
    lengths = draw(st.lists(st.integers(1, largest), min_size=1, max_size=count))
    made = []
    for length in lengths:
        ids = draw(st.lists(st.integers(3, 99), min_size=length, max_size=length))
        learnt = [False, *draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))]
        content = [flag and draw(st.booleans()) for flag in learnt]
        made.append(Sample(tuple(ids), tuple(learnt), tuple(content), Origin("a", 1)))
    return made


def samples_of(lengths: list[int], seed: int = 0) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(3, models.VOCABULARY, (length,), generator=generator).tolist()
        learnt = (torch.rand(length, generator=generator) < 0.6).tolist()
        learnt = [False, *learnt[1:]]
        made.append(Sample(tuple(ids), tuple(learnt), tuple(learnt), Origin("a", 1)))
    return made


@given(sample_lists(), st.integers(1, 40), st.booleans(), st.randoms())
def test_each_sample_once_and_within_capacity(samples, micro_tokens, packed, random):
    indices = [i for i in range(len(samples)) if i % 3 != 1]
    plan = plan_batches(samples, indices, micro_tokens=micro_tokens, packed=packed)
    assert sorted(i for batch in plan for i in batch) == indices
    for batch in plan:
        tensors = collate(samples, batch, packed=packed)
        assert tensors.input_ids.numel() <= micro_tokens or len(batch) == 1
    shuffled = random.sample(indices, len(indices))
    assert plan == plan_batches(samples, shuffled, micro_tokens=micro_tokens, packed=packed)


@given(sample_lists(), st.integers(20, 60))
def test_no_two_half_empty_rows(samples, micro_tokens):
    plan = plan_batches(samples, range(len(samples)), micro_tokens=micro_tokens, packed=True)
    filled = sorted(sum(len(samples[i]) for i in batch) for batch in plan)
    assert len(filled) < 2 or filled[0] + filled[1] > micro_tokens


def test_packing_is_tight():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randn(10_000, generator=generator).mul(0.8).add(5).exp().long().clamp(2, 2048)
    samples = [
        Sample((5,) * n, (False,) * n, (False,) * n, Origin("a", 1)) for n in lengths.tolist()
    ]
    plan = plan_batches(samples, range(len(samples)), micro_tokens=2048, packed=True)
    assert int(lengths.sum()) / (2048 * len(plan)) > 0.97


@given(sample_lists(count=8), st.booleans())
def test_collate_keeps_samples_apart(samples, packed):
    indices = list(range(len(samples)))[::-1]
    batch = collate(samples, indices, packed=packed, pad_id=2)
    assert batch.indices == tuple(indices)
    assert batch.tokens == sum(len(sample) for sample in samples)
    assert batch.supervised == sum(sum(sample.supervised) for sample in samples)
    assert (batch.attention_mask is None) == packed
    if batch.attention_mask is not None:
        assert torch.equal(batch.attention_mask, (batch.samples >= 0).long())
        assert (batch.input_ids[batch.samples < 0] == 2).all()
    assert (batch.targets[batch.samples < 0] == IGNORED).all()
    assert not batch.content[batch.targets == IGNORED].any()
    for place, index in enumerate(indices):
        sample, here = samples[index], batch.samples == place
        assert batch.input_ids[here].tolist() == list(sample.input_ids)
        assert batch.position_ids[here].tolist() == list(range(len(sample)))
        targets = [
            token if flag else IGNORED
            for token, flag in zip(sample.input_ids, sample.supervised, strict=True)
        ]
        assert batch.targets[here].tolist() == [*targets[1:], IGNORED]
        assert batch.content[here].tolist() == [*sample.content[1:], False]


def test_shapes_and_types():
    samples = samples_of([5, 3])
    packed, padded = (collate(samples, [0, 1], packed=flag) for flag in (True, False))
    assert packed.input_ids.shape == (1, 8)
    assert padded.input_ids.shape == (2, 5)
    for batch in (packed, padded):
        for tensor in (batch.input_ids, batch.position_ids, batch.targets, batch.samples):
            assert tensor.dtype == torch.int64
        assert batch.content.dtype == torch.bool


@pytest.mark.parametrize("packed", [True, False])
def test_micro_tokens_out_of_range(packed):
    with pytest.raises(ConfigError, match="micro_tokens"):
        plan_batches(samples_of([3]), [0], micro_tokens=0, packed=packed)


def total_loss(model, batch: Batch) -> torch.Tensor:
    """Summed cross-entropy of the supervised positions, in fp64."""
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).logits.double()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gemma", "phi"])
def test_packed_loss_equals_unpacked(name):
    model = models.build(name)
    samples = samples_of([17, 3, 9, 26, 5, 5, 12, 2, 31])
    with torch.no_grad():
        alone = sum(
            total_loss(model, collate(samples, [i], packed=False)) for i in range(len(samples))
        )
        for packed in (True, False):
            plan = plan_batches(samples, range(len(samples)), micro_tokens=48, packed=packed)
            assert max(len(batch) for batch in plan) > 2
            together = sum(
                total_loss(model, collate(samples, batch, packed=packed)) for batch in plan
            )
            torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


def test_epoch_order_is_a_promise():
    """Resuming a run needs the same order for ever."""
    assert epoch_order(8, seed=0, epoch=0) == [5, 2, 6, 3, 7, 4, 0, 1]
    assert epoch_order(0, seed=0, epoch=0) == []


@settings(max_examples=30)
@given(st.integers(0, 50), st.integers(0, 2**40), st.integers(0, 5))
def test_epoch_order_is_a_permutation(count, seed, epoch):
    order = epoch_order(count, seed, epoch)
    assert sorted(order) == list(range(count))
    assert order == epoch_order(count, seed, epoch)
    assert len({tuple(epoch_order(50, seed, e)) for e in range(4)}) == 4
