"""A cleaned copy and its log: together they are all there was, and the original stays."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rango.data.audit.result import Audit, Diversity, Dropped, Lengths
from rango.data.check import ENTRIES, FILES, check
from rango.data.fix import Fixed, refuse_fix, write_fixed
from rango.data.reading.read import read_examples
from rango.data.reading.stream import HEAD
from rango.data.samples import Origin
from rango.errors import ConfigError, DataError, OutputExistsError

COPY = "exact duplicates"


def found(samples: int, *dropped: tuple[Path, int, str]) -> Audit:
    """An audit that says what to leave out, and nothing else that matters here."""
    return Audit(
        source="data",
        samples=samples,
        formats=(),
        lengths=Lengths("characters", 0, 0, 0, 0.0, {}, ()),
        languages=(),
        labels=(),
        diversity=Diversity(1.0, 1.0, 0, 0),
        findings=(),
        dropped=tuple(Dropped(Origin(str(p), n), check, f"for {n}") for p, n, check in dropped),
    )


def logged(fixed: Fixed) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(fixed.log).read_text().splitlines()]


def pair(number: int) -> str:
    entry = {"prompt": f"Question {number}", "completion": f"Answer {number}", "id": number}
    return json.dumps(entry)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(content: str | bytes, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


ENTRY = st.tuples(
    st.sampled_from(["keep", "drop", "broken", "blank"]), st.text(max_size=20), st.booleans()
)


@given(
    entries=st.lists(ENTRY, max_size=12),
    end=st.sampled_from(["\n", "\r\n"]),
    marked=st.booleans(),
    ended=st.booleans(),
)
@settings(max_examples=60)
def test_copy_and_log_are_all_there_was(
    entries: list[tuple[str, str, bool]], end: str, marked: bool, ended: bool
) -> None:
    """Whatever the lines: kept + left out = all, byte for byte and in their order."""
    lines = []
    for number, (kind, text, escaped) in enumerate(entries, 1):
        line = json.dumps({"text": f"{number} of a few lines: {text}"}, ensure_ascii=escaped)
        lines.append({"broken": line[:-1], "blank": " " * (number % 3)}.get(kind, line) + end)
    if lines and not ended:
        lines[-1] = lines[-1].removesuffix(end)
    kinds = [kind for kind, _, _ in entries]
    if lines and marked:
        lines[0] = "\ufeff" + lines[0]
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "data.jsonl"), Path(folder, "out.jsonl")
        path.write_bytes("".join(lines).encode())
        reasons = {"drop": COPY, "broken": ENTRIES}
        dropped = [(path, n, reasons[k]) for n, k in enumerate(kinds, 1) if k in reasons]
        audit = found(kinds.count("keep") + kinds.count("drop"), *dropped)
        if "keep" not in kinds:
            with pytest.raises(DataError, match="no sample would be left"):
                write_fixed(path, audit, out)
            assert [entry.name for entry in Path(folder).iterdir()] == ["data.jsonl"]
            return
        fixed = write_fixed(path, audit, out)
        kept = [line for line, kind in zip(lines, kinds, strict=True) if kind not in reasons]
        assert out.read_bytes() == "".join(kept).encode()
        assert [(entry["line"], entry["check"]) for entry in logged(fixed)] == [
            (n, check) for _, n, check in dropped
        ]
        assert fixed.kept + fixed.dropped == len(lines) - kinds.count("blank")
        assert path.read_bytes() == "".join(lines).encode()


@given(numbers=st.lists(st.integers(0, 6), min_size=1, max_size=14), seed=st.integers(0, 3))
@settings(max_examples=12)
def test_what_check_finds_is_what_goes(numbers: list[int], seed: int) -> None:
    """With the real audit: copies and broken lines go, the first of each stays, in order."""
    lines = [pair(n) if n else '{"prompt" and nothing more}' for n in numbers]
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "data.jsonl"), Path(folder, "out.jsonl")
        path.write_text("\n".join(lines))
        if not any(numbers):
            with pytest.raises(DataError):
                write_fixed(path, check(path), out)
            return
        fixed = write_fixed(path, check(path), out)
        kept = [line.rstrip("\n") for line in out.read_text().splitlines()]
        assert kept == list(dict.fromkeys(pair(n) for n in numbers if n))
        assert fixed.kept + fixed.dropped == len(lines)
        again = {finding.check for finding in check(out).findings}
        assert not again & {COPY, ENTRIES}


def test_the_log_says_where_and_why(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(f"{pair(1)}\n{pair(1)}\nbad\n")
    fixed = write_fixed(path, found(2, (path, 2, COPY), (path, 3, ENTRIES)), tmp_path / "a.jsonl")
    assert fixed == Fixed(str(tmp_path / "a.jsonl"), str(tmp_path / "a.jsonl.dropped.jsonl"), 1, 2)
    assert logged(fixed) == [
        {"file": str(path), "line": 2, "check": COPY, "reason": "for 2"},
        {"file": str(path), "line": 3, "check": ENTRIES, "reason": "for 3"},
    ]


def test_what_is_held_out_is_not_this_source(write: Callable[..., Path], tmp_path: Path) -> None:
    path, other = write(f"{pair(1)}\n"), write(f"{pair(1)}\n", "valid.jsonl")
    fixed = write_fixed(path, found(1, (other, 1, ENTRIES)), tmp_path / "a.jsonl")
    assert (fixed.kept, fixed.dropped) == (1, 0)


def test_nothing_is_overwritten(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(f"{pair(1)}\n")
    out = write("precious", "out.jsonl")
    with pytest.raises(OutputExistsError):
        write_fixed(path, found(1), out)
    assert out.read_text() == "precious"
    log = write("precious", "new.jsonl.dropped.jsonl")
    with pytest.raises(OutputExistsError):
        refuse_fix(path, tmp_path / "new.jsonl")
    with pytest.raises(OutputExistsError):
        write_fixed(path, found(1), tmp_path / "new.jsonl")
    assert log.read_text() == "precious"
    with pytest.raises(OutputExistsError):
        write_fixed(path, found(1), path)
    assert path.read_text() == f"{pair(1)}\n"


@pytest.mark.parametrize("after", ["shorter", "longer", "another line"])
def test_a_source_that_changed_is_refused(
    write: Callable[..., Path], tmp_path: Path, after: str
) -> None:
    path = write(f"{pair(1)}\n{pair(2)}\n{pair(2)}\n")
    audit = found(3, (path, 3, COPY))
    changed = {
        "shorter": f"{pair(1)}\n{pair(2)}\n",
        "longer": f"{pair(1)}\n{pair(2)}\n{pair(2)}\n{pair(4)}\n",
        "another line": f"{pair(1)}\n{pair(2)}\n\n{pair(2)}\n",
    }
    path.write_text(changed[after])
    with pytest.raises(DataError, match="changed since it was checked"):
        write_fixed(path, audit, tmp_path / "out.jsonl")
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_list_becomes_lines(write: Callable[..., Path], tmp_path: Path) -> None:
    entries = [{"text": f"ñ {n}", "other": [n, None, True]} for n in range(4)]
    path = write(json.dumps(entries, indent=1, ensure_ascii=False), "train.json")
    lines = [example.origin.line for example in read_examples(path)]
    fixed = write_fixed(path, found(4, (path, lines[2], COPY)), tmp_path / "out.json")
    written = (tmp_path / "out.json").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in written] == [entries[0], entries[1], entries[3]]
    assert "ñ" in written[0]
    assert fixed.dropped == 1
    assert len(read_examples(tmp_path / "out.json")) == 3


def test_entries_on_one_line_are_told_apart(write: Callable[..., Path], tmp_path: Path) -> None:
    entries = [{"text": "a"}, {"text": "b"}, {"text": "a"}, {"txt": "c"}, {"text": "d"}]
    path = write(json.dumps(entries), "train.json")
    audit = check(path)
    assert [str(one.origin) for one in audit.dropped] == [f"{path}:1:3", f"{path}:1:4"]
    fixed = write_fixed(path, audit, tmp_path / "out.jsonl")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written == [entries[0], entries[1], entries[4]]
    assert (fixed.kept, fixed.dropped) == (3, 2)


def test_broken_elements_of_a_list_on_one_line(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write('[{"text": "a"}, {"text": NaN}, {"text": "b"}, {"text" "a"}, {"text": "c"}]')
    fixed = write_fixed(path, check(path), tmp_path / "out.jsonl")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [entry["text"] for entry in written] == ["a", "b", "c"]
    assert [(entry["line"], entry["entry"]) for entry in logged(fixed)] == [(1, 2), (1, 4)]


def test_tables_keep_all_their_columns(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write('prompt,completion,source\nHi,Ho,"a, b"\nHi,Ho,c\nHa,He,d\n', "data.csv")
    write_fixed(path, found(3, (path, 3, COPY)), tmp_path / "csv.jsonl")
    written = [json.loads(line) for line in (tmp_path / "csv.jsonl").read_text().splitlines()]
    assert written == [
        {"prompt": "Hi", "completion": "Ho", "source": "a, b"},
        {"prompt": "Ha", "completion": "He", "source": "d"},
    ]


def test_parquet_rows_and_odd_values(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.parquet"
    rows = {"text": ["a", "b", "c"], "score": [1.5, float("nan"), None], "raw": [b"x", b"", None]}
    parquet.write_table(arrow.table(rows), path)
    write_fixed(path, found(3, (path, 1, COPY)), tmp_path / "rows.jsonl")
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["text"] for row in written] == ["b", "c"]
    assert [row["score"] for row in written] == [None, None]


def test_paragraphs_become_entries(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write("one\nmore\n\ntwo\n\nthree\n", "text.txt")
    write_fixed(path, found(3, (path, 4, COPY)), tmp_path / "text.jsonl")
    written = [json.loads(line) for line in (tmp_path / "text.jsonl").read_text().splitlines()]
    assert written == [{"text": "one\nmore"}, {"text": "three"}]


def test_compressed_lines_are_kept_as_lines(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(gzip.compress(f"{pair(1)}\r\n{pair(2)}\r\n".encode()), "data.jsonl.gz")
    write_fixed(path, found(2, (path, 1, COPY)), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == f"{pair(2)}\r\n".encode()


def test_other_names_are_no_matter(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write("question,answer,n\nHi,Ho,1\nHa,He,2\n", "data.csv")
    columns = {"prompt": "question", "completion": "answer"}
    write_fixed(path, found(2, (path, 2, COPY)), tmp_path / "out.jsonl", columns=columns)
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "question": "Ha",
        "answer": "He",
        "n": "2",
    }


def test_a_folder_gives_a_folder_of_the_same_names(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    first = write(f"{pair(1)}\n{pair(2)}\n", "data/a.jsonl")
    second = write(f"{pair(3)}\n", "data/deep/b.json")
    gone = write(f"{pair(1)}\n", "data/c.jsonl")
    table = write("prompt,completion\nHi,Ho\n", "data/d.csv")
    broken = write('[{"text": "c', "data/e.json")
    audit = found(5, (first, 2, COPY), (gone, 1, COPY), (broken, 1, FILES))
    fixed = write_fixed(data, audit, tmp_path / "clean")
    names = sorted(str(p.relative_to(tmp_path / "clean")) for p in _files(tmp_path / "clean"))
    assert names == ["a.jsonl", "d.csv.jsonl", "deep/b.json"]
    assert (tmp_path / "clean/a.jsonl").read_text() == f"{pair(1)}\n"
    assert (tmp_path / "clean/deep/b.json").read_bytes() == second.read_bytes()
    assert table.exists()
    assert (fixed.kept, fixed.dropped) == (3, 3)
    assert [Path(entry["file"]).name for entry in logged(fixed)] == ["a.jsonl", "c.jsonl", "e.json"]
    assert Path(fixed.log) == tmp_path / "clean.dropped.jsonl"
    assert len(read_examples(tmp_path / "clean")) == 3


def test_a_glob_gives_a_folder_too(write: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(f"{pair(1)}\n", f"data/{name}.jsonl")
    write_fixed(str(tmp_path / "data" / "*.jsonl"), found(2), tmp_path / "clean")
    assert [path.name for path in _files(tmp_path / "clean")] == ["a.jsonl", "b.jsonl"]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_names_that_make_no_sense(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(f"{pair(1)}\n", "data/a.jsonl")
    for out in ("clean", "clean.csv", "clean.jsonl.gz"):
        with pytest.raises(ConfigError, match="JSON Lines"):
            refuse_fix(path, tmp_path / out)
    with pytest.raises(ConfigError, match="lies in the folder"):
        refuse_fix(tmp_path / "data", tmp_path / "data" / "clean")
    with pytest.raises(ConfigError, match="second time"):
        refuse_fix("-", tmp_path / "clean.jsonl")
    write("prompt,completion\nHi,Ho\n", "data/b.csv")
    write(f"{pair(1)}\n", "data/b.csv.jsonl")
    with pytest.raises(ConfigError, match=r"b\.csv\.jsonl"):
        refuse_fix(tmp_path / "data", tmp_path / "clean")


def test_a_file_that_breaks_off_is_kept_up_to_there(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write('[{"text": "a"},\n{"text": "b"},\n{"text": "c', "cut.json")
    good = write(f"{pair(1)}\n", "good.jsonl")
    audit = found(3, (path, 3, FILES))
    fixed = write_fixed([path, good], audit, tmp_path / "clean")
    assert (tmp_path / "clean/cut.json").read_text() == '{"text": "a"}\n{"text": "b"}\n'
    assert (fixed.kept, fixed.dropped) == (3, 1)


@pytest.mark.parametrize("before", ["", "\ufeff", " " * HEAD, "\ufeff" + "\n" * HEAD])
@pytest.mark.parametrize("form", ["list", "objects", "lines"])
def test_a_copy_reads_what_was_read(write: Any, tmp_path: Path, before: str, form: str) -> None:
    """Even where what is looked at to tell the format ends within a word."""
    long = json.loads(pair(1)) | {"prompt": "x" * (HEAD - 66), "wanted": True}
    entries = [long, *(json.loads(pair(number)) for number in (2, 3))]
    text = {
        "list": json.dumps(entries, indent=0),
        "objects": "\n".join(json.dumps(entry, indent=0) for entry in entries),
        "lines": "".join(json.dumps(entry) + "\n" for entry in entries),
    }[form]
    path = write(before + text, "data.json")
    fixed = write_fixed(path, found(3), tmp_path / "out.jsonl")
    assert (fixed.kept, fixed.dropped) == (3, 0)
    assert [one.messages for one in read_examples(fixed.out)] == [
        one.messages for one in read_examples(path)
    ]
