"""The prompts of a file, as `rango generate --file` takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rango.cli.generate import GenerateOptions, _prompts
from rango.data.samples import Message
from rango.errors import ConfigError


def test_a_file_with_other_names(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text('{"question": "Why?", "reply": "So."}\n{"question": "And?", "reply": "No."}\n')
    options = GenerateOptions(file=str(path), columns="prompt=question,completion=reply")
    assert _prompts(options, raw=False) == ["Why?", "And?"]
    with pytest.raises(ConfigError, match="OURS=THEIRS"):
        _prompts(GenerateOptions(file=str(path), columns="question"), raw=False)


def test_a_labelled_text_is_itself_the_prompt(tmp_path: Path) -> None:
    path = tmp_path / "labelled.jsonl"
    path.write_text('{"text": "A fine day.", "label": "good"}\n')
    assert _prompts(GenerateOptions(file=str(path)), raw=True) == ["A fine day."]
    asked = _prompts(GenerateOptions(file=str(path)), raw=False)
    assert asked == [[Message("user", "A fine day.")]]
