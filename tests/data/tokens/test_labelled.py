"""Labelled texts as samples: framed by the tokenizer, kept, cached, batched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from labelled_texts import LABELS, make_tokenizer, text_of
from transformers import ByT5Tokenizer

from rango.data.preview import Supervision
from rango.data.samples import IGNORED, Example, Message, Origin
from rango.data.tokens.pack import collate, plan_batches
from rango.data.tokens.tokenize import digest, tokenize
from rango.data.tokens.workers import WorkerPool
from rango.errors import ConfigError, DataError


def labelled(count: int = 20) -> list[Example]:
    found = []
    for number in range(count):
        text, label = text_of(number)
        origin = Origin("data.csv", number + 2)
        found.append(Example("labelled", (Message("user", text),), origin, label))
    return found


def test_samples_are_framed_texts_with_a_number() -> None:
    tokenizer, examples = make_tokenizer(), labelled()
    found = tokenize(examples, tokenizer, labels=LABELS)
    assert found.tokens == sum(len(sample) for sample in found.samples)
    assert found.supervised == 20
    for example, sample in zip(examples, found.samples, strict=True):
        assert list(sample.input_ids) == tokenizer(example.messages[0].content)["input_ids"]
        assert sample.input_ids[0] == 2
        assert sample.input_ids[-1] == 3
        assert not any(sample.supervised)
        assert LABELS[sample.label or 0] == example.label
    assert found.digest == digest(list(found.samples))


def test_the_digest_tells_labels_apart() -> None:
    tokenizer, examples = make_tokenizer(), labelled()
    other = tokenize(examples, tokenizer, labels=tuple(reversed(LABELS)))
    assert other.digest != tokenize(examples, tokenizer, labels=LABELS).digest


@pytest.mark.parametrize(("how", "lengths"), [("truncate", [4, 4]), ("skip", [])])
def test_long_texts_keep_their_frame(how: str, lengths: list[int]) -> None:
    long = [
        Example("labelled", (Message("user", "one " * 9),), Origin("d.csv", line), "odd")
        for line in (2, 3)
    ]
    short = Example("labelled", (Message("user", "two"),), Origin("d.csv", 4), "even")
    found = tokenize([*long, short], make_tokenizer(), max_length=4, too_long=how, labels=LABELS)  # type: ignore[arg-type]
    assert [len(sample) for sample in found.samples] == [*lengths, 3]
    assert all(sample.input_ids[-1] == 3 for sample in found.samples)
    assert found.truncated == len(lengths)
    with pytest.raises(DataError, match=r"d.csv:2: 11 tokens"):
        tokenize([*long, short], make_tokenizer(), max_length=4, labels=LABELS)


def test_an_unknown_label_is_named_with_the_nearest() -> None:
    wrong = Example("labelled", (Message("user", "two"),), Origin("test.csv", 7), "evn")
    with pytest.raises(DataError, match=r"test.csv:7: label 'evn' is none .*; nearest: even"):
        tokenize([*labelled(), wrong], make_tokenizer(), labels=LABELS)


def test_labels_and_other_data_do_not_mix() -> None:
    plain = Example("text", (Message("assistant", "two"),), Origin("more.txt", 1))
    with pytest.raises(DataError, match=r"more\.txt:1: has no label"):
        tokenize([*labelled(), plain], make_tokenizer(), labels=LABELS)
    writer = make_tokenizer()
    writer.eos_token = "[SEP]"
    with pytest.raises(DataError, match=r"data\.csv:2: a text with a label, for a"):
        tokenize([plain, *labelled()], writer)


def test_the_cache_gives_back_the_labels(tmp_path: Path) -> None:
    examples, tokenizer = labelled(), make_tokenizer()
    made = tokenize(examples, tokenizer, labels=LABELS, cache=tmp_path)
    kept = tokenize(examples, tokenizer, labels=LABELS, cache=tmp_path)
    assert kept.samples == made.samples
    assert kept.digest == made.digest
    assert [sample.label for sample in kept.samples] == [sample.label for sample in made.samples]
    other = [
        *examples[:-1],
        Example("labelled", examples[-1].messages, examples[-1].origin, "zero"),
    ]
    assert tokenize(other, tokenizer, labels=LABELS, cache=tmp_path).digest != made.digest
    again = tokenize(examples, tokenizer, labels=("odd", "even", "zero"), cache=tmp_path)
    assert again.samples[0].label != made.samples[0].label


def test_workers_give_the_same(tmp_path: Path) -> None:
    examples, tokenizer = labelled(1100), make_tokenizer()
    alone = tokenize(examples, tokenizer, labels=LABELS, workers=1)
    shared = tokenize(examples, tokenizer, labels=LABELS, workers=2)
    assert shared.digest == alone.digest
    assert shared.samples[1000].label == alone.samples[1000].label


def test_a_tokenizer_that_is_python_alone_needs_neither_cache_nor_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    monkeypatch.setattr(WorkerPool, "__enter__", lambda pool: pytest.fail("workers started"))
    found = tokenize(labelled(), tokenizer, labels=LABELS, workers=2, cache=tmp_path)
    assert len(found.samples) == 20
    assert list(found.samples[0].input_ids) == tokenizer(text_of(0)[0])["input_ids"]
    assert not list(tmp_path.iterdir())


def test_batches_have_the_label_at_the_last_token() -> None:
    samples = tokenize(labelled(), make_tokenizer(), labels=LABELS).samples
    plan = plan_batches(samples, range(20), micro_tokens=24, packed=False)
    assert sorted(index for indices in plan for index in indices) == list(range(20))
    for indices in plan:
        batch = collate(samples, indices, packed=False, pad_id=0)
        assert batch.supervised == len(indices)
        for row, index in enumerate(indices):
            last = len(samples[index]) - 1
            assert batch.targets[row, last] == samples[index].label
            assert (batch.targets[row] != IGNORED).sum() == 1
        assert batch.attention_mask is not None
        assert torch.equal(
            batch.attention_mask.sum(1), torch.tensor([len(samples[i]) for i in indices])
        )
    with pytest.raises(ConfigError, match="no place in packed rows"):
        collate(samples, [0, 1], packed=True)


def test_a_check_counts_tokens_without_an_end_token() -> None:
    examples = labelled(5)
    supervision = Supervision(make_tokenizer())
    lengths = [len(make_tokenizer()(e.messages[0].content)["input_ids"]) for e in examples]
    assert supervision.measure(examples) == lengths
    assert not supervision.faults
