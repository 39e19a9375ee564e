"""From files to samples, and the text that forgetting is measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from rango.base.tokenizer import load_tokenizer
from rango.data.config import DataConfig
from rango.data.reading import read
from rango.data.samples import Example, Origin
from rango.data.split import HeldOut
from rango.errors import ConfigError, DataError
from rango.training.prepare import GENERAL_SAMPLES, prepare_samples, prompts_of


@pytest.fixture
def tokenizer(base_folder: Path) -> Any:
    return load_tokenizer(str(base_folder))


def test_a_share_is_held_out(data_file: Path, tokenizer: Any) -> None:
    found = prepare_samples(DataConfig(str(data_file), valid_share=0.25), tokenizer)
    assert len(found.train.samples) + len(found.valid) == 40
    assert 0 < len(found.valid) < 20
    facts = found.facts(DataConfig(str(data_file)))
    assert facts["train_samples"] == len(found.train.samples)
    assert facts["digest"] == found.digest


def test_a_file_of_its_own_is_held_out_whole(
    data_file: Path, make_data: Callable[..., Path], tokenizer: Any
) -> None:
    valid = make_data("valid.jsonl", range(40, 45))
    found = prepare_samples(DataConfig(str(data_file), valid=str(valid)), tokenizer)
    assert (len(found.train.samples), len(found.valid)) == (40, 5)
    other = prepare_samples(
        DataConfig(str(data_file), valid=str(make_data("v.jsonl", range(41, 46)))), tokenizer
    )
    assert found.digest != other.digest
    assert found.train.digest == other.train.digest


def test_bad_entries_are_left_out_and_noted_once(data_file: Path, tokenizer: Any) -> None:
    lines = data_file.read_text(encoding="utf-8").splitlines()
    lines.insert(3, '{"messages": [')
    lines.insert(9, '{"messages": [{"role": "user", "content": "only a question"}]}')
    data_file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match="malformed JSON"):
        prepare_samples(DataConfig(str(data_file)), tokenizer)
    config = DataConfig(str(data_file), valid_share=0.25, skip_bad=True)
    found = prepare_samples(config, tokenizer)
    assert len(found.train.samples) + len(found.valid) == 40
    assert [fault.split(": ")[0] for fault in found.bad] == [f"{data_file}:4", f"{data_file}:10"]
    assert found.facts(config)["bad"] == 2


def test_what_can_be_read_only_once(
    data_file: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepare_samples(DataConfig(str(data_file), valid_share=0.25), tokenizer)
    with open(data_file, encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        found = prepare_samples(DataConfig("-", valid_share=0.25), tokenizer)
    assert found.digest == expected.digest


def test_groups_and_a_file_contradict(data_file: Path, tokenizer: Any) -> None:
    config = DataConfig(str(data_file), valid=str(data_file), group_column="customer")
    with pytest.raises(ConfigError, match="group_column"):
        prepare_samples(config, tokenizer)


def test_nothing_is_held_out_on_request(data_file: Path, tokenizer: Any) -> None:
    found = prepare_samples(DataConfig(str(data_file), valid_share=0.0), tokenizer)
    assert not found.valid
    assert not found.general


@pytest.mark.parametrize("options", [{"loss_on": "all"}, {"general": "general.txt"}])
@pytest.mark.parametrize("apart", [False, True])
def test_what_says_nothing_to_a_classifier_is_refused_before_the_work(
    tmp_path: Path, options: dict[str, Any], apart: bool
) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text,label\none,a\ntwo,b\n", encoding="utf-8")
    config = DataConfig(str(path), valid=str(path) if apart else None, **options)
    with pytest.raises(ConfigError, match="leave it out"):
        prepare_samples(config, None)  # nothing is tokenized


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_prompts_end_where_the_first_answer_begins(
    data_file: Path, tokenizer: Any, loss_on: Literal["completion", "all"]
) -> None:
    config = DataConfig(str(data_file), valid_share=0.5, loss_on=loss_on)
    found = prepare_samples(config, tokenizer)
    assert found.general_on == "the prompts of the held-out samples"
    for prompt, sample in zip(prompts_of(found.valid), found.valid, strict=True):
        length = len(prompt)
        assert prompt.input_ids == sample.input_ids[:length]
        assert sample.content[length]
        assert not any(sample.content[:length])
        assert prompt.supervised == (False, *[True] * (length - 1))


def test_prompts_are_not_too_many(make_samples: Callable[..., Any]) -> None:
    assert len(prompts_of(make_samples(GENERAL_SAMPLES + 5))) == GENERAL_SAMPLES


def test_plain_text_has_no_prompt_and_serves_whole(tmp_path: Path, tokenizer: Any) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"one two three {word}" for word in ("four", "five", "six")))
    found = prepare_samples(DataConfig(str(text), valid_share=0.4), tokenizer)
    assert prompts_of(found.valid) == found.valid


def refuse(*_args: Any, **_options: Any) -> Any:
    raise AssertionError("the data were read or tokenized again")


def seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no more than a file's first entry can be read, and nothing tokenized."""
    parse = read.parse_entry

    def first_only(entry: Any, kind: Any, origin: Origin, *others: Any) -> Example:
        return parse(entry, kind, origin, *others) if origin.line == 1 else refuse()

    monkeypatch.setattr("rango.data.tokens.chunk.Encoder.encode", refuse)
    monkeypatch.setattr("rango.training.prepare.HeldOut", refuse)
    monkeypatch.setattr(read, "parse_entry", first_only)


@pytest.fixture
def kept(data_file: Path, tmp_path: Path) -> DataConfig:
    return DataConfig(
        str(data_file),
        general=str(data_file),
        valid_share=0.25,
        cache=str(tmp_path / "kept"),
    )


def test_kept_samples_are_neither_read_nor_tokenized_again(
    kept: DataConfig, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_samples(kept, tokenizer)
    assert first == prepare_samples(replace(kept, cache=False), tokenizer)
    seal(monkeypatch)
    assert prepare_samples(kept, tokenizer) == first
    assert prepare_samples(replace(kept, cache_gb=1.0), tokenizer) == first


def test_held_out_files_are_kept_too(
    kept: DataConfig, make_data: Callable[..., Path], tokenizer: Any, monkeypatch: Any
) -> None:
    config = replace(kept, valid=str(make_data("valid.jsonl", range(40, 45))))
    first = prepare_samples(config, tokenizer)
    seal(monkeypatch)
    assert prepare_samples(config, tokenizer) == first


@pytest.mark.parametrize(
    "change",
    [
        {"valid_share": 0.5},
        {"max_length": 40},
        {"loss_on": "all"},
        {"columns": {"messages": "messages"}},
        {"group_column": "customer"},
        {"skip_bad": True},
    ],
)
def test_whatever_decides_is_asked_for_anew(
    kept: DataConfig,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    prepare_samples(kept, tokenizer)
    seal(monkeypatch)
    with pytest.raises((AssertionError, DataError), match=r"again|no column"):
        prepare_samples(replace(kept, **change), tokenizer)


def test_a_changed_file_is_read_again(
    kept: DataConfig, data_file: Path, make_data: Callable[..., Path], tokenizer: Any
) -> None:
    first = prepare_samples(kept, tokenizer)
    make_data(data_file.name, range(41))
    second = prepare_samples(kept, tokenizer)
    assert len(second.train.samples) + len(second.valid) == 41
    assert second.digest != first.digest


def test_data_that_change_while_they_are_read_are_not_kept(
    kept: DataConfig, data_file: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rango.training import prepare

    def grown(*arguments: Any) -> Any:
        with data_file.open("a", encoding="utf-8") as file:
            file.write("\n")
        return HeldOut(*arguments)

    monkeypatch.setattr(prepare, "HeldOut", grown)
    alone = replace(kept, general=None)
    prepare_samples(alone, tokenizer)
    assert kept_names(alone) == []


@pytest.mark.parametrize("change", [{"skip_bad": True}, {"cache": False}])
def test_what_is_not_to_be_kept(kept: DataConfig, tokenizer: Any, change: dict[str, Any]) -> None:
    prepare_samples(replace(kept, **change), tokenizer)
    assert kept_names(kept) == []


def test_where_nothing_can_be_held_out(tmp_path: Path, tokenizer: Any) -> None:
    text = tmp_path / "one.txt"
    text.write_text("one two three", encoding="utf-8")
    config = DataConfig(str(text), cache=str(tmp_path / "kept"))
    for _ in range(2):
        found = prepare_samples(config, tokenizer)
        assert (len(found.train.samples), len(found.valid)) == (1, 0)
    assert len(kept_names(config)) == 1


def kept_names(config: DataConfig) -> list[str]:
    return [path.name for path in Path(str(config.cache)).glob("[0-9a-f]*")]
