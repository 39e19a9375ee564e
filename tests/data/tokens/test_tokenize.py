"""Chat templates of real families: what is supervised is exactly the assistant's."""

from __future__ import annotations

import io
import logging
import unicodedata
import weakref
from itertools import pairwise
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rango.data.samples import Example, Message, Origin, Sample
from rango.data.templates.render import Renderer
from rango.data.tokens import tokenize as module
from rango.data.tokens import workers as token_workers
from rango.data.tokens.store import SampleStore
from rango.data.tokens.tokenize import Tokenized, digest, end_of_turn_ids, render_prompt, tokenize
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


def test_only_the_last_answer_is_learnt(make_tokenizer):
    tokenizer = make_tokenizer("llama-3")
    conversation = chat("Hello", "Paris", "What is", "Madrid")
    (sample,) = tokenize([conversation], tokenizer, loss_on="last").samples
    (every,) = tokenize([conversation], tokenizer).samples
    assert runs(tokenizer, sample, sample.supervised) == ["Madrid<|eot_id|>"]
    assert runs(tokenizer, sample, sample.content) == ["Madrid"]
    assert sample.input_ids == every.input_ids
    (pair_sample,) = tokenize([pair("a", " b")], tokenizer, loss_on="last").samples
    assert pair_sample == tokenize([pair("a", " b")], tokenizer).samples[0]


def test_a_text_with_a_label_is_not_lost_in_silence(make_tokenizer):
    labelled = Example("labelled", (Message("user", "Hello"),), Origin("data.jsonl", 3))
    with pytest.raises(DataError, match=r"data\.jsonl:3: .*label"):
        tokenize([chat("Hello", "Paris"), labelled], make_tokenizer())


def mixed(count: int) -> list[Example]:
    """Chats, pairs and texts by turns."""
    kinds = (
        lambda line: chat("Hello", f"Paris {line}", line=line),
        lambda line: pair("a", f" {line}", line=line),
        lambda line: text(f"Hello {line}", line=line),
    )
    return [kinds[line % 3](line) for line in range(1, count + 1)]


def test_an_iterator_is_as_good_as_a_list(make_tokenizer):
    tokenizer, examples = make_tokenizer(), mixed(700)
    told: list[tuple[float, float]] = []
    found = tokenize(iter(examples), tokenizer, progress=lambda *a, **k: told.append(a[1:3]))
    assert found == tokenize(examples, tokenizer)
    assert isinstance(found.samples, SampleStore)
    assert told == [(512, 512), (700, 700)]
    told.clear()
    tokenize(iter(examples), tokenizer, total=900, progress=lambda *a, **k: told.append(a[1:3]))
    assert told == [(512, 900), (700, 900)]
    with pytest.raises(DataError, match="no samples"):
        tokenize(iter([]), tokenizer)


class Counted(Example):
    """One that can be watched."""


@pytest.mark.parametrize(("characters", "most"), [(2**22, 512), (2000, 11)])
def test_few_examples_are_held_at_once(make_tokenizer, monkeypatch, characters, most):
    monkeypatch.setattr(module, "_CHUNK_CHARACTERS", characters)
    alive: weakref.WeakSet[Counted] = weakref.WeakSet()
    seen = 0

    def stream():
        nonlocal seen
        for line in range(1, 2001):
            messages = chat("Hello " * 30, "Paris").messages
            example = Counted("chat", messages, Origin("data.jsonl", line))
            alive.add(example)
            yield example
            del example
            seen = max(seen, len(alive))

    assert len(tokenize(stream(), make_tokenizer()).samples) == 2000
    assert seen <= 2 * most + 1


class Watched(token_workers.WorkerPool):
    """Notes how many chunks workers have encoded."""

    encoded_by_workers: list[int]

    def __exit__(self, *error):
        super().__exit__(*error)
        self.encoded_by_workers.append(self.encoded)


class Shot(Watched):
    """One of its workers ends early."""

    def encode(self, chunks):
        for number, encoded in enumerate(super().encode(chunks)):
            if number == 1:
                self._workers[0].kill()
            yield encoded


@pytest.fixture
def workers_encoded(monkeypatch) -> list[int]:
    monkeypatch.setattr(Watched, "encoded_by_workers", [], raising=False)
    monkeypatch.setattr(token_workers, "WorkerPool", Watched)
    monkeypatch.setattr(module, "_CHUNK", 40)
    return Watched.encoded_by_workers


def test_the_number_of_workers_changes_nothing(make_tokenizer, workers_encoded):
    tokenizer = make_tokenizer("mistral")
    odd = [chat("You are", "Paris", roles=("system", "user"), line=i) for i in range(1000, 1020)]
    examples = [*mixed(240), chat("x", "Paris " * 90, line=777), *odd, *mixed(5)]
    made = []
    for workers in (1, 2):
        told: list[DataError] = []
        found = tokenize(
            examples,
            tokenizer,
            max_length=60,
            too_long="skip",
            workers=workers,
            skip=told.append,
        )
        made.append((found, [str(error) for error in told]))
    assert made[0] == made[1]
    found, faults = made[0]
    assert [origin.line for origin, _ in found.skipped] == [777]
    assert [fault.split(":")[1] for fault in faults] == [str(i) for i in range(1000, 1020)]
    assert workers_encoded == [7]


def test_a_worker_that_ends_is_done_without(make_tokenizer, workers_encoded, monkeypatch):
    monkeypatch.setattr(token_workers, "WorkerPool", Shot)
    tokenizer, examples = make_tokenizer(), mixed(1200)
    assert tokenize(examples, tokenizer, workers=2) == tokenize(examples, tokenizer, workers=1)
    assert 0 < workers_encoded[0] < 30


class Stranger:
    """A worker that has read another tokenizer."""

    def __init__(self) -> None:
        self.input, self.output = io.BytesIO(), io.BytesIO()
        token_workers._send(self.output, b'"sha256:another"')
        self.output.seek(0)

    def kill(self) -> None:
        """There is no process."""

    close = kill


@pytest.mark.parametrize("fault", ["another tokenizer", "no start", "no process"])
def test_workers_that_cannot_be_used(make_tokenizer, workers_encoded, monkeypatch, caplog, fault):
    if fault == "another tokenizer":
        monkeypatch.setattr(token_workers, "_Worker", Stranger)
    elif fault == "no start":
        monkeypatch.setattr(token_workers, "_MODULE", "rango.nothing")
    else:
        monkeypatch.setattr(token_workers.sys, "executable", "/nowhere/python")
    tokenizer, examples = make_tokenizer(), mixed(90)
    with caplog.at_level(logging.INFO, "rango"):
        assert tokenize(examples, tokenizer, workers=2) == tokenize(examples, tokenizer)
    assert workers_encoded == [0]
    assert "0 of 2 tokenizing processes could be used" in caplog.text


def test_workers_start_where_there_is_much_to_do(make_tokenizer, workers_encoded, monkeypatch):
    monkeypatch.setattr(token_workers, "_ALONE", 100)
    monkeypatch.setattr(token_workers.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(Watched, "ready", True)  # do not go on alone until they have started
    tokenizer = make_tokenizer()
    tokenize(mixed(199), tokenizer)
    assert workers_encoded == []
    many = mixed(400)
    found = tokenize(iter(many), tokenizer)
    assert workers_encoded == [7]
    monkeypatch.setattr(token_workers.os, "sched_getaffinity", lambda _: {0})
    assert tokenize(many, tokenizer) == found
    assert workers_encoded == [7]
