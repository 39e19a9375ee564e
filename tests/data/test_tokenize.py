"""Chat templates of real families: what is supervised is exactly the assistant's."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rango.data.render import Renderer
from rango.data.samples import Example, Message, Origin, Sample
from rango.data.tokenize import Tokenized, digest, end_of_turn_ids, render_prompt, tokenize
from rango.errors import ConfigError, DataError, TokenizerError

END_OF_TURN = {
    "llama-3": "<|eot_id|>",
    "qwen-2.5": "<|im_end|>",
    "qwen-3": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "phi-3": "<|end|>",
    "marked": "<|im_end|>",
}
LED_BY_SPACE = {"mistral": " "}
FIVE = ("llama-3", "qwen-2.5", "gemma", "mistral", "phi-3")


def chat(*turns: str, roles: tuple[str, ...] = ("user", "assistant"), line: int = 1) -> Example:
    messages = tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns))
    return Example("chat", messages, Origin("data.jsonl", line))


def pair(prompt: str, completion: str, line: int = 1) -> Example:
    messages = (Message("user", prompt), Message("assistant", completion))
    return Example("completion", messages, Origin("data.jsonl", line))


def text(content: str, line: int = 1) -> Example:
    return Example("text", (Message("assistant", content),), Origin("data.jsonl", line))


def runs(tokenizer, sample: Sample, flags: tuple[bool, ...]) -> list[str]:
    """The decoded text of each stretch of flagged tokens."""
    edges = [
        i
        for i in range(len(flags) + 1)
        if (i < len(flags) and flags[i]) != (i > 0 and flags[i - 1])
    ]
    return [tokenizer.decode(list(sample.input_ids[a:b])) for a, b in list(pairwise(edges))[::2]]


@pytest.mark.parametrize("style", sorted(END_OF_TURN))
@pytest.mark.parametrize(
    "turns",
    [
        ("What is the capital of Spain?", "Madrid"),
        ("Hello", "a", "assistant", "assistant", "user\n", "a"),
        (
            "¿Qué hora es?",
            "Son las tres y media, señor 🍍.",
            "piñas",
            unicodedata.normalize("NFD", "niño"),
        ),
        ("  spaces  ", "line one\n\n- two\n- three"),
    ],
)
def test_supervised_text_is_the_assistants_and_its_end_of_turn(make_tokenizer, style, turns):
    tokenizer = make_tokenizer(style)
    (sample,) = tokenize([chat(*turns)], tokenizer).samples
    lead = LED_BY_SPACE.get(style, "")
    expected = [lead + answer + END_OF_TURN[style] for answer in turns[1::2]]
    if style == "qwen-3":  # the model has to write the empty reasoning, which the prompt leaves out
        expected[-1] = "<think>\n\n</think>\n\n" + expected[-1]
    assert runs(tokenizer, sample, sample.supervised) == expected
    assert [run.strip() for run in runs(tokenizer, sample, sample.content)] == list(turns[1::2])
    whole = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in chat(*turns).messages], tokenize=False
    )
    assert list(sample.input_ids) == tokenizer(whole, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("style", FIVE)
def test_white_space_around_an_answer(make_tokenizer, style):
    tokenizer = make_tokenizer(style)
    (sample,) = tokenize([chat("Hello", " \n Madrid \n ")], tokenizer).samples
    (supervised,) = runs(tokenizer, sample, sample.supervised)
    assert supervised.strip().endswith(END_OF_TURN[style])
    assert supervised.removesuffix(END_OF_TURN[style]).strip() == "Madrid"
    (content,) = runs(tokenizer, sample, sample.content)
    assert content.strip() == "Madrid"


@pytest.mark.parametrize("style", ["llama-3", "qwen-2.5", "phi-3", "marked"])
def test_a_system_message_is_not_supervised(make_tokenizer, style):
    tokenizer = make_tokenizer(style)
    messages = (Message("system", "You are Paris."), *chat("Hello", "Paris").messages)
    example = Example("chat", messages, Origin("data.jsonl", 1))
    (sample,) = tokenize([example], tokenizer).samples
    assert runs(tokenizer, sample, sample.supervised) == ["Paris" + END_OF_TURN[style]]


@pytest.mark.parametrize("style", sorted(END_OF_TURN))
def test_the_prompt_is_what_the_sample_begins_with(make_tokenizer, style):
    tokenizer = make_tokenizer(style)
    example = chat("Hello", "there", "What is", "Paris")
    (sample,) = tokenize([example], tokenizer).samples
    prompt = render_prompt(tokenizer, example.messages[:3])
    assert list(sample.input_ids[: len(prompt)]) == prompt
    assert sample.supervised[len(prompt)]
    assert not sample.supervised[len(prompt) - 1]


@pytest.mark.parametrize("style", sorted(END_OF_TURN))
def test_end_of_turn_ids(make_tokenizer, style):
    tokenizer = make_tokenizer(style)
    ending = tokenizer.convert_tokens_to_ids(END_OF_TURN[style])
    assert end_of_turn_ids(tokenizer) == {tokenizer.eos_token_id, ending}
    assert end_of_turn_ids(make_tokenizer(style, template=None)) == {tokenizer.eos_token_id}


def test_markers_widen_what_is_supervised_and_leave_content_alone(make_tokenizer):
    template = (
        "{% for m in messages %}{{ m.role + ':\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ 'So: ' + m.content + '<|im_end|>\n' }}{% endgeneration %}"
        "{% else %}{{ m.content + '\n' }}{% endif %}{% endfor %}"
    )
    tokenizer = make_tokenizer("qwen-2.5", template=template)
    (sample,) = tokenize([chat("Hello", "Paris", "Hi", "Madrid")], tokenizer).samples
    expected = ["So: Paris<|im_end|>\n", "So: Madrid<|im_end|>\n"]
    assert runs(tokenizer, sample, sample.supervised) == expected
    assert [run.strip() for run in runs(tokenizer, sample, sample.content)] == ["Paris", "Madrid"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in end_of_turn_ids(tokenizer)


def test_end_of_turn_outside_the_markers_is_supervised_all_the_same(make_tokenizer):
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>' }}"
        "{% else %}{{ m.content + '\n' }}{% endif %}{% endfor %}"
    )
    tokenizer = make_tokenizer("qwen-2.5", template=template)
    (sample,) = tokenize([chat("Hello", "Paris")], tokenizer).samples
    assert runs(tokenizer, sample, sample.supervised) == ["Paris<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.role + m.content + '\n' }}{% endfor %}", "end-of-turn"),
        ("{% for m in messages %}{{ m.content | upper + '<|im_end|>' }}{% endfor %}", "changes"),
        ("{{ messages[0].content }}<|im_end|>", "drops"),
        ("{% for m in messages %}{{ m.content + ' END <|im_end|>' }}{% endfor %}", "end-of-turn"),
        (
            "{{ messages[0].content | length }}"
            "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}",
            "changes",
        ),
        ("{{ raise_exception('no thanks') }}", "no thanks"),
        ("{{ messages[0].nothing.at_all }}", "refuses"),
        (
            "{% for m in messages %}{% generation %}x{% endgeneration %}"
            "{{ m.content + '<|im_end|>' }}{% endfor %}",
            "markers leave out",
        ),
    ],
)
def test_unfit_templates_are_named_with_file_and_line(make_tokenizer, template, words):
    tokenizer = make_tokenizer("qwen-2.5", template=template)
    with pytest.raises(DataError, match=words) as caught:
        tokenize([chat("Hello", "Paris", line=7)], tokenizer)
    assert "data.jsonl:7: " in str(caught.value)


def test_faults_are_gathered_up_to_ten(make_tokenizer):
    tokenizer = make_tokenizer("gemma")
    odd = [chat("You are", "Paris", roles=("system", "assistant"), line=i) for i in range(1, 30)]
    with pytest.raises(DataError, match="first 10 faults") as caught:
        tokenize(odd, tokenizer)
    assert "data.jsonl:10: " in str(caught.value)
    assert "System role not supported" in str(caught.value)
    assert "data.jsonl:11: " not in str(caught.value)


def test_chat_without_a_template_names_the_remedy(make_tokenizer):
    tokenizer = make_tokenizer("qwen-2.5", template=None)
    with pytest.raises(TokenizerError, match=r"no chat template.*prompt/completion"):
        tokenize([chat("Hello", "Paris")], tokenizer)
    with pytest.raises(TokenizerError, match="no chat template"):
        render_prompt(tokenizer, [Message("user", "Hello")])


def test_a_tokenizer_without_end_token_is_refused(make_tokenizer):
    tokenizer = make_tokenizer("qwen-2.5")
    tokenizer.eos_token = None
    with pytest.raises(TokenizerError, match="no end token"):
        tokenize([pair("a", "b")], tokenizer)


@pytest.mark.parametrize("style", ["qwen-2.5", "mistral"])
@pytest.mark.parametrize("prompt", ["What is the capital of", "Question: ", "", "niñ", "\n", "a "])
@pytest.mark.parametrize("completion", [" Spain", "Spain", "\n\nMadrid", "o", " "])
def test_pairs_begin_with_the_prompts_own_tokens(make_tokenizer, style, prompt, completion):
    tokenizer = make_tokenizer(style, template=None)
    (sample,) = tokenize([pair(prompt, completion)], tokenizer).samples
    alone = render_prompt(tokenizer, prompt)
    assert list(sample.input_ids[: len(alone)]) == alone
    answer = sample.input_ids[len(alone) : -1]
    assert tokenizer.decode(list(answer)) == completion
    assert sample.input_ids[-1] == tokenizer.eos_token_id
    assert (style == "mistral") == (sample.input_ids[0] == tokenizer.bos_token_id)
    first = 0 if alone else 1  # nothing predicts a sample's first token
    assert sample.supervised[len(alone) + first :] == (True,) * (len(answer) + 1 - first)
    assert not any(sample.supervised[: len(alone) + first])
    assert sample.content == (*sample.supervised[:-1], False)


def test_an_end_token_in_the_completion_is_not_doubled(make_tokenizer):
    tokenizer = make_tokenizer("mistral", template=None)
    (sample,) = tokenize([pair("Hello", " Paris</s>")], tokenizer).samples
    assert sample.input_ids.count(tokenizer.eos_token_id) == 1
    assert not sample.content[-1]
    assert sample.supervised[-1]


def test_text_is_learnt_whole_and_goes_on_in_windows(make_tokenizer):
    tokenizer = make_tokenizer("mistral")
    content = "The capital of France is Paris. " * 20
    (whole,) = tokenize([text(content)], tokenizer, max_length=1000).samples
    assert whole.supervised == (False, *[True] * (len(whole) - 1))
    assert not whole.content[-1]
    for limit in (2, 7, len(whole) - 1):
        windows = tokenize([text(content)], tokenizer, max_length=limit).samples
        assert max(len(window) for window in windows) == limit
        learnt = [
            token
            for window in windows
            for token, flag in zip(window.input_ids, window.supervised, strict=True)
            if flag
        ]
        assert learnt == list(whole.input_ids[1:])
        assert all(a.input_ids[-1] == b.input_ids[0] for a, b in pairwise(windows))


def test_too_long(make_tokenizer):
    tokenizer = make_tokenizer("qwen-2.5")
    short, long = chat("Hello", "Paris", line=1), chat("Hello", "Paris Madrid " * 40, line=2)
    length = len(tokenize([long], tokenizer).samples[0])
    with pytest.raises(DataError) as caught:
        tokenize([short, long], tokenizer, max_length=60)
    for word in ("data.jsonl:2: ", f"{length} tokens", "limit of 60", f"max_length to {length}"):
        assert word in str(caught.value)

    skipped = tokenize([short, long], tokenizer, max_length=60, too_long="skip")
    assert [sample.origin.line for sample in skipped.samples] == [1]
    assert skipped.skipped == [(long.origin, f"{length} tokens, over the limit of 60")]

    cut = tokenize([short, long], tokenizer, max_length=60, too_long="truncate")
    assert [len(sample) for sample in cut.samples][1] == 60
    assert cut.truncated == 1
    assert any(cut.samples[1].supervised)

    late = chat("Hello " * 80, "Paris", line=3)
    cut = tokenize([short, late], tokenizer, max_length=60, too_long="truncate")
    assert len(cut.samples) == 1
    assert "nothing to learn within" in cut.skipped[0][1]
    with pytest.raises(DataError, match="no samples are left"):
        tokenize([late], tokenizer, max_length=60, too_long="truncate")


def test_many_too_long_are_counted(make_tokenizer):
    examples = [chat("Hello", "Paris " * (9 + i), line=i) for i in range(1, 26)]
    with pytest.raises(
        DataError, match="25 samples are over the limit of 10 tokens; raise max_length to"
    ) as caught:
        tokenize(examples, make_tokenizer("qwen-2.5"), max_length=10)
    assert "data.jsonl:10: " in str(caught.value)
    assert "data.jsonl:11: " not in str(caught.value)
    assert "and 15 more" in str(caught.value)


def test_limits_of_max_length(make_tokenizer):
    with pytest.raises(ConfigError, match="at least 2"):
        tokenize([text("Hello")], make_tokenizer(), max_length=1)


def test_loss_on_all(make_tokenizer):
    tokenizer = make_tokenizer("llama-3")
    (some,) = tokenize([chat("Hello", "Paris")], tokenizer).samples
    (every,) = tokenize([chat("Hello", "Paris")], tokenizer, loss_on="all").samples
    assert every.supervised == (False, *[True] * (len(every) - 1))
    assert every.content == some.content


def test_order_counts_and_digest(make_tokenizer):
    tokenizer = make_tokenizer("qwen-2.5")
    examples = [
        example
        for i in range(300)
        for example in (chat("Hello", f"Paris {i}"), pair("a", f" {i}"), text(f"Hello {i}"))
    ]
    seen: list[float] = []
    done = tokenize(examples, tokenizer, progress=lambda *a, **k: seen.append(a[1]))
    assert [sample.origin for sample in done.samples] == [example.origin for example in examples]
    assert seen[-1] == len(examples)
    assert done.tokens == sum(len(sample) for sample in done.samples)
    assert 0 < done.supervised < done.tokens
    again: Tokenized = tokenize(examples, tokenizer)
    assert done.digest == again.digest == digest(done.samples)
    assert done.digest.startswith("sha256:")
    assert tokenize(examples[1:], tokenizer).digest != done.digest
    assert tokenize(examples, tokenizer, loss_on="all").digest != done.digest


def test_digest_is_stable():
    sample = Sample((5, 6, 7), (False, True, True), (False, True, False), Origin("a", 1))
    assert digest([sample]) == (
        "sha256:51f61dde9d8caa21c88853c907788d7431121c881ec3250eb5e8365665db7f57"
    )


def test_private_use_characters_in_a_message_do_not_disturb(make_tokenizer):
    tokenizer = make_tokenizer("qwen-2.5")
    answer = "\ue0001\ue001 Paris \ue0000\ue001"
    rendered = Renderer(tokenizer).render(chat("\ue0001\ue001", answer).messages)
    (turn,) = rendered.turns
    assert rendered.text[turn.begin : turn.end] == answer


def test_sentencepiece_chats(sentencepiece):
    turns = ("Hello", "Madrid, of course\n- niño 🍍", "x", "a")
    (sample,) = tokenize([chat(*turns)], sentencepiece).samples
    expected = [answer + "</s>" for answer in turns[1::2]]
    learnt = [run.strip() for run in runs(sentencepiece, sample, sample.supervised)]
    assert learnt == expected
    content = [run.strip() for run in runs(sentencepiece, sample, sample.content)]
    assert content == list(turns[1::2])


@pytest.mark.parametrize("prompt", ["Question:", "Question: ", "Question:\n", ""])
@pytest.mark.parametrize("completion", [" Paris", "Paris", "\nParis is\n🍍"])
def test_sentencepiece_pairs(sentencepiece, prompt, completion):
    (sample,) = tokenize([pair(prompt, completion)], sentencepiece).samples
    alone = render_prompt(sentencepiece, prompt)
    assert list(sample.input_ids[: len(alone)]) == alone
    assert alone[0] == sentencepiece.bos_token_id
    (learnt,) = runs(sentencepiece, sample, sample.supervised)
    assert learnt.strip() == completion.strip() + "</s>"


def test_the_demos_own_template(demo_base):
    tokenizer = AutoTokenizer.from_pretrained(demo_base)
    (sample,) = tokenize([chat("def f(): pass", "Do nothing.", "more", "No.")], tokenizer).samples
    assert runs(tokenizer, sample, sample.supervised) == ["Do nothing.<|end|>", "No.<|end|>"]
    assert tokenizer.convert_tokens_to_ids("<|end|>") in end_of_turn_ids(tokenizer)


def test_added_tokens_of_white_space_end_no_turn(make_tokenizer):
    template = "{% for m in messages %}{{ m.content + '\\n<|im_end|>\\n' }}{% endfor %}"
    tokenizer = make_tokenizer("qwen-2.5", template=template)
    tokenizer.add_tokens(["\n", "\n\n"])
    (sample,) = tokenize([chat("Hello", "Paris")], tokenizer).samples
    assert runs(tokenizer, sample, sample.supervised) == ["Paris\n<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in end_of_turn_ids(tokenizer)


def test_a_tokenizer_that_loses_text_is_caught(make_tokenizer):
    tokenizer = make_tokenizer("qwen-2.5")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("Madrid", "Paris")
    for odd in (chat("Hello", "In Madrid", line=4), pair("Hello", " Madrid", line=4)):
        with pytest.raises(DataError, match=r"data.jsonl:4: .*decode to ' ?(In )?Paris'"):
            tokenize([odd], tokenizer)


def test_a_word_that_the_vocabulary_lacks_is_no_fault():
    words = {"<unk>": 0, "</s>": 1, "Paris": 2}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", unk_token="<unk>", model_max_length=99
    )
    (sample,) = tokenize([pair("Paris", " Madrid Paris")], tokenizer).samples
    assert sample.input_ids == (2, 0, 2, 1)


def test_a_lone_token_is_left_out(make_tokenizer):
    tokenizer = make_tokenizer("qwen-2.5")
    done = tokenize([pair("", "<|endoftext|>"), pair("a", "b", line=2)], tokenizer)
    assert [sample.origin.line for sample in done.samples] == [2]
    assert done.skipped == [(Origin("data.jsonl", 1), "nothing to learn but its first token")]


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(TokenizerError, match="offsets"):
        tokenize([pair("a", "b")], SimpleNamespace(is_fast=False))


def test_no_examples():
    with pytest.raises(DataError, match="no samples"):
        tokenize([], SimpleNamespace(is_fast=False))


def test_a_conversation_that_the_assistant_begins(make_tokenizer):
    tokenizer = make_tokenizer("qwen-2.5")
    example = chat("Hello", "Hi", "Paris", roles=("assistant", "user"))
    (sample,) = tokenize([example], tokenizer).samples
    expected = ["Hello<|im_end|>", "Paris<|im_end|>"]
    assert runs(tokenizer, sample, sample.supervised) == expected


def test_a_template_that_has_no_generation_prompt(make_tokenizer):
    template = (
        "{% if add_generation_prompt %}{{ raise_exception('no') }}{% endif %}"
        "{% for m in messages %}{{ m.role + ':\\n' + m.content + '<|im_end|>' }}{% endfor %}"
    )
    tokenizer = make_tokenizer("qwen-2.5", template=template)
    (sample,) = tokenize([chat("Hello", "Paris")], tokenizer).samples
    assert runs(tokenizer, sample, sample.supervised) == ["Paris<|im_end|>"]
