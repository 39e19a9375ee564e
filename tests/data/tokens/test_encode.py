"""What the encoder refuses rather than mask wrongly, and learning only the last answer."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import families
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rango.data.faults import Faults
from rango.data.samples import Example, Message, Origin, Sample
from rango.data.templates.render import Rendered
from rango.data.tokens.encode import Encoder, _Chat
from rango.errors import DataError

Make = Callable[..., Any]
ENDS = "<|im_end|>"


def talk(*turns: tuple[str, str], kind: Any = "chat", line: int = 1) -> Example:
    return Example(kind, tuple(Message(*turn) for turn in turns), Origin("data.jsonl", line))


def encoded(tokenizer: Any, example: Example, **options: Any) -> Sample:
    faults = Faults("data.jsonl")
    (sample,) = Encoder(tokenizer, **options).encode([example], faults)
    faults.raise_any()
    assert sample is not None
    return sample


def learnt(tokenizer: Any, sample: Sample) -> str:
    pairs = zip(sample.input_ids, sample.supervised, strict=True)
    return str(tokenizer.decode([token for token, flag in pairs if flag]))


TURNS = ("user", "Hi"), ("assistant", "Paris"), ("user", "Hi"), ("assistant", "Madrid")


def test_only_the_last_answer(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("qwen-2.5")
    assert learnt(tokenizer, encoded(tokenizer, talk(*TURNS))) == f"Paris{ENDS}Madrid{ENDS}"
    last = encoded(tokenizer, talk(*TURNS), last_only=True)
    assert learnt(tokenizer, last) == f"Madrid{ENDS}"
    assert sum(last.content) == sum(last.supervised) - 1


def test_the_last_answer_need_not_be_the_last_message(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("qwen-2.5")
    last = encoded(tokenizer, talk(*TURNS, ("user", "Thanks")), last_only=True)
    assert learnt(tokenizer, last) == f"Madrid{ENDS}"


def test_earlier_answers_are_verified_all_the_same(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("qwen-2.5")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("Paris", "Madrid")
    with pytest.raises(DataError, match=r"data\.jsonl:1: .*decode to 'Madrid'"):
        encoded(tokenizer, talk(*TURNS), last_only=True)


def test_pairs_and_text_know_no_last_answer(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("qwen-2.5")
    for example in (
        talk(("user", "Hi"), ("assistant", " Paris"), kind="completion"),
        talk(("assistant", "Paris Madrid"), kind="text"),
    ):
        assert encoded(tokenizer, example, last_only=True) == encoded(tokenizer, example)


def test_a_conversation_without_an_answer(make_tokenizer: Make) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl:4: no message is the assistant's"):
        encoded(make_tokenizer("qwen-2.5"), talk(("user", "Hi"), line=4))


def test_labelled_texts_are_refused_and_named(make_tokenizer: Make) -> None:
    faults = Faults("data.jsonl")
    examples = [talk(("user", "Hi"), kind="labelled", line=2), talk(*TURNS)]
    samples = Encoder(make_tokenizer("qwen-2.5")).encode(examples, faults)
    assert samples[0] is None
    assert samples[1] is not None
    with pytest.raises(DataError, match=r"data\.jsonl:2: a text with a label, for a classifier"):
        faults.raise_any()


def test_a_token_that_holds_the_templates_text_too(make_tokenizer: Make) -> None:
    template = "{% for m in messages %}{{ 'Say' + m.content + '<|im_end|>' }}{% endfor %}"
    tokenizer = make_tokenizer("qwen-2.5", template=template)
    tokenizer.add_tokens(["yPa"])
    with pytest.raises(DataError, match=r"data\.jsonl:1: the tokenizer joins 'y'.*'Paris'"):
        encoded(tokenizer, talk(("user", "Hi"), ("assistant", "Paris")))
    assert learnt(tokenizer, encoded(tokenizer, talk(("assistant", "Madrid")))) == f"Madrid{ENDS}"


def test_a_token_in_the_next_message_ends_no_turn(make_tokenizer: Make) -> None:
    template = "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"
    tokenizer = make_tokenizer("qwen-2.5", template=template)
    tokenizer.add_tokens(["<picture>"])
    turns = ("user", "Hi"), ("assistant", "Paris"), ("user", "<picture>")
    with pytest.raises(DataError, match="no end-of-turn token"):
        encoded(tokenizer, talk(*turns))


def test_text_of_the_end_token_in_a_message(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer("mistral")
    for turns in (
        (("user", "the tag </s>"), ("assistant", "Paris")),
        (("user", "Hi"), ("assistant", "Paris</s>")),
        (("user", "Hi"), ("assistant", "Paris"), ("user", "<s>"), ("assistant", "Paris")),
    ):
        with pytest.raises(DataError, match=r"messages\[\d\] holds the text '</?s>'"):
            encoded(tokenizer, talk(*turns))


def test_one_token_may_be_the_unknown_one_and_the_end(make_tokenizer: Make) -> None:
    template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    tokenizer = make_tokenizer("qwen-2.5", template=template)
    tokenizer.unk_token = tokenizer.eos_token  # as GPT-2's
    sample = encoded(tokenizer, talk(("user", "Hi"), ("assistant", "Paris")))
    assert learnt(tokenizer, sample) == "Paris<|endoftext|>"


def test_unknown_words_end_no_turn() -> None:
    words = {word: i for i, word in enumerate(["<unk>", "</s>", "Paris", "Hi"])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", unk_token="<unk>", model_max_length=99
    )
    turns = ("user", "Hi"), ("assistant", "Madrid Paris")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + ' </s> ' }}{% endfor %}"
    sample = encoded(tokenizer, talk(*turns))
    assert sample.input_ids == (3, 1, 0, 2, 1)
    assert sample.supervised == (False, False, True, True, True)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + ' STOP ' }}{% endfor %}"
    with pytest.raises(DataError, match="no end-of-turn token"):
        encoded(tokenizer, talk(*turns))


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_tokens_at_a_character_are_those_of_the_offsets(name: str) -> None:
    text = "  El niño pequen\u0303o 👩\u200d👧 comió 日本語\n\n\tpiñas  <|im_end|> </s>\u00a0 ok "
    encoding = families.tokenizer(name)(text, add_special_tokens=False).encodings[0]
    chat = _Chat(Rendered(text, (), ()), encoding.ids, encoding)
    begins, ends = zip(*encoding.offsets, strict=True)
    for place in range(-1, len(text) + 1):
        assert chat.beginning_after(place) == bisect_right(begins, place)
        assert chat.ending_after(place) == bisect_right(ends, place)
