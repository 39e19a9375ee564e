"""Choosing a chat template, and carrying it with an adapter."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rango.data.faults import Faults
from rango.data.samples import Example, Message, Origin
from rango.data.templates.built_in import BUILT_IN
from rango.data.templates.choose import (
    TEMPLATE,
    fitting,
    load_template,
    save_template,
    template_facts,
    use_template,
)
from rango.data.templates.render import Renderer
from rango.data.tokens.encode import Encoder
from rango.errors import AdapterError, ConfigError, DataError, OutputExistsError, TokenizerError
from rango.files.digests import bytes_digest

BARE = families.bare()
NAMES = sorted(BUILT_IN)
TRIMMING = ("alpaca", "gemma", "llama3", "mistral", "plain")
WITH_TOOLS = ("chatml", "llama3", "plain")
DATED = (
    "{{ strftime_now('%Y-%m-%d ') }}{% for m in messages %}{{ m.role + ':\n' + m.content }}"
    "{{ eos_token }}{% endfor %}"
)
UNDATED = DATED.replace("{{ strftime_now('%Y-%m-%d ') }}", "")

Make = Callable[..., Any]


def fit(name: str, begin: str | None = None) -> Any:
    """A tokenizer that has what a built-in template needs, with that template."""
    return use_template(families.bare(*BUILT_IN[name].tokens, begin=begin), name)


def talk(*turns: tuple[str, str]) -> Example:
    return Example("chat", tuple(Message(*turn) for turn in turns), Origin("data.jsonl", 1))


def learnt(tokenizer: Any, example: Example) -> list[str]:
    """The text of each supervised stretch."""
    faults = Faults("data.jsonl")
    (sample,) = Encoder(tokenizer).encode([example], faults)
    faults.raise_any()
    assert sample is not None
    stretches: list[list[int]] = [[]]
    for token, flag in zip(sample.input_ids, sample.supervised, strict=True):
        if flag:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


def ending(name: str, tokenizer: Any) -> str:
    return BUILT_IN[name].end_of_turn or tokenizer.eos_token


class TestBuiltIn:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("begin", [None, "<s>"])
    def test_answers_and_their_ends_are_learnt(self, name: str, begin: str | None) -> None:
        tokenizer = fit(name, begin)
        example = talk(
            ("system", "Be Paris"),
            ("user", "Hello"),
            ("assistant", "Hi\n\nthere"),
            ("user", " user\n"),
            ("assistant", "🍍 piñas"),
        )
        lead = " " if name == "mistral" else ""
        end = ending(name, tokenizer)
        assert learnt(tokenizer, example) == [f"{lead}Hi\n\nthere{end}", f"{lead}🍍 piñas{end}"]
        text = Renderer(tokenizer).text(example.messages)
        assert text.startswith(begin or "") or name in ("chatml", "phi")
        assert "Be Paris" in text

    @pytest.mark.parametrize("name", NAMES)
    def test_the_prompt_is_the_beginning_of_the_whole(self, name: str) -> None:
        renderer = Renderer(fit(name, "<s>"))
        messages = talk(
            ("user", "Hello"), ("assistant", "Hi"), ("user", "You?"), ("assistant", "Good")
        ).messages
        rendered = renderer.render(messages)
        for turn, before in zip(rendered.turns, (messages[:1], messages[:3]), strict=True):
            assert rendered.text[: turn.start] == renderer.text(before, prompt=True)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("system", ["", "  "])
    def test_a_blank_system_message(self, name: str, system: str) -> None:
        tokenizer = fit(name)
        example = talk(("system", system), ("user", "Hello"), ("assistant", "Hi"))
        lead = " " if name == "mistral" else ""
        assert learnt(tokenizer, example) == [f"{lead}Hi{ending(name, tokenizer)}"]

    @pytest.mark.parametrize("name", NAMES)
    def test_results_of_tools(self, name: str) -> None:
        tokenizer = fit(name)
        example = talk(("user", "?"), ("assistant", "look"), ("tool", "21"), ("assistant", "Warm"))
        if name in WITH_TOOLS:
            end = ending(name, tokenizer)
            assert learnt(tokenizer, example) == [f"look{end}", f"Warm{end}"]
        else:
            with pytest.raises(DataError, match=r"refuses the conversation.*tool"):
                learnt(tokenizer, example)

    @pytest.mark.parametrize("name", NAMES)
    def test_white_space_around_an_answer(self, name: str) -> None:
        tokenizer = fit(name)
        (run,) = learnt(tokenizer, talk(("user", "Hello"), ("assistant", "Hi \n")))
        kept = "Hi" if name in TRIMMING else "Hi \n"
        assert run.lstrip() == kept + ending(name, tokenizer)

    @pytest.mark.parametrize("name", NAMES)
    def test_each_file_says_how_a_turn_ends(self, name: str) -> None:
        template = BUILT_IN[name]
        told = template.end_of_turn or "the end token"
        assert f"A turn ends with {told}." in template.text.splitlines()[0]
        assert "generation -%}" in template.text
        assert all(token in template.text for token in template.tokens)

    def test_the_folder_and_the_table_agree(self) -> None:
        folder = Path(sys.modules["rango.data.templates.built_in"].__file__ or "").parent
        assert {path.stem for path in folder.glob("*.jinja")} == set(BUILT_IN)


class TestUse:
    def test_the_tokenizers_own(self, make_tokenizer: Make) -> None:
        tokenizer = make_tokenizer("qwen-2.5")
        assert use_template(tokenizer, None) is tokenizer
        dated = make_tokenizer("qwen-2.5", template=DATED)
        used = use_template(dated, None)
        assert dated.chat_template == DATED
        assert used.chat_template != DATED
        assert Renderer(used).text([Message("user", "?")]).startswith("2024-07-26 user")

    def test_without_one_nothing_is_guessed(self, make_tokenizer: Make) -> None:
        bare = make_tokenizer("qwen-2.5", template=None)
        used = use_template(bare, None)
        assert used.chat_template is None
        messages = Message("user", "a"), Message("assistant", " b")
        pair = Example("completion", messages, Origin("data.jsonl", 1))
        assert learnt(used, pair) == [" b<|endoftext|>"]
        with pytest.raises(TokenizerError, match=r"choose one with data\.chat_template.*alpaca"):
            learnt(used, talk(("user", "a"), ("assistant", "b")))

    def test_the_one_given_stays_as_it_is(self, make_tokenizer: Make) -> None:
        tokenizer = make_tokenizer("qwen-2.5")
        own = tokenizer.chat_template
        used = use_template(tokenizer, "plain")
        assert used.chat_template == BUILT_IN["plain"].text
        assert tokenizer.chat_template == own

    @pytest.mark.parametrize(
        ("style", "names"),
        [
            ("qwen-2.5", ["alpaca", "chatml", "plain"]),
            ("llama-3", ["alpaca", "llama3", "plain"]),
            ("gemma", ["alpaca", "gemma", "plain"]),
            ("mistral", ["alpaca", "mistral", "plain"]),
            ("phi-3", ["alpaca", "phi", "plain"]),
        ],
    )
    def test_the_tokens_it_writes_must_be_single_ones(
        self, make_tokenizer: Make, style: str, names: list[str]
    ) -> None:
        tokenizer = make_tokenizer(style, template=None)
        assert fitting(tokenizer) == names
        for name in BUILT_IN:
            if name in names:
                used = use_template(tokenizer, name)
                assert learnt(used, talk(("user", "a"), ("assistant", "b")))[0].strip() == (
                    f"b{ending(name, used)}"
                )
                continue
            with pytest.raises(ConfigError) as caught:
                use_template(tokenizer, name)
            message = str(caught.value)
            assert f"data.chat_template {name}: it writes {BUILT_IN[name].tokens[0]}" in message
            assert message.endswith(f"work with it: {', '.join(names)}")

    def test_a_word_of_the_vocabulary_that_is_no_token_of_its_own(self) -> None:
        tokenizer = families.bare("<|im_start|>")
        assert "chatml" not in fitting(tokenizer)
        with pytest.raises(ConfigError, match=r"writes <\|im_end\|>, which"):
            use_template(tokenizer, "chatml")

    def test_a_file(self, make_tokenizer: Make, tmp_path: Path) -> None:
        path = tmp_path / "own.jinja"
        path.write_bytes(b"\xef\xbb\xbf" + DATED.encode())
        used = use_template(make_tokenizer("qwen-2.5", template=None), str(path))
        assert used.chat_template.endswith(f"\n{DATED}")
        assert learnt(used, talk(("user", "a"), ("assistant", "b")))[-1].endswith("b<|endoftext|>")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"{% for m in messages %}", r"own\.jinja:1: the chat template refuses.*endfor"),
            (b"{{ messages[0].content }}", "drops"),
            (b"{% for m in messages %}{{ m.content }}\n{% endfor %}", "no end-of-turn token"),
            (b"\xff\xfe", "not UTF-8 text: .* at byte 0"),
            (b"x" * (2**20 + 1), "larger than 1048576 bytes"),
        ],
    )
    def test_unfit_files(
        self, make_tokenizer: Make, tmp_path: Path, content: bytes, words: str
    ) -> None:
        path = tmp_path / "own.jinja"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=words) as caught:
            use_template(make_tokenizer("qwen-2.5"), str(path))
        assert str(path) in str(caught.value)

    def test_a_file_that_is_missing(self, make_tokenizer: Make, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"absent\.jinja: cannot be read: No such file"):
            use_template(make_tokenizer("qwen-2.5"), str(tmp_path / "absent.jinja"))

    def test_an_unknown_name_lists_the_known_ones(self, make_tokenizer: Make) -> None:
        with pytest.raises(ConfigError) as caught:
            use_template(make_tokenizer("qwen-2.5"), "chatlm")
        assert re.search(r"'chatlm'.*alpaca, chatml.*nearest: chatml", str(caught.value))


class TestFacts:
    def test_what_is_told(self, make_tokenizer: Make) -> None:
        tokenizer = use_template(make_tokenizer("mistral"), None)
        facts = template_facts(tokenizer)
        ids = {text: tokenizer.convert_tokens_to_ids(text) for text in ("<s>", "</s>")}
        marks = {text: tokenizer.convert_tokens_to_ids(text) for text in ("[INST]", "[/INST]")}
        assert facts == {
            "digest": bytes_digest(tokenizer.chat_template.encode()),
            "date": None,
            "end_of_turn": "</s>",
            "special_tokens": {"bos_token": "<s>", "eos_token": "</s>"},
            "token_ids": ids | marks,
        }
        assert json.loads(json.dumps(facts)) == facts

    def test_the_day(self, make_tokenizer: Make) -> None:
        raw = make_tokenizer("qwen-2.5", template=DATED)
        facts = template_facts(raw)
        assert facts["date"] == "2024-07-26"
        assert facts == template_facts(use_template(raw, None))

    def test_without_a_template(self, make_tokenizer: Make) -> None:
        facts = template_facts(make_tokenizer("mistral", template=None))
        assert facts["digest"] is facts["date"] is facts["end_of_turn"] is None
        assert facts["special_tokens"] == {"bos_token": "<s>", "eos_token": "</s>"}

    def test_a_template_that_wants_more_than_a_question(self, make_tokenizer: Make) -> None:
        picky = "{% if messages | length < 3 %}{{ raise_exception('more') }}{% endif %}" + UNDATED
        facts = template_facts(make_tokenizer("qwen-2.5", template=picky))
        assert facts["digest"]
        assert facts["end_of_turn"] is None

    def test_padding_is_no_part_of_it(self, make_tokenizer: Make) -> None:
        tokenizer = make_tokenizer("mistral")
        before = template_facts(tokenizer)
        tokenizer.pad_token = "[INST]"
        assert template_facts(tokenizer) == before


class TestTravel:
    def save(self, tokenizer: Any, folder: Path) -> None:
        """As the end of a training does."""
        folder.mkdir(exist_ok=True)
        save_template(tokenizer, folder)
        facts = {"format": 1, "chat_template": template_facts(tokenizer)}
        (folder / "rango.json").write_text(json.dumps(facts), encoding="utf-8")

    @pytest.mark.parametrize("style", ["llama-3", "qwen-3", "gemma", "mistral", "phi-3", "marked"])
    def test_what_was_saved_is_used(self, make_tokenizer: Make, tmp_path: Path, style: str) -> None:
        tokenizer = make_tokenizer(style)
        self.save(tokenizer, tmp_path)
        again, differences = load_template(make_tokenizer(style), tmp_path)
        assert differences == []
        assert again.chat_template == tokenizer.chat_template
        assert template_facts(again) == template_facts(tokenizer)
        bare, differences = load_template(make_tokenizer(style, template=None), tmp_path)
        assert differences == []
        assert bare.chat_template == tokenizer.chat_template

    def test_another_template_is_reported_and_the_adapters_used(
        self, make_tokenizer: Make, tmp_path: Path
    ) -> None:
        self.save(use_template(make_tokenizer("qwen-2.5"), "alpaca"), tmp_path)
        base = make_tokenizer("qwen-2.5")
        own = base.chat_template
        again, (difference,) = load_template(base, tmp_path)
        assert again.chat_template == BUILT_IN["alpaca"].text
        assert "is not the base's own; the adapter's is used" in difference
        assert base.chat_template == own

    def test_the_day_travels(self, make_tokenizer: Make, tmp_path: Path) -> None:
        self.save(make_tokenizer("qwen-2.5", template=DATED), tmp_path)
        stored = (tmp_path / TEMPLATE).read_text(encoding="utf-8")
        other_day = stored.replace("2024-07-26", "1999-12-31").replace("'2024'", "'1999'")
        (tmp_path / TEMPLATE).write_text(other_day, encoding="utf-8")
        again, differences = load_template(make_tokenizer("qwen-2.5", template=DATED), tmp_path)
        assert Renderer(again).text([Message("user", "?")]).startswith("1999-07-26 user")
        assert template_facts(again)["date"] == "1999-12-31"
        assert len(differences) == 2  # of the base's own, and of the digest

    def test_a_changed_file_is_reported(self, make_tokenizer: Make, tmp_path: Path) -> None:
        tokenizer = make_tokenizer("qwen-2.5", template=None)
        self.save(use_template(tokenizer, "alpaca"), tmp_path)
        (tmp_path / TEMPLATE).write_text(UNDATED, encoding="utf-8")
        again, (difference,) = load_template(tokenizer, tmp_path)
        assert again.chat_template == UNDATED
        assert "not the template that the adapter was trained with" in difference

    def test_named_tokens_are_those_of_the_training(
        self, make_tokenizer: Make, tmp_path: Path
    ) -> None:
        trained = make_tokenizer("qwen-2.5")
        trained.eos_token = "<|im_end|>"
        trained.bos_token = "<|im_start|>"
        self.save(trained, tmp_path)
        base = make_tokenizer("qwen-2.5")
        again, differences = load_template(base, tmp_path)
        assert (again.bos_token, again.eos_token) == ("<|im_start|>", "<|im_end|>")
        assert (base.bos_token, base.eos_token) == (None, "<|endoftext|>")
        assert len(differences) == 2
        assert "its eos_token is '<|im_end|>', the base's '<|endoftext|>'" in differences[1]
        self.save(make_tokenizer("qwen-2.5"), tmp_path / "other")
        back, differences = load_template(trained, tmp_path / "other")
        assert (back.bos_token, back.eos_token) == (None, "<|endoftext|>")
        assert len(differences) == 2

    def test_tokens_with_other_numbers_are_refused(
        self, make_tokenizer: Make, tmp_path: Path
    ) -> None:
        self.save(make_tokenizer("qwen-2.5"), tmp_path)
        for other in ("llama-3", "phi-3"):
            with pytest.raises(AdapterError, match=r"trained with a tokenizer in which '<\|"):
                load_template(make_tokenizer(other), tmp_path)

    def test_an_adapter_of_another_tool(self, make_tokenizer: Make, tmp_path: Path) -> None:
        base = make_tokenizer("qwen-2.5")
        assert load_template(base, tmp_path) == (base, [])
        (tmp_path / "rango.json").write_text('{"format": 1}', encoding="utf-8")
        assert load_template(base, tmp_path) == (base, [])
        (tmp_path / TEMPLATE).write_text(UNDATED, encoding="utf-8")
        again, differences = load_template(base, tmp_path)
        assert again.chat_template == UNDATED
        assert len(differences) == 1

    def test_the_first_releases_kept_the_text_in_rango_json(
        self, make_tokenizer: Make, tmp_path: Path
    ) -> None:
        for noted in (None, UNDATED):
            facts = json.dumps({"chat_template": noted})
            (tmp_path / "rango.json").write_text(facts, encoding="utf-8")
            again, _ = load_template(make_tokenizer("qwen-2.5", template=None), tmp_path)
            assert again.chat_template == noted

    @pytest.mark.parametrize(
        ("noted", "words"),
        [
            ("[", "not valid JSON"),
            ("[" * 100_000, "not valid JSON"),
            ('{"chat_template": 3}', "chat_template: expected an object, found 3"),
            ('{"chat_template": {"token_ids": [1]}}', "token_ids: malformed"),
            ('{"chat_template": {"token_ids": {"<s>": "1"}}}', "token_ids: malformed"),
            ('{"chat_template": {"special_tokens": {"bos_token": 1}}}', "tokens: malformed"),
            ('{"chat_template": {"token_ids": {"<new>": 3}}}', "'<new>' is token 3"),
        ],
    )
    def test_malformed_facts(
        self, make_tokenizer: Make, tmp_path: Path, noted: str, words: str
    ) -> None:
        (tmp_path / "rango.json").write_text(noted, encoding="utf-8")
        with pytest.raises(AdapterError, match=words):
            load_template(make_tokenizer("qwen-2.5"), tmp_path)

    def test_names_that_no_tokenizer_has_change_nothing(
        self, make_tokenizer: Make, tmp_path: Path
    ) -> None:
        named = {"eos_token": "<|endoftext|>", "chat_template": "x", "__class__": "y"}
        facts = {"chat_template": {"special_tokens": named}}
        (tmp_path / "rango.json").write_text(json.dumps(facts), encoding="utf-8")
        base = make_tokenizer("qwen-2.5")
        assert load_template(base, tmp_path) == (base, [])

    def test_nothing_is_overwritten(self, make_tokenizer: Make, tmp_path: Path) -> None:
        (tmp_path / TEMPLATE).write_text("mine", encoding="utf-8")
        tokenizer = make_tokenizer("qwen-2.5")
        with pytest.raises(OutputExistsError):
            save_template(tokenizer, tmp_path)
        assert save_template(make_tokenizer("qwen-2.5", template=None), tmp_path) is None
        assert (tmp_path / TEMPLATE).read_text(encoding="utf-8") == "mine"
        assert save_template(tokenizer, tmp_path, overwrite=True) == tmp_path / TEMPLATE
        assert (tmp_path / TEMPLATE).read_text(encoding="utf-8") == tokenizer.chat_template

    @settings(max_examples=30)
    @given(st.text(st.characters(exclude_categories=("Cs",))))
    def test_any_text_comes_back_as_it_was(
        self, tmp_path_factory: pytest.TempPathFactory, text: str
    ) -> None:
        tokenizer = BARE
        tokenizer.chat_template = f"x{text}"
        folder = tmp_path_factory.mktemp("adapter")
        save_template(tokenizer, folder)
        again, differences = load_template(tokenizer, folder)
        assert again is tokenizer
        assert differences == []


def test_transformers_renders_the_stored_file_alike(make_tokenizer: Make, tmp_path: Path) -> None:
    """What lies beside the adapter needs nothing of Rango's."""
    tokenizer = make_tokenizer("qwen-2.5", template=DATED)
    save_template(tokenizer, tmp_path)
    turns = [{"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(
        turns, chat_template=(tmp_path / TEMPLATE).read_text(encoding="utf-8"), tokenize=False
    )
    assert text == Renderer(tokenizer).text([Message("user", "Hello")])
