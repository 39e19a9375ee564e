"""Jobs as they are written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from rango.errors import ConfigError, DataError
from rango.training.many.files import overlaid, read_many

LINE = '{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("data/ann.jsonl", "data/bob.csv", "special.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LINE)
    (tmp_path / "base").mkdir()
    return tmp_path


def write(home: Path, text: str) -> Path:
    path = home / "many.yaml"
    path.write_text(text)
    return path


def test_a_folder_of_data_is_a_job_for_each_file(home: Path) -> None:
    assert read_many(home / "data") == {
        "jobs": [
            {"name": "ann", "data": {"train": str(home / "data/ann.jsonl")}},
            {"name": "bob", "data": {"train": str(home / "data/bob.csv")}},
        ]
    }


def test_defaults_are_every_jobs_and_what_a_job_says_wins(home: Path) -> None:
    path = write(
        home,
        """
base: {model: base, quantize: nf4}
rows: 4
defaults:
  adapter: {r: 8, lora_alpha: 4}
  data: {valid: special.jsonl}
customers: data/*.jsonl
jobs:
  - {name: special, data: {train: special.jsonl}, adapter: {r: 2}}
""",
    )
    for named in (path, home):  # the folder has a many.yaml
        values = read_many(named)
        assert values["base"] == {"model": str(home / "base"), "quantize": "nf4"}
        assert values["rows"] == 4
        valid = str(home / "special.jsonl")
        assert values["jobs"] == [
            {
                "name": "ann",
                "adapter": {"r": 8, "lora_alpha": 4},
                "data": {"train": str(home / "data/ann.jsonl"), "valid": valid},
            },
            {
                "name": "special",
                "adapter": {"r": 2, "lora_alpha": 4},
                "data": {"train": valid, "valid": valid},
            },
        ]


def test_only_what_lies_beside_the_file_is_a_path(home: Path) -> None:
    (home / "chat.jinja").write_text("x")
    path = write(
        home,
        """
jobs:
  - {name: a, data: {train: owner/name, chat_template: chatml}}
  - {name: b, data: {train: special.jsonl, chat_template: chat.jinja}}
""",
    )
    first, second = (job["data"] for job in read_many(path)["jobs"])
    assert first == {"train": "owner/name", "chat_template": "chatml"}
    assert second["chat_template"] == str(home / "chat.jinja")


def test_name_stands_for_the_jobs_name(home: Path) -> None:
    (home / "heldout").mkdir()
    for name in ("ann", "special"):
        (home / f"heldout/{name}.jsonl").write_text(LINE)
    path = write(
        home,
        """
defaults: {data: {valid: "heldout/{name}.jsonl", chat_template: chatml}}
customers: data/*
jobs:
  - {name: special, data: {train: "{name}.jsonl"}}
  - {name: other, data: {train: special.jsonl, valid: special.jsonl}}
""",
    )
    data = {job["name"]: job["data"] for job in read_many(path)["jobs"]}
    for name in ("ann", "bob", "special"):  # bob has none, and is to be told so
        assert data[name]["valid"] == str(home / f"heldout/{name}.jsonl")
        assert data[name]["chat_template"] == "chatml"
    assert data["special"]["train"] == data["other"]["valid"] == str(home / "special.jsonl")


def test_a_name_of_the_hub_stays(home: Path) -> None:
    path = write(home, "base: {model: org/model}\njobs: [{name: a, data: {train: special.jsonl}}]")
    assert read_many(path)["base"]["model"] == "org/model"


def test_the_base_is_named_by_a_plain_path_unless_a_link_makes_it_another(home: Path) -> None:
    text = "base: {model: ../base}\njobs: [{name: a, data: {train: x.jsonl}}]"
    (home / "jobs").mkdir()
    write(home / "jobs", text)
    assert read_many(home / "jobs")["base"]["model"] == str(home / "base")
    (home / "far" / "jobs").mkdir(parents=True)
    (home / "far" / "base").mkdir()
    write(home / "far" / "jobs", text)
    (home / "link").symlink_to(home / "far" / "jobs")
    found = read_many(home / "link")["base"]["model"]
    assert Path(found).samefile(home / "far" / "base")
    assert not Path(found).samefile(home / "base")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rowss: 4", "unknown key 'rowss'; nearest: rows"),
        ("defaults: {traning: {}}", r"defaults\.unknown key 'traning'; nearest: training"),
        ("jobs: [{nam: a}]", "job 1: unknown key 'nam'; nearest: name"),
        ("jobs: {a: 1}", "jobs: expected a list, found dict"),
        ("jobs: [3]", "job 1: expected keys and values, found 3"),
        ("- 3", "the file: expected keys and values"),
        ("a: [", "not YAML"),
        ("defaults: 3", "defaults: expected keys and values"),
        ("jobs: [{name: a, data: x.jsonl}]", "data: expected keys and values"),
    ],
)
def test_what_is_not_known(home: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        read_many(write(home, text))


def test_nothing_there(home: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_many(home / "none.yaml")
    with pytest.raises(DataError, match="no file matches"):
        read_many(write(home, "customers: nobody/*.jsonl"))
    with pytest.raises(DataError):
        read_many(home / "base")


def test_overlaid_keeps_both() -> None:
    under = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert overlaid(under, {"a": {"c": {"d": 4}, "f": 5}}) == {
        "a": {"b": 1, "c": {"d": 4}, "f": 5},
        "e": 3,
    }
    assert under["a"]["c"] == {"d": 2}
