"""`rango check`: what it prints and writes, and what its exit code says."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rango.cli.check import main, read_words
from rango.errors import ConfigError, DataError, OutputExistsError

HOSTILE = "Look \x1b[2J\x1b]0;owned\x07 <script>alert(1)</script> [bold]here[/bold]"


def chat(asked: str, answered: str) -> str:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return json.dumps({"messages": turns})


CLEAN = (chat("What is the capital of Spain?", "Madrid"), chat("And of France?", "It is Paris."))
COPIED = (*CLEAN, CLEAN[0])
BROKEN = (*CLEAN, '{"messages": "none"}', COPIED[0])


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(*lines: str, name: str = "chats.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return str(path)

    return write


def squeezed(text: str) -> str:
    """Without white space: a terminal breaks lines where it has to."""
    return "".join(text.split())


def test_exit_codes(write: Callable[..., str]) -> None:
    clean, copied = write(*CLEAN, name="clean.jsonl"), write(*COPIED, name="copied.jsonl")
    broken = write(*BROKEN, name="broken.jsonl")
    assert main([clean]) == 0
    assert main([clean, "--strict"]) == 0
    assert main([copied]) == 0
    assert main([copied, "--strict"]) == 10
    assert main([copied, "--strict", "--ignore", "exact duplicates"]) == 0
    assert main([broken]) == 3
    assert main([broken, "--strict"]) == 3
    assert main([broken, "--skip_bad"]) == 0
    assert main([broken, "--skip-bad", "--strict"]) == 10


def test_faults_that_end_it(write: Callable[..., str], tmp_path: Path) -> None:
    clean = write(*CLEAN)
    with pytest.raises(DataError, match="missing"):
        main([str(tmp_path / "missing.jsonl")])
    for words in (
        ["--columns", "prompt"],
        ["--max-length", "0"],
        ["--words", "nowhere.txt"],
        ["--chat_template", "plain"],
    ):
        with pytest.raises(ConfigError):
            main([clean, *words])


def test_the_verdict_comes_first(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = write(*BROKEN)
    main([broken])
    captured = capsys.readouterr()
    out = squeezed(captured.out)
    assert out.startswith(squeezed(f"{broken}: 1 error, 1 warning in 3 samples"))
    assert f"{broken}:3" in out
    assert f"{broken}:4(as{broken}:1)" in out
    assert "characters in all" in captured.out
    assert captured.err == ""


def test_json_is_one_document(
    write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = write(*BROKEN)
    out = str(tmp_path / "fixed.jsonl")
    assert main([broken, "--json", "--fix", out]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 3
    checks = {finding["check"]: finding for finding in found["findings"]}
    assert set(checks) == {"unreadable entries", "exact duplicates"}
    place = checks["exact duplicates"]["instances"][0]
    assert place["origin"] == {"file": broken, "line": 4}
    assert place["other"] == {"file": broken, "line": 1}
    assert found["fixed"] == {"out": out, "log": f"{out}.dropped.jsonl", "kept": 2, "dropped": 2}
    assert found["shown"] == []


def test_fix_writes_a_copy_that_is_clean(write: Callable[..., str], tmp_path: Path) -> None:
    broken, out = write(*BROKEN), str(tmp_path / "fixed.jsonl")
    before = Path(broken).read_bytes()
    assert main([broken, "--fix", out]) == 3
    assert Path(out).read_text().splitlines() == list(CLEAN)
    assert Path(broken).read_bytes() == before
    assert main([out, "--strict"]) == 0
    with pytest.raises(OutputExistsError):
        main([broken, "--fix", out])


def test_what_cannot_be_written_is_refused_before_any_work(
    write: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rango.data.check

    monkeypatch.setattr(rango.data.check, "check", lambda *a, **k: pytest.fail("work was done"))
    clean, there = write(*CLEAN), write("precious", name="there.html")
    with pytest.raises(OutputExistsError):
        main([clean, "--report", there])
    with pytest.raises(OutputExistsError):
        main([clean, "--fix", clean])
    with pytest.raises(ConfigError):
        main(["-", "--fix", str(tmp_path / "new.jsonl")])


def test_several_files_and_a_folder(
    write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = write(*CLEAN, name="a.jsonl"), write(CLEAN[0], name="b.jsonl")
    for words in ([one, two], [str(tmp_path)], [str(tmp_path / "*.jsonl")]):
        assert main([*words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["samples"] == 3
        (finding,) = found["findings"]
        assert finding["instances"][0]["origin"]["file"] == two


def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(f"{line}\n" for line in CLEAN).encode()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    assert main(["-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 2


def test_held_out_data(write: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    data, valid = write(*CLEAN), write(CLEAN[1], name="valid.jsonl")
    assert main([data, "--valid", valid]) == 3
    assert "held-out overlap" in capsys.readouterr().out


def test_columns_and_words(write: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    data = write('{"question": "Who is it?", "answer": "A Scoundrel, I fear."}')
    words = write("# a comment", "", "scoundrel", name="words.txt")
    columns = "prompt=question,completion=answer"
    assert main([data, "--columns", columns, "--words", words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [finding["check"] for finding in found["findings"]] == ["listed words"]


def test_a_list_of_words(write: Callable[..., str]) -> None:
    assert read_words(write("# none", " two words ", "", "x", name="w.txt")) == ["two words", "x"]
    with pytest.raises(ConfigError, match="no words"):
        read_words(write("# none", name="none.txt"))


def test_with_a_model(
    write: Callable[..., str], demo_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(*(chat(f"def get_{name}(self):", f"Return the {name}.") for name in "abcdefgh"))
    report = tmp_path / "report.html"
    words = [data, "--model", str(demo_base), "--max_length", "256", "--report", str(report)]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "tokens in all" in captured.out
    assert len(re.findall(r"⟦Return the .\.", captured.out)) == 3
    assert captured.err == f"report: {report}\n"
    page = report.read_text(encoding="utf-8")
    assert page.count("<mark>Return the ") == 3
    assert main([data, "--model", str(demo_base), "--json", "--show", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lengths"]["unit"] == "tokens"
    (shown,) = found["shown"]
    answers = [span["text"] for span in shown["spans"] if span["kind"] == "answer"]
    assert re.fullmatch(r"Return the .\.", answers[0].strip())


def test_data_steers_neither_terminal_nor_page(
    write: Callable[..., str], demo_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(chat(HOSTILE, HOSTILE), chat(HOSTILE, HOSTILE), json.dumps({"\x1b[2J": HOSTILE}))
    report = tmp_path / "report.html"
    assert main([data, "--model", str(demo_base), "--report", str(report)]) == 3
    out = capsys.readouterr().out
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", out)
    assert "[bold]here[/bold]" in squeezed(out)
    page = report.read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)


def test_files_are_written_whoever_reads_the_output(
    write: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("rango.cli.check.show", gone)
    fixed, report = tmp_path / "fixed.jsonl", tmp_path / "report.html"
    with pytest.raises(BrokenPipeError):
        main([write(*COPIED), "--fix", str(fixed), "--report", str(report)])
    assert report.is_file()
    assert len(fixed.read_text().splitlines()) == 2


def test_half_characters_are_still_json(
    tmp_path: Path, write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = b"caf\xe9.jsonl".decode("utf-8", "surrogateescape")
    try:
        data = write(*COPIED, name=name)
    except OSError:
        pytest.skip("this file system has no such names")
    assert main([data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 3
    assert main([data, "--report", str(tmp_path / "report.html")]) == 0
    assert "caf?.jsonl" in squeezed(capsys.readouterr().out)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    page = " ".join(capsys.readouterr().out.split())
    for words in ("rango check DATA", "--skip_bad", "--max_length", "10:", "byte for byte"):
        assert words in page
