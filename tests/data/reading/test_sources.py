"""What may be named as data: files, folders, globs, standard input, the Hub."""

from __future__ import annotations

import gzip
import io
import sys
from typing import Any

import pytest

from rango.data.reading.read import read_examples
from rango.data.reading.sources import HubSet, StandardInput, described, resolve
from rango.errors import DataError


def line(words: str) -> str:
    return f'{{"text": "{words}"}}\n'


def read(source: Any, **options: Any) -> list[str]:
    return [example.messages[0].content for example in read_examples(source, **options)]


def refused(source: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_examples(source, **options)
    return str(caught.value)


def test_a_folder_is_its_data_files_in_order(write, tmp_path):
    write(line("b"), "set/b.jsonl")
    write(f"[{line('a')}]", "set/a.json")
    write("text,label\nd,1\n", "set/more/d.csv")
    write(gzip.compress(line("c").encode()), "set/c.jsonl.gz")
    for name in (".hidden.jsonl", ".git/x.jsonl", "README.md", "LICENSE"):
        write("no data", f"set/{name}")
    assert read(tmp_path / "set") == ["a", "b", "c", "d"]
    assert read(str(tmp_path / "set")) == ["a", "b", "c", "d"]


def test_a_folder_with_other_files_names_them(write, tmp_path):
    write(line("a"), "set/a.jsonl")
    write("x", "set/notes.docx")
    write("x", "set/deep/model.bin")
    message = refused(tmp_path / "set")
    assert "deep/model.bin, notes.docx" in message
    assert ".jsonl" in message
    (tmp_path / "set/deep/model.bin").unlink()
    (tmp_path / "set/notes.docx").unlink()
    (tmp_path / "set/linked").symlink_to(tmp_path)
    assert "linked/ (a link)" in refused(tmp_path / "set")


def test_a_folder_without_data(tmp_path):
    assert "a folder without data" in refused(tmp_path)


def test_a_glob_is_its_matches_in_order(write, tmp_path):
    for name in ("b", "a", "c"):
        write(line(name), f"part-{name}.jsonl")
    write("no data", "notes.bin")
    assert read(str(tmp_path / "part-[ab].*")) == ["a", "b"]
    write(line("d"), "deep/er/d.jsonl")
    assert read(str(tmp_path / "**/*.jsonl")) == ["d", "a", "b", "c"]
    assert "no file matches" in refused(str(tmp_path / "q*.jsonl"))


def test_a_file_may_have_the_name_of_a_glob(write):
    assert read(str(write(line("a"), "part[1].jsonl"))) == ["a"]


def test_a_list_is_read_in_its_own_order(write, tmp_path):
    first, second = write(line("a"), "z.jsonl"), write("b\n", "y.txt")
    assert read([first, str(second), str(tmp_path / "z*")]) == ["a", "b", "a"]
    assert "no data was named" in refused([])
    assert "empty" in refused("")


def test_standard_input(monkeypatch):
    def feed(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    feed(f"{line('a')}{line('b')}".encode())
    found = read_examples("-")
    assert [str(example.origin) for example in found] == ["<stdin>:1", "<stdin>:2"]
    feed(gzip.compress(f"[{line('c')}]".encode()))
    assert read("-") == ["c"]
    feed(b"text;label\nd;1\n")
    assert read(["-"]) == ["d"]
    feed(b"")
    assert "<stdin>: no samples" in refused("-")
    feed(b"Some plain text.\n")
    assert "Plain text needs a name" in refused("-")
    feed(b"PAR1....PAR1")
    assert "not from standard input" in refused("-")
    monkeypatch.setattr(sys, "stdin", None)
    assert "no standard input" in refused("-")


def test_gzip_cut_short_gives_a_beginning_and_a_fault(write):
    content = gzip.compress("".join(line(str(i)) for i in range(50)).encode())
    for length in range(1, len(content)):
        message = refused(write(content[:length], "a.jsonl.gz"))
        assert "a.jsonl.gz" in message
    assert len(read(write(content, "a.jsonl.gz"))) == 50
    assert "damaged gzip" in refused(write(content[:-9] + b"xxxxxxxxx", "a.jsonl.gz"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04rest", "ZIP archive or an Excel workbook"),
        (b"\xfd7zXZ\0rest", "xz"),
        (b"BZh91AY&SY", "bzip2"),
        (b"\x28\xb5\x2f\xfdrest", "zstd"),
        (b"FEA1rest", "Feather of version 1"),
    ],
)
def test_what_is_packed_otherwise_is_named(write, content, words):
    assert words in refused(write(content))


def test_unreadable_files(write, tmp_path):
    path = write(line("a"))
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        assert "cannot be read" in refused(path)
    path.chmod(0o600)
    assert "no such file" in refused(path / "inner.jsonl")
    (tmp_path / "broken.jsonl").symlink_to(tmp_path / "nowhere")
    assert "no such file" in refused(tmp_path / "broken.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    assert "cannot be read" in refused(tmp_path / "loop.jsonl")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("imdb", HubSet("imdb")),
        ("owner/name", HubSet("owner/name")),
        ("owner/name:test", HubSet("owner/name", None, "test")),
        ("owner/name/main:test", HubSet("owner/name", "main", "test")),
        ("o-w/n.a_me", HubSet("o-w/n.a_me")),
    ],
)
def test_names_of_the_hub(name, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve(name) == [found]


@pytest.mark.parametrize(
    "name", ["./imdb", "/imdb", "../a/b", "data/train.jsonl", "train.CSV.gz", "a b", "a/b/c/d"]
)
def test_names_that_are_only_paths(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        resolve(name)


def test_what_is_here_wins_over_the_hub(write, tmp_path, monkeypatch):
    write(line("a"), "owner/name/a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert read("owner/name") == ["a"]


class Library:
    """Stands in for `datasets`."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.asked: list[Any] = []

    def load_dataset(self, name: str, config: str | None, **options: Any) -> Any:
        self.asked.append((name, config, options))
        if isinstance(self.rows, Exception):
            raise self.rows
        return self.rows


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    library = Library([{"q": "a", "text": 1}, {"q": "b"}])
    monkeypatch.setitem(sys.modules, "datasets", library)
    found = read_examples("owner/name/main:test", columns={"text": "q"})
    assert [str(example.origin) for example in found] == [
        "owner/name/main:test:1",
        "owner/name/main:test:2",
    ]
    assert library.asked == [("owner/name", "main", {"split": "test", "streaming": True})]
    assert "owner/name:train:1: " in refused("owner/name")


def test_what_the_hub_cannot_give(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", Library(RuntimeError("no network")))
    message = refused("owner/name")
    for words in ("no file, folder or glob", "data set of the Hub", "no network"):
        assert words in message

    def broken() -> Any:
        yield {"text": "a"}
        raise OSError("cut off")

    monkeypatch.setitem(sys.modules, "datasets", Library(broken()))
    assert "owner/name:train:2: the Hub's data ends here: cut off" in refused("owner/name")
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = refused("owner/name")
    assert "no file, folder or glob" in message
    assert "rango[data]" in message


def test_how_sources_are_called():
    assert described("-") == str(StandardInput()) == "<stdin>"
    assert described(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert str(HubSet("a/b", "c", "d")) == "a/b/c:d"
