"""Where the answers stand in a rendered conversation, and the day that a template prints."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rango.data.samples import Message
from rango.data.templates import render
from rango.data.templates.dates import DAY, pinned, printed_day
from rango.data.templates.render import Rendered, Renderer, template_of
from rango.errors import DataError, TokenizerError

WRITES_ALL = "{% for m in messages %}{{ m.role + ':' + m.content + '<|im_end|>' }}{% endfor %}"
CUTS_EARLIER = (
    "{% for m in messages %}{{ m.role + ':' }}"
    "{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1] | trim }}"
    "{% endif %}{{ '<|im_end|>' }}{% endfor %}"
)
DATED = "{{ strftime_now('%d %b %Y, %A; %-d/%m/%y %H:%M %j 100%%') }}" + WRITES_ALL

Make = Callable[..., Any]


def conversation(*turns: tuple[str, str]) -> list[Message]:
    return [Message(*turn) for turn in turns]


def learnt(rendered: Rendered) -> list[str]:
    return [rendered.text[turn.begin : turn.end] for turn in rendered.turns]


def test_contents_are_the_messages_own_characters(make_tokenizer: Make) -> None:
    messages = conversation(
        ("system", " Be Paris "), ("user", "Paris"), ("assistant", "Paris"), ("user", "user")
    )
    for style in ("qwen-2.5", "phi-3", "llama-3"):
        rendered = Renderer(make_tokenizer(style)).render(messages)
        found = [(message, rendered.text[a:b].strip()) for message, a, b in rendered.contents]
        assert found == [(i, message.content.strip()) for i, message in enumerate(messages)]
        assert learnt(rendered) == ["Paris"]


def test_reasoning_that_the_template_keeps_only_in_the_last_answer(make_tokenizer: Make) -> None:
    renderer = Renderer(make_tokenizer("qwen-2.5", template=CUTS_EARLIER))
    thought = "<think>hm</think>\n\nMadrid"
    turns = ("user", "?"), ("assistant", thought), ("user", "?"), ("assistant", thought)
    assert learnt(renderer.render(conversation(*turns))) == ["Madrid", thought]
    middle = conversation(*turns, ("user", "<think>not an answer</think>"), ("assistant", "a"))
    with pytest.raises(DataError, match="changes the messages"):
        renderer.render(middle)  # a user's text is cut too, which is no reasoning
    plain = conversation(*turns, ("user", "?"), ("assistant", "a"))
    assert learnt(renderer.render(plain)) == ["Madrid", "Madrid", "a"]


def test_reasoning_of_which_a_part_is_lost_is_refused(make_tokenizer: Make) -> None:
    half = "{% for m in messages %}{{ m.role + ':' + m.content[-9:] + '<|im_end|>' }}{% endfor %}"
    renderer = Renderer(make_tokenizer("qwen-2.5", template=half))
    thought = "<think>hm</think>It is Madrid"
    messages = conversation(
        ("user", "?"), ("assistant", thought), ("user", "?"), ("assistant", "a")
    )
    with pytest.raises(DataError, match=r"changes the messages|drops"):
        renderer.render(messages)


def test_a_generation_prompt_that_opens_the_reasoning(make_tokenizer: Make) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        "{{ '<think>\n' + m.content.split('</think>')[0].split('<think>')[-1].strip() }}"
        "{{ '\n</think>\n\n' + m.content.split('</think>')[-1].strip() }}"
        "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    renderer = Renderer(make_tokenizer("qwen-2.5", template=template))
    answer = "<think>\nhm\n</think>\n\nMadrid"
    rendered = renderer.render(conversation(("user", "?"), ("assistant", answer)))
    (turn,) = rendered.turns
    assert rendered.text[turn.start : turn.end] == "hm\n</think>\n\nMadrid"
    assert turn.begin == turn.start  # what the prompt holds is not for the model to write


def test_a_dropped_message_is_named(make_tokenizer: Make) -> None:
    template = WRITES_ALL.replace("m.role +", "'' if m.role == 'system' else m.role +")
    renderer = Renderer(make_tokenizer("qwen-2.5", template=template))
    turns = ("user", "Hi"), ("assistant", "Paris")
    with pytest.raises(DataError, match=r"drops messages\[0\] \(system\)"):
        renderer.render(conversation(("system", "Be Paris"), *turns))
    assert learnt(renderer.render(conversation(("system", " "), *turns))) == ["Paris"]


def test_a_template_that_looks_whether_there_is_a_system_message(make_tokenizer: Make) -> None:
    template = "{% if messages[0].content %}{{ 'SYSTEM ' }}{% endif %}" + WRITES_ALL
    renderer = Renderer(make_tokenizer("qwen-2.5", template=template))
    for system in ("", "Be Paris"):
        turns = ("system", system), ("user", "Hi"), ("assistant", "Paris")
        assert learnt(renderer.render(conversation(*turns))) == ["Paris"]


def test_results_of_tools_as_json(make_tokenizer: Make) -> None:
    template = (
        "{% for m in messages %}{{ m.role + ':' }}"
        "{{ m.content | tojson if m.role == 'tool' else m.content }}{{ '<|im_end|>' }}{% endfor %}"
    )
    renderer = Renderer(make_tokenizer("qwen-2.5", template=template))
    turns = ("user", "?"), ("assistant", "look"), ("tool", '"21"\n\tº'), ("assistant", "21")
    assert learnt(renderer.render(conversation(*turns))) == ["look", "21"]


def test_few_skeletons_are_kept(make_tokenizer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_SKELETONS", 3)
    renderer = Renderer(make_tokenizer("qwen-2.5"))
    for count in range(1, 9):
        turns = [("user", "Hi"), ("assistant", "Paris")] * count
        assert learnt(renderer.render(conversation(*turns))) == ["Paris"] * count
        assert len(renderer._skeletons) <= 3


def test_a_template_that_divides_by_zero_is_a_refusal(make_tokenizer: Make) -> None:
    renderer = Renderer(make_tokenizer("qwen-2.5", template="{{ 1 // 0 }}"))
    with pytest.raises(DataError, match="refuses the conversation"):
        renderer.render(conversation(("user", "Hi"), ("assistant", "Paris")))


class TestSeveralTemplates:
    def test_the_default_is_used(self, make_tokenizer: Make) -> None:
        tokenizer = make_tokenizer("qwen-2.5")
        tokenizer.chat_template = {"tool_use": "{{ nothing() }}", "default": WRITES_ALL}
        assert template_of(tokenizer) == WRITES_ALL
        assert Renderer(tokenizer).text(conversation(("user", "Hi"))) == "user:Hi<|im_end|>"

    def test_without_a_default_they_are_named(self, make_tokenizer: Make) -> None:
        tokenizer = make_tokenizer("qwen-2.5")
        tokenizer.chat_template = {"tool_use": WRITES_ALL, "rag": WRITES_ALL}
        with pytest.raises(TokenizerError, match=r"tool_use, rag.*data\.chat_template"):
            Renderer(tokenizer)


def test_without_a_template_the_built_in_ones_are_named(make_tokenizer: Make) -> None:
    with pytest.raises(TokenizerError, match=r"data\.chat_template.*alpaca, chatml, gemma, llama3"):
        Renderer(make_tokenizer("qwen-2.5", template=None))
    assert template_of(make_tokenizer("qwen-2.5", template=None)) is None


class TestDates:
    def test_every_format_prints_the_day(self, make_tokenizer: Make) -> None:
        text = Renderer(make_tokenizer("qwen-2.5", template=DATED)).text(
            conversation(("user", "Hi"))
        )
        assert text == "26 Jul 2024, Friday; 26/07/24 00:00 208 100%user:Hi<|im_end|>"

    @given(st.lists(st.sampled_from([*"aAbBdmyYHIMSpjUW", "-d", "-m"]), max_size=6))
    def test_as_strftime(self, make_tokenizer: Make, codes: list[str]) -> None:
        format = " and ".join(f"%{code}" for code in codes)
        template = f"{{{{ strftime_now('{format}') }}}}"
        text = Renderer(make_tokenizer("qwen-2.5", template=template)).text(
            conversation(("user", "Hi"))
        )
        assert text == DAY.strftime(format)

    def test_inside_blocks_and_macros(self, make_tokenizer: Make) -> None:
        template = (
            "{%- macro today() %}{% if strftime_now is defined %}"
            "{{ strftime_now('%Y') }}{% endif %}{% endmacro %}"
            "{% for m in messages %}{% if true %}{% set day = today() %}{{ day }}"
            "{{ strftime_now(format='%m') }}{% endif %}{% endfor %}"
        )
        text = Renderer(make_tokenizer("qwen-2.5", template=template)).text(
            conversation(("user", "Hi"))
        )
        assert text == "202407"

    @pytest.mark.parametrize(
        "beginning", ["\n  {%- if true %}", "\n\n  {% if true %}", "  {% if 1 %}"]
    )
    def test_the_rest_of_the_template_is_unchanged(
        self, make_tokenizer: Make, beginning: str
    ) -> None:
        body = beginning + "\n  {{ 'x' }}\n  {% endif %}\n{# {{ strftime_now }} #}\n\ny"
        undated = body.replace("strftime_now", "other")
        texts = [
            Renderer(make_tokenizer("qwen-2.5", template=template)).text(
                conversation(("user", "Hi"))
            )
            for template in (body, undated)
        ]
        assert texts[0] == texts[1]

    def test_markers_stand_where_they_did(self, make_tokenizer: Make) -> None:
        template = (
            "{{ strftime_now('%Y') }}{% for m in messages %}{% if m.role == 'assistant' %}"
            "{% generation %}{{ ' ' + m.content + '<|im_end|>' }}{% endgeneration %}"
            "{% else %}{{ m.content }}{% endif %}{% endfor %}"
        )
        rendered = Renderer(make_tokenizer("qwen-2.5", template=template)).render(
            conversation(("user", "Hi"), ("assistant", "Paris"))
        )
        (turn,) = rendered.turns
        assert rendered.text[turn.start : turn.marked] == " Paris<|im_end|>"

    def test_only_templates_that_ask_are_fixed_and_only_once(self) -> None:
        assert pinned(WRITES_ALL) == WRITES_ALL
        assert printed_day(pinned(WRITES_ALL)) is None
        once = pinned(DATED)
        assert pinned(once, datetime(1999, 1, 1)) == once
        assert once.endswith(f"\n{DATED}")
        assert printed_day(once) == "2024-07-26"
        assert printed_day(pinned(DATED, datetime(1999, 12, 31))) == "1999-12-31"
