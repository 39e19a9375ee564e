"""Micro-batches: every sample once, capacity, boundaries, targets, and the loss of a real model."""

from __future__ import annotations

import json
import multiprocessing
import time
from bisect import bisect_left, insort

import models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rango.data.samples import IGNORED, Batch, Example, Message, Origin, Sample
from rango.data.tokens.pack import best_fit, collate, efficiency, epoch_order, plan_batches
from rango.data.tokens.store import Block, StoreWriter
from rango.data.tokens.tokenize import tokenize
from rango.errors import ConfigError
from rango.training.config import TrainingConfig
from rango.training.schedule import plan_steps

WAYS = (True, False, "masked")


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


def blanks(lengths: list[int]) -> list[Sample]:
    """Samples of which only the length counts."""
    known = {length: (False,) * length for length in set(lengths)}
    return [Sample((5,) * n, known[n], known[n], Origin("a", 1)) for n in lengths]


def job_lengths(count: int, longest: int = 1024) -> list[int]:
    """Lognormal, median 180, sigma 1, cut at `longest`."""
    drawn = np.random.default_rng(0).lognormal(np.log(180), 1.0, count)
    return [int(length) for length in drawn.round().clip(2, longest)]


@given(sample_lists(), st.integers(1, 40), st.sampled_from(WAYS), st.randoms())
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


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 25))
def test_each_goes_to_the_fullest_row_with_room(lengths, capacity):
    rows, room = [], []  # the plain statement: all (free tokens, row), sorted
    for place, length in enumerate(lengths):
        found = bisect_left(room, (length, -1))
        if found < len(room):
            free, row = room.pop(found)
            rows[row].append(place)
        else:
            free, row = capacity, len(rows)
            rows.append([place])
        if free > length:
            insort(room, (free - length, row))
    assert best_fit(lengths, capacity) == rows


def test_rows_are_full_on_the_lengths_of_real_jobs():
    samples = blanks(job_lengths(10_000))
    plan = plan_batches(samples, range(len(samples)), micro_tokens=1024, packed=True)
    found = efficiency(samples, plan, micro_tokens=1024, packed=True)
    assert found.of_capacity >= 0.97
    assert found.of_computed == 1.0
    assert found.tokens == found.computed == sum(len(sample) for sample in samples)
    assert found.rows == len(plan)
    assert found.capacity == 1024 * len(plan)


def test_efficiency_counts_padding_and_longer_samples():
    samples = blanks([10, 4, 4, 30])
    plan = plan_batches(samples, range(4), micro_tokens=20, packed=False)
    assert plan == [[3], [0, 1], [2]]
    found = efficiency(samples, plan, micro_tokens=20, packed=False)
    assert (found.tokens, found.computed, found.capacity) == (48, 30 + 20 + 4, 30 + 20 + 20)
    found = efficiency(samples, [[0, 1]], micro_tokens=20, packed=False)
    assert (found.tokens, found.computed, found.of_computed) == (14, 20, 0.7)


def test_half_a_million_lengths_take_seconds():
    lengths = sorted(job_lengths(500_000), reverse=True)
    started = time.process_time()
    rows = best_fit(lengths, 1024)
    assert time.process_time() - started < 10
    assert sum(lengths) / (1024 * len(rows)) > 0.99


@given(sample_lists(), st.lists(st.integers(0, 2), min_size=24, max_size=24))
def test_adapters_share_no_micro_batch_where_they_may_not(samples, adapters):
    indices = range(len(samples))
    adapters = adapters[: len(samples)]
    plan = plan_batches(samples, indices, micro_tokens=40, packed=True, adapters=adapters)
    assert sorted(i for batch in plan for i in batch) == list(indices)
    assert all(len({adapters[i] for i in batch}) == 1 for batch in plan)
    for adapter in set(adapters):
        own = [i for i in indices if adapters[i] == adapter]
        alone = plan_batches(samples, own, micro_tokens=40, packed=True)
        assert [batch for batch in plan if adapters[batch[0]] == adapter] == alone


@given(sample_lists(count=8), st.sampled_from(WAYS))
def test_collate_keeps_samples_apart(samples, packed):
    indices = list(range(len(samples)))[::-1]
    batch = collate(samples, indices, packed=packed, pad_id=2)
    assert batch.indices == tuple(indices)
    assert batch.tokens == sum(len(sample) for sample in samples)
    assert batch.supervised == sum(sum(sample.supervised) for sample in samples)
    assert (batch.attention_mask is None) == (packed is True)
    if packed is False:
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


def test_the_mask_of_a_row():
    mask = collate(samples_of([2, 3]), [0, 1], packed="masked").attention_mask
    assert mask.dtype == torch.bool
    assert mask.shape == (1, 1, 5, 5)
    seen = ["1....", "11...", "..1..", "..11.", "..111"]
    assert ["".join("1" if flag else "." for flag in row) for row in mask[0, 0].tolist()] == seen


def test_shapes_and_types():
    samples = samples_of([5, 3])
    packed, padded = (collate(samples, [0, 1], packed=flag) for flag in (True, False))
    assert packed.input_ids.shape == (1, 8)
    assert padded.input_ids.shape == (2, 5)
    for batch in (packed, padded):
        for tensor in (batch.input_ids, batch.position_ids, batch.targets, batch.samples):
            assert tensor.dtype == torch.int64
        assert batch.content.dtype == torch.bool


def test_stored_samples_make_the_same_batches(tmp_path):
    samples = samples_of([9, 3, 17, 4, 12, 2])
    with StoreWriter(tmp_path) as writer:
        writer.add(Block.of(samples[:4]))
        writer.add(Block.of(samples[4:]))
        stored = writer.finish({})
    for packed in WAYS:
        plan = plan_batches(samples, range(6), micro_tokens=24, packed=packed)
        assert plan == plan_batches(stored, range(6), micro_tokens=24, packed=packed)
        for indices in plan:
            ours, theirs = (collate(some, indices, packed=packed) for some in (samples, stored))
            for name, value in vars(ours).items():
                other = getattr(theirs, name)
                same = torch.equal(value, other) if torch.is_tensor(value) else value == other
                assert same, name


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


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        *((name, (True, False, "masked")) for name in ("llama", "qwen2", "gpt2", "gemma", "phi")),
        ("gemma2", (True, False)),  # its sliding window is in no mask of ours
        ("falcon", (False, "masked")),  # rotary; it looks for boundaries in no position_ids
        ("falcon_grouped", (False, "masked")),
    ],
)
def test_packed_loss_equals_unpacked(name, ways):
    model = models.build(name)
    samples = samples_of([17, 3, 9, 26, 5, 5, 12, 2, 31])
    with torch.no_grad():
        alone = sum(
            total_loss(model, collate(samples, [i], packed=False)) for i in range(len(samples))
        )
        for packed in ways:
            plan = plan_batches(samples, range(len(samples)), micro_tokens=48, packed=packed)
            assert max(len(batch) for batch in plan) > 2
            together = sum(
                total_loss(model, collate(samples, batch, packed=packed)) for batch in plan
            )
            torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


def test_falcon_without_a_mask_leaks():
    """Else the one above could not fail for it."""
    model = models.build("falcon")
    samples = samples_of([17, 9, 12])
    with torch.no_grad():
        alone = sum(total_loss(model, collate(samples, [i], packed=False)) for i in range(3))
        together = total_loss(model, collate(samples, [0, 1, 2], packed=True))
    assert abs(float(together / alone) - 1) > 1e-4


@pytest.mark.parametrize(
    ("style", "end"),
    [
        ("llama-3", "<|eot_id|>"),
        ("qwen-2.5", "<|im_end|>"),
        ("gemma", "<end_of_turn>"),
        ("mistral", "</s>"),
        ("phi-3", "<|end|>"),
    ],
)
@pytest.mark.parametrize("packed", WAYS)
def test_what_is_learnt_is_the_assistants_in_a_packed_row_too(make_tokenizer, style, end, packed):
    tokenizer = make_tokenizer(style)
    answers = ["Madrid", "Son las tres y media, señor.", "a", "Paris. What is Paris?"]
    examples = [
        Example(
            "chat",
            (Message("user", f"Question {i}: Paris?"), Message("assistant", answer)),
            Origin("data.jsonl", i),
        )
        for i, answer in enumerate(answers)
    ]
    samples = tokenize(examples, tokenizer).samples
    batch = collate(samples, range(4), packed=packed, pad_id=0)
    for place, answer in enumerate(answers):
        targets = batch.targets[batch.samples == place]
        learnt = tokenizer.decode(targets[targets != IGNORED].tolist())
        assert learnt.strip() == answer + end


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


def steps_from(first: int, total: int, seed: int = 3) -> list[list[list[int]]]:
    """The micro-batches of the steps from `first` on, as a run that resumes there makes them."""
    samples = blanks(job_lengths(53, longest=400))
    steps = plan_steps(TrainingConfig(epochs=3, batch_size=8), len(samples))
    made = []
    for step in range(first, total):
        epoch, begin = steps.position(step)
        indices = epoch_order(len(samples), seed, epoch)[begin : begin + 8]
        made.append(plan_batches(samples, indices, micro_tokens=512, packed=True))
    return made


def test_the_order_goes_on_from_any_step_and_in_any_process():
    whole = steps_from(0, 21)
    for epoch in range(3):
        of_epoch = [i for step in whole[7 * epoch : 7 * epoch + 7] for row in step for i in row]
        assert sorted(of_epoch) == list(range(53))
    for first in range(21):
        assert steps_from(first, 21) == whole[first:]
    assert steps_from(0, 21, seed=4) != whole
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert json.dumps(pool.starmap(steps_from, [(0, 21), (5, 21)])) == json.dumps(
            [whole, whole[5:]]
        )
