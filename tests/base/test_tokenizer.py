from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rango.base.tokenizer import load_tokenizer
from rango.errors import TokenizerError


@pytest.fixture
def write(tmp_path):
    def _write(**special: str) -> Path:
        words = ["<pad>", "<end>", "[SEP]", "[UNK]", "one", "two"]
        core = Tokenizer(
            models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
        )
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(tmp_path)
        return tmp_path

    return _write


def test_is_read(write):
    tokenizer = load_tokenizer(write(eos_token="<end>", pad_token="<pad>"))
    assert tokenizer("one two")["input_ids"] == [4, 5]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0)


def test_a_missing_pad_token_is_the_end_token_on_the_object_only(write):
    folder = write(eos_token="<end>")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    assert len(tokenizer) == 6
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_encoders_separator_is_its_end(write):
    assert load_tokenizer(write(sep_token="[SEP]")).pad_token == "[SEP]"


def test_no_end_token(write):
    with pytest.raises(TokenizerError, match=r'has no end token.*"eos_token" in tokenizer_config'):
        load_tokenizer(write(pad_token="<pad>"))


def test_no_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer: expected tokenizer.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="no such folder"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_damaged_tokenizer(write):
    folder = write(eos_token="<end>")
    (folder / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_tokenizer(folder)


def test_code_of_a_checkpoint_is_not_run(write):
    folder = write(eos_token="<end>")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", None]}
    path.write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    assert load_tokenizer(folder)("one")["input_ids"] == [4]
