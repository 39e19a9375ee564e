"""For chat templates in the manner of Llama 3, Qwen 2.5 and 3, Gemma, Mistral and Phi: what is
supervised is exactly the assistant's text with its end of turn, packed or not."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from typing import Any

import families
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rango.data.faults import Faults
from rango.data.samples import IGNORED, Example, Message, Origin, Sample
from rango.data.templates.render import Renderer
from rango.data.tokens.encode import Encoder
from rango.data.tokens.pack import collate
from rango.errors import DataError

FAMILIES = families.FAMILIES
ALL = sorted(FAMILIES)
TOKENIZERS = {name: families.tokenizer(name) for name in ALL}
ENCODERS = {name: Encoder(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def talk(*turns: tuple[str, str], line: int = 1) -> Example:
    return Example("chat", tuple(Message(*turn) for turn in turns), Origin("data.jsonl", line))


def asked(*texts: str) -> Example:
    """User and assistant in turn."""
    return talk(*((("user", "assistant")[i % 2], text) for i, text in enumerate(texts)))


def encode(name: str, *examples: Example, **options: Any) -> list[Sample]:
    encoder = Encoder(TOKENIZERS[name], **options) if options else ENCODERS[name]
    faults = Faults("data.jsonl")
    samples = encoder.encode(examples, faults)
    faults.raise_any()
    return [sample for sample in samples if sample is not None]


def runs(name: str, sample: Sample, flags: tuple[bool, ...]) -> list[str]:
    """The decoded text of each stretch of flagged tokens."""
    padded = (False, *flags, False)
    edges = [i for i, (before, here) in enumerate(pairwise(padded)) if before != here]
    stretches = zip(edges[::2], edges[1::2], strict=True)
    return [TOKENIZERS[name].decode(list(sample.input_ids[a:b])) for a, b in stretches]


def expected(name: str, answers: list[str]) -> list[str]:
    """What is to be learnt of these answers, in a family's form."""
    family = FAMILIES[name]
    forms = [family.written(answer) for answer in answers]
    forms[-1] = family.last(forms[-1])
    return [unicodedata.normalize("NFC", form) + family.end_of_turn for form in forms]


def check(name: str, example: Example, sample: Sample) -> None:
    """The supervised text is the answers'; leading white space may be shared with the template."""
    answers = [message.content for message in example.messages if message.role == "assistant"]
    found = [unicodedata.normalize("NFC", run) for run in runs(name, sample, sample.supervised)]
    wanted = expected(name, answers)
    if FAMILIES[name].joined:
        found, wanted = [run.lstrip() for run in found], [run.lstrip() for run in wanted]
    assert found == wanted
    contents = [
        unicodedata.normalize("NFC", run).strip() for run in runs(name, sample, sample.content)
    ]
    assert contents == [unicodedata.normalize("NFC", answer).strip() for answer in answers]


CONVERSATIONS = {
    "one turn": asked("What is the capital of Spain?", "Madrid"),
    "several turns": asked("Hello", "Hi there", "And now?", "Nothing.", "Bye", "Bye bye"),
    "repeats the user": asked("Madrid", "Madrid", "Madrid", "Madrid"),
    "is a role": asked("user", "user", "assistant", "assistant\nuser", "model", "system"),
    "one letter": asked("a", "a", "b", "a"),
    "lines": asked("List", "line one\n\n- two\n- three\n\n\n4."),
    "accents, NFC": asked("¿Qué hora es, señor?", "Son las tres y media: ¡mañana, piñas!"),
    "accents, NFD": asked(
        unicodedata.normalize("NFD", "¿Qué hora es, señor?"),
        unicodedata.normalize("NFD", "mañana, piñas y un pingüino"),
    ),
    "emoji": asked("🍍?", "🍍", "👩‍👩‍👧‍👦 🇪🇸", "👍🏽 family 👩‍👩‍👧‍👦🇪🇸 ❤️"),
    "begins with a mark that combines": asked("e", "\u0301 is one", "x\u200d", "\u200d\ufe0fy"),
    "punctuation": asked(":", ":(", "(", ")", ">", "> <", "<|", "|> <|", "[", "[INST"),
    "text like a header": asked("### Response:", "Assistant:\nUser:\nmodel\n"),
    "markup": asked("<b>", "<table><tr>\n</tr></table> <|im <end>"),
    "other scripts": asked(
        "東京は?", "はい、東京です。", "مرحبا", "שלום", "한국", "\u1100\u1161\u11a8"
    ),
    "braces": asked("{{ x }}", "{% if y %}{{ messages }}{% endif %} {# z #}"),
    "private use": asked("\ue0000\ue001", "\ue0001\ue002 and \ue0000\ue001 \ue0001\ue001"),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_the_assistants_text_is_learnt_and_nothing_else(name: str, kind: str) -> None:
    example = CONVERSATIONS[kind]
    (sample,) = encode(name, example)
    check(name, example, sample)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("answer", [" Madrid", "Madrid ", "\nMadrid\n\n", " \n Madrid \t ", "\tx"])
@pytest.mark.parametrize("question", ["Hello", " Hello \n"])
def test_white_space_around_answers(name: str, question: str, answer: str) -> None:
    example = asked(question, answer, question, answer)
    (sample,) = encode(name, example)
    check(name, example, sample)


@pytest.mark.parametrize("name", [name for name in ALL if FAMILIES[name].system])
@pytest.mark.parametrize("system", ["You are Paris.", "", " ", "Paris\n\n"])
def test_system_messages_are_not_learnt(name: str, system: str) -> None:
    example = talk(("system", system), *turns_of(asked("Hi", "Paris", "You?", "You are Paris.")))
    (sample,) = encode(name, example)
    check(name, example, sample)


def turns_of(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


@pytest.mark.parametrize("name", [name for name in ALL if FAMILIES[name].tool])
@pytest.mark.parametrize("result", ['{"t": 21}', "21", 'it\'s "21"\n\tdegrees', "señal 🍍", ""])
def test_results_of_tools_are_never_learnt(name: str, result: str) -> None:
    example = talk(
        ("user", "How warm is it?"),
        ("assistant", "weather(Madrid)"),
        ("tool", result),
        ("assistant", "21 degrees"),
        ("user", "Thanks"),
        ("assistant", "Welcome"),
    )
    (sample,) = encode(name, example)
    check(name, example, sample)


@pytest.mark.parametrize("name", ["gemma", "mistral", "phi"])
def test_a_template_without_tools_says_so(name: str) -> None:
    odd = talk(("user", "a"), ("assistant", "b"), ("tool", "c"), ("assistant", "d"), line=3)
    with pytest.raises(DataError, match=r"data\.jsonl:3: the chat template (refuses|drops)"):
        encode(name, odd)


@pytest.mark.parametrize("name", ALL)
def test_the_same_through_packing(name: str) -> None:
    examples = list(CONVERSATIONS.values())
    samples = encode(name, *examples)
    for packed in (True, False):
        batch = collate(samples, range(len(samples)), packed=packed)
        for place, sample in enumerate(samples):
            own = batch.samples == place
            flags = (batch.targets[own] != IGNORED).tolist()
            assert flags[-1] is False
            learnt = (False, *flags[:-1])
            assert learnt == sample.supervised
            assert batch.input_ids[own].tolist() == list(sample.input_ids)
            assert batch.targets[own][flags].tolist() == [
                token for token, flag in zip(sample.input_ids, learnt, strict=True) if flag
            ]
            check(name, examples[place], sample)
        assert batch.supervised == sum(sum(sample.supervised) for sample in samples)


@pytest.mark.parametrize("name", ALL)
def test_only_the_last_answer(name: str) -> None:
    example = asked("Hello", "Hi", "More?", "Hi", "And?", "Last.")
    (sample,) = encode(name, example, last_only=True)
    (run,) = runs(name, sample, sample.supervised)
    assert run == expected(name, ["Last."])[0]
    (content,) = runs(name, sample, sample.content)
    assert content.strip() == "Last."
    (every,) = encode(name, example)
    assert every.input_ids == sample.input_ids


@pytest.mark.parametrize("name", ALL)
def test_text_of_the_templates_own_tokens_is_refused(name: str) -> None:
    family = FAMILIES[name]
    special = {*map(str, family.special), family.end_of_turn, family.end, family.begin}
    # not in a conversation without a system message, or not at all
    for text in special - {None, "<|system|>", "<|python_tag|>"}:
        for turns in (f"a {text} b", "c"), ("a", f"b {text} c"), ("a", text), (text, f"b{text}"):
            with pytest.raises(DataError, match=r"data\.jsonl:1: messages\[[01]\] holds the text"):
                encode(name, asked(*turns))
        spaced = f"{text[0]} {text[1:]}"
        example = asked(f"a {spaced}", f"b {spaced} c")
        (sample,) = encode(name, example)
        check(name, example, sample)


def test_a_special_token_that_parts_no_turns_may_be_learnt() -> None:
    answer = '<|python_tag|>weather.call(city="Madrid")'
    example = asked("How warm is it?", answer)
    (sample,) = encode("llama-3", example)
    check("llama-3", example, sample)
    assert TOKENIZERS["llama-3"].convert_tokens_to_ids("<|python_tag|>") in sample.input_ids


def test_added_tokens_that_are_text_may_be_learnt() -> None:
    example = asked("Call", '<tool_call>\n{"name": "f"}\n</tool_call>')
    for name in ("qwen-2.5", "qwen-3"):
        (sample,) = encode(name, example)
        check(name, example, sample)


class TestReasoning:
    """Qwen 3 writes the reasoning of the last answer, and drops that of earlier ones."""

    THOUGHT = "<think>\nSpain? Its capital.\n</think>\n\nMadrid"

    def learnt(self, *texts: str, **options: Any) -> list[str]:
        (sample,) = encode("qwen-3", asked(*texts), **options)
        return runs("qwen-3", sample, sample.supervised)

    def test_the_last_is_learnt_with_its_reasoning(self) -> None:
        assert self.learnt("Capital?", self.THOUGHT) == [f"{self.THOUGHT}<|im_end|>"]

    def test_of_earlier_ones_what_is_kept_is_learnt(self) -> None:
        earlier = "<think>\nMadrid, I think\n</think>\n\nMadrid"
        found = self.learnt("Capital?", earlier, "Sure?", self.THOUGHT)
        assert found == ["Madrid<|im_end|>", f"{self.THOUGHT}<|im_end|>"]
        plain = self.learnt("Capital?", earlier, "Sure?", "Yes")
        assert plain == ["Madrid<|im_end|>", "<think>\n\n</think>\n\nYes<|im_end|>"]
        last = self.learnt("Capital?", earlier, "Sure?", self.THOUGHT, last_only=True)
        assert last == found[1:]

    def test_the_content_is_the_answer_with_its_reasoning(self) -> None:
        (sample,) = encode("qwen-3", asked("Capital?", self.THOUGHT, "Sure?", self.THOUGHT))
        assert runs("qwen-3", sample, sample.content) == ["Madrid", self.THOUGHT]

    @pytest.mark.parametrize(
        "answer",
        [
            "Spain? Its capital.\n</think>\nMadrid",
            "<think>Spain? Its capital.</think>Madrid",
            "<think>\n\n\nSpain? Its capital.\n\n</think>\n\n\n\nMadrid",
            "\n<think>\nSpain? Its capital.\n</think>\n\nMadrid",
        ],
    )
    def test_other_ways_of_writing_it(self, answer: str) -> None:
        assert self.learnt("Capital?", answer) == [f"{self.THOUGHT}<|im_end|>"]

    @pytest.mark.parametrize("answer", ["<think>\n\n</think>\n\nMadrid", "</think>Madrid"])
    def test_empty_reasoning(self, answer: str) -> None:
        found = self.learnt("Capital?", answer, "Sure?", answer)
        assert found == ["Madrid<|im_end|>", "<think>\n\n</think>\n\nMadrid<|im_end|>"]

    def test_between_tools_all_reasoning_is_kept(self) -> None:
        call = "<think>\nI look it up\n</think>\n\nweather(Madrid)"
        example = talk(
            ("user", "How warm?"), ("assistant", call), ("tool", "21"), ("assistant", self.THOUGHT)
        )
        (sample,) = encode("qwen-3", example)
        found = runs("qwen-3", sample, sample.supervised)
        assert found == [f"{call}<|im_end|>", f"{self.THOUGHT}<|im_end|>"]

    @pytest.mark.parametrize("answer", ["<think>a</think>b</think>c", "so <think>a</think>b"])
    def test_what_cannot_be_verified_is_refused(self, answer: str) -> None:
        with pytest.raises(DataError, match=r"data\.jsonl:1: the chat template changes"):
            self.learnt("Capital?", answer)

    def test_a_template_that_drops_the_last_reasoning_is_refused(self) -> None:
        tokenizer = families.tokenizer("qwen-2.5")
        tokenizer.chat_template = (
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
            "{{ m.content.split('</think>')[-1] + '<|im_end|>\\n' }}{% endfor %}"
        )
        faults = Faults("data.jsonl")
        Encoder(tokenizer).encode([asked("Capital?", self.THOUGHT)], faults)
        with pytest.raises(DataError, match="drops the reasoning of the last answer"):
            faults.raise_any()

    def test_a_template_that_keeps_it_whole(self) -> None:
        (sample,) = encode("llama-3", asked("Capital?", self.THOUGHT, "Sure?", self.THOUGHT))
        assert runs("llama-3", sample, sample.supervised) == [f"{self.THOUGHT}<|eot_id|>"] * 2


def test_the_day_is_always_the_same() -> None:
    text = Renderer(TOKENIZERS["llama-3"]).text(asked("Hello", "Hi").messages)
    assert "Today Date: 26 Jul 2024\n" in text


PARTS = ("user", "assistant", "model", "system", "Madrid", "niño", "nin\u0303o", "\u0301")
SIGNS = ("\n", "\n\n", " ", "\t", ":", "🍍", "👩‍👩", "\u200d", "\u1100\u1161", "{{", "}}", "▂")
MARKS = ("<|", "|>", "[INST", "<|im_", "im_end|>", "end_of_turn>", "<start", "</", "s>", "User:")
PIECES = st.one_of(
    st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=12),
    st.sampled_from(PARTS + SIGNS + MARKS),
)
TEXTS = st.lists(PIECES, max_size=5).map("".join)
ANSWERS = TEXTS.filter(lambda text: bool(text.strip()))


@settings(max_examples=150)
@given(
    st.sampled_from(ALL),
    st.lists(st.tuples(TEXTS, ANSWERS), min_size=1, max_size=4),
    st.one_of(st.none(), TEXTS),
)
def test_any_conversation(name: str, pairs: list[tuple[str, str]], system: str | None) -> None:
    turns = turns_of(asked(*(text for pair in pairs for text in pair)))
    if system is not None and FAMILIES[name].system:
        turns.insert(0, ("system", system))
    texts = "\0".join(text for _, text in turns)
    # SentencePiece's sign for a space can't come back; tokens that the template leaves unwritten
    assume(not any(odd in texts for odd in ("▁", "<|system|>", "<|python_tag|>")))
    family = FAMILIES[name]
    special = [*map(str, family.special), family.end_of_turn, family.end]
    special += [family.begin] if family.begin else []
    example = talk(*turns)
    if any(token in texts for token in special):
        with pytest.raises(DataError, match="holds the text"):
            encode(name, example)
        return
    (sample,) = encode(name, example)
    check(name, example, sample)
