"""Supervision measured and shown, over the templates of real families."""

from __future__ import annotations

import pytest

from rango.data.preview import FITS, Preview, Supervision, preview
from rango.data.samples import Example, Message, Origin
from rango.data.tokens.tokenize import tokenize
from rango.errors import TokenizerError

STYLES = ("llama-3", "qwen-2.5", "qwen-3", "gemma", "mistral", "phi-3", "marked")


def chat(*turns: str, line: int = 1) -> Example:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns))
    return Example("chat", messages, Origin("data.jsonl", line))


def text(content: str, line: int = 1) -> Example:
    return Example("text", (Message("assistant", content),), Origin("data.jsonl", line))


def said(shown: Preview, kind: str) -> list[str]:
    return [span.text for span in shown.spans if span.kind == kind]


@pytest.mark.parametrize("style", STYLES)
def test_a_preview_is_the_whole_sample(make_tokenizer, style):
    tokenizer = make_tokenizer(style)
    turns = ("¿Qué hora es?", "Las tres, señor 🍍.", "piñas", "Thank you\n\n- one")
    (sample,) = tokenize([chat(*turns)], tokenizer).samples
    shown = preview(tokenizer, sample)
    whole = tokenizer.decode(list(sample.input_ids), clean_up_tokenization_spaces=False)
    assert "".join(span.text for span in shown.spans) == whole
    assert [answer.strip() for answer in said(shown, "answer")] == list(turns[1::2])
    assert shown.tokens == len(sample)
    assert shown.supervised == sum(sample.supervised)
    assert not any(turn in marker for marker in said(shown, "marker") for turn in turns)
    assert len(said(shown, "marker")) >= 2  # each answer's end


def test_spaces_between_stretches_are_kept(sentencepiece):
    (sample,) = tokenize([chat("Hello there", "Madrid, of course.")], sentencepiece).samples
    whole = sentencepiece.decode(list(sample.input_ids), clean_up_tokenization_spaces=False)
    assert "".join(span.text for span in preview(sentencepiece, sample).spans) == whole


def test_lengths_are_those_of_training(make_tokenizer):
    tokenizer = make_tokenizer("llama-3")
    examples = [chat("Hi", "Hello there!", line=1), text("The capital of France", line=2)]
    measured = Supervision(tokenizer).measure(examples)
    assert measured == [len(sample) for sample in tokenize(examples, tokenizer).samples]


def test_faults_are_told_with_their_place_and_end_nothing(make_tokenizer):
    supervision = Supervision(make_tokenizer("gemma"))
    refused = [chat("a", "b", line=line) for line in range(1, 30)]
    refused = [
        Example("chat", (Message("system", "s"), *one.messages), one.origin) for one in refused
    ]
    lengths = supervision.measure([*refused, chat("Hi", "Ho", line=30)])
    assert [origin.line for origin, _ in supervision.faults] == list(range(1, 30))
    assert all("System role not supported" in reason for _, reason in supervision.faults)
    assert all(not reason.startswith("data.jsonl") for _, reason in supervision.faults)
    assert len(lengths) == 30
    assert min(lengths) > 0


def test_a_template_that_never_ends_a_turn_is_a_fault(make_tokenizer):
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    supervision = Supervision(make_tokenizer("qwen-2.5", template=template))
    supervision.measure([chat("Hi", "Ho", line=3)])
    ((origin, reason),) = supervision.faults
    assert origin == Origin("data.jsonl", 3)
    assert "end-of-turn" in reason


def test_answers_past_the_limit(make_tokenizer):
    tokenizer = make_tokenizer()
    long = " ".join(["question"] * 200)
    examples = [chat(long, "short", line=1), chat("Hi", long, line=2), text(long, line=3)]
    supervision = Supervision(tokenizer, max_length=40)
    supervision.measure(examples)
    assert [origin.line for origin, _ in supervision.past_limit] == [1]
    assert supervision.faults == []


def test_without_a_template_conversations_are_refused(make_tokenizer):
    supervision = Supervision(make_tokenizer("qwen-2.5", template=None))
    assert supervision.measure([text("The capital")])[0] > 1
    with pytest.raises(TokenizerError, match="chat template"):
        supervision.measure([chat("Hi", "Ho")])


def test_shown_are_the_shortest_a_median_and_the_longest_that_fits(make_tokenizer):
    tokenizer = make_tokenizer()
    words = [5, 90, 30, 1, 60, 45, 400, 15, 75]
    examples = [chat("Hi", " ".join(["good"] * n), line=n) for n in words]
    supervision = Supervision(tokenizer, max_length=200)
    lengths = supervision.measure(examples)
    assert max(lengths) > 200 >= sorted(lengths)[-2]
    assert [shown.origin.line for shown in supervision.previews(3)] == [1, 45, 90]
    assert [shown.origin.line for shown in supervision.previews(1)] == [45]
    assert supervision.previews(0) == []
    assert len(supervision.previews(20)) == len(words) - 1


def test_many_samples_keep_the_ends_and_are_chosen_alike(make_tokenizer):
    tokenizer = make_tokenizer()
    examples = [chat("Hi", "good " * (n % 37 + 2) + "answer", line=n) for n in range(1, 500)]
    examples[250] = chat("Hi", "a", line=1000)
    examples[350] = chat("Hi", "good " * 60, line=2000)

    def chosen(chunk: int) -> list[int]:
        supervision = Supervision(tokenizer)
        for begin in range(0, len(examples), chunk):
            supervision.measure(examples[begin : begin + chunk])
        return [shown.origin.line for shown in supervision.previews(5)]

    first = chosen(64)
    assert first == chosen(7)
    assert (first[0], first[-1]) == (1000, 2000)
    assert len(set(first)) == 5


def test_nothing_that_does_not_fit_is_shown(make_tokenizer):
    tokenizer = make_tokenizer()
    supervision = Supervision(tokenizer)
    supervision.measure([chat("Hi", "good " * (FITS + 1))])
    assert supervision.previews(3) == []


def test_a_labelled_text_has_a_length_and_no_fault(make_tokenizer):
    supervision = Supervision(make_tokenizer())
    example = Example("labelled", (Message("user", "Hello there"),), Origin("a", 1), "greeting")
    (length,) = supervision.measure([example])
    assert length > 0
    assert supervision.faults == []
