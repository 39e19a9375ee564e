"""Checking data as a whole: a folder full of damage, in which every fault is found and no other."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers

from rango.data.audit.result import Audit
from rango.data.check import (
    ENTRIES,
    FILES,
    OWN_CHECKS,
    PAST_LIMIT,
    SUPERVISION,
    check,
    numbered,
    place_of,
)
from rango.data.preview import Preview
from rango.data.samples import Origin
from rango.errors import ConfigError, DataError, TokenizerError

WHO = [
    "the baker of our village",
    "my youngest sister",
    "an old captain",
    "the night nurse",
    "a tired clerk",
    "the new librarian",
    "our neighbour's gardener",
    "a travelling doctor",
    "the school's janitor",
    "one of the pilots",
    "the chess champion",
    "a retired judge",
    "the bus driver",
    "her grandfather",
]
DID = [
    "repaired a broken clock",
    "painted the wooden fence",
    "wrote seven long letters",
    "lost a silver key",
    "planted forty tulips",
    "measured the cellar twice",
    "forgot the second password",
    "sold a red bicycle",
    "translated the manual",
    "cooked lentils for everyone",
    "cleaned all of the windows",
    "counted the empty boxes",
    "moved the piano upstairs",
    "watched birds for hours",
]
WHEN = [
    "before the rain began",
    "while the market was closed",
    "on the last day of March",
    "without any help",
    "because nobody else wanted to",
    "after a short night",
    "in spite of the heat",
    "during the strike",
    "as soon as the ferry left",
    "although it was forbidden",
    "until the lamp went out",
    "for no reward",
    "just as the bells were ringing",
    "when the train was late",
]


class Writer:
    """Makes clean conversations, no two of them alike."""

    def __init__(self) -> None:
        self._draw = random.Random(7)
        self._number = 0

    def sentence(self) -> str:
        parts = (self._draw.choice(options) for options in (WHO, DID, WHEN))
        return " ".join(parts).capitalize() + "."

    def pair(self) -> tuple[str, str]:
        self._number += 1
        asked = f"What happened in story number {self._number}? {self.sentence()}"
        return asked, " ".join(self.sentence() for _ in range(3))


def chat(asked: str, answered: str, **more: Any) -> str:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return json.dumps({"messages": turns, **more})


class Damaged:
    """A folder with planted faults: where each is, by the check that should find it."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.data.mkdir(parents=True)
        self.valid = folder / "valid.jsonl"
        self.planted: dict[str, set[tuple[str, int]]] = {}
        self.writer = Writer()
        self.good = [self.writer.pair() for _ in range(120)]
        self._write("good.jsonl", [chat(*pair) for pair in self.good])
        self._damaged_texts()
        self._damaged_entries()
        self._damaged_files()
        held_out = [self.writer.pair() for _ in range(20)]
        self.valid.write_text("".join(chat(*p) + "\n" for p in [*held_out, self.good[11]]))
        self._plant("held-out overlap", "good.jsonl", 12)

    def found(self, audit: Audit) -> dict[str, set[tuple[str, int]]]:
        """Where the audit's findings are; notes that are no faults are left out."""
        places: dict[str, set[tuple[str, int]]] = {}
        for finding in audit.findings:
            if finding.check not in ("language mix", "sample count"):
                places[finding.check] = {self._where(one.origin) for one in finding.instances}
        for name in (ENTRIES, FILES):  # a finding shows five, the log all
            places[name] = {self._where(d.origin) for d in audit.dropped if d.check == name}
        return places

    def _where(self, origin: Origin) -> tuple[str, int]:
        return Path(origin.file).name, origin.line

    def _write(self, name: str, lines: list[str | bytes], end: bytes = b"\n") -> None:
        encoded = [line.encode() if isinstance(line, str) else line for line in lines]
        (self.data / name).write_bytes(b"\n".join(encoded) + end)

    def _plant(self, check: str, name: str, line: int) -> None:
        self.planted.setdefault(check, set()).add((name, line))

    def _damaged_texts(self) -> None:
        """Entries that can be read, each with one fault."""
        first = self.good[0]
        long = [self.writer.sentence() for _ in range(12)]
        near = " ".join(long), " ".join([*long[:6], "Slowly " + long[6], *long[7:]])
        faulty: list[tuple[str, str | None, str | None]] = [
            ("exact duplicates", *first),
            ("contradictions", first[0], None),
            ("near duplicates", "What was read aloud at the meeting?", near[0]),
            ("near duplicates", "What was read aloud at a meeting?", near[1]),
            ("repeated characters", None, "=" * 400),
            ("repeated words", None, "I am not sure about that. " * 30),
            ("mojibake", None, "The cafÃ© on the corner sells crÃ¨me brÃ»lÃ©e all day."),
            ("replacement characters", None, "The caf\ufffd on the corner is closed all day."),
            ("control characters", None, "Look: \x1b[31mthis is written in red\x1b[0m."),
            ("NUL characters", None, "One part\x00and the other part of the same line."),
            ("empty samples", None, "\u200b\u200b"),
            ("e-mail addresses", None, "Write to maria.lopez@correo-central.es about the boat."),
            ("phone numbers", None, "Her number is +34 612 34 56 78, and she answers at night."),
            ("payment cards", None, "He paid with 4111 1111 1111 1111 for the ferry tickets."),
            ("bank accounts", None, "Send it to ES91 2100 0418 4502 0005 1332 before noon."),
            (
                "identity numbers",
                None,
                "Her DNI is 12345678Z, if the form that she sent us is right.",
            ),
            ("API keys", None, "The job uses ghp_" + "a1B2" * 9 + " to push the build."),
            ("listed words", None, "Nobody on this boat ever says blistering barnacles aloud."),
            ("giant samples", None, " ".join(self.writer.sentence() for _ in range(1500))),
        ]
        lines = []
        for number, (name, asked, answered) in enumerate(faulty, 1):
            pair = self.writer.pair()
            lines.append(chat(asked or pair[0], answered or pair[1]))
            self._plant(name, "texts.jsonl", number)
        self._write("texts.jsonl", lines)
        self.planted["near duplicates"] = {("texts.jsonl", 4)}  # the second of the two
        self.planted["over max_length"] = {("texts.jsonl", 19)}

    def _damaged_entries(self) -> None:
        """Entries that cannot be read."""
        whole = [chat(*self.writer.pair()) for _ in range(3)]
        deep = '{"messages": ' + "[" * 10_000 + "]" * 10_000 + "}"
        broken: list[str | bytes] = [
            whole[1][:40],
            whole[1].replace("messages", "mesages"),
            whole[1].replace("content", "contents"),
            whole[1].replace('"user"', '"usr"'),
            '{"messages": "none"}',
            '{"messages": [{"role": "user", "content": NaN}]}',
            '{"messages": [{"role": "user", "content": Infinity}]}',
            whole[1].encode("utf-8").replace(b"story", b"st\xf3ry"),
            whole[1].encode("utf-8").replace(b"story", b"st\x00ry"),
            whole[1].replace("story", "\\ud83d story"),
            deep,
            '{"prompt": "Hi", "completion": "Ho"}',
            "[1, 2]",
            whole[2][:-30],
        ]
        self._write("entries.jsonl", [whole[0], *broken], end=b"")
        for line in range(2, 2 + len(broken)):
            self._plant(ENTRIES, "entries.jsonl", line)
        # a byte-order mark, Windows line ends and blank lines are no faults
        lines = [b"\xef\xbb\xbf" + chat(*self.writer.pair()).encode(), b"", b"  "]
        self._write("windows.jsonl", [line + b"\r" for line in lines])

    def _damaged_files(self) -> None:
        (self.data / "empty.jsonl").write_bytes(b"")
        self._plant(FILES, "empty.jsonl", 1)
        entries = ",\n".join(chat(*self.writer.pair()) for _ in range(3))
        (self.data / "list.json").write_text(f"[{entries[:-20]}")
        self._plant(FILES, "list.json", 3)
        (self.data / "table.parquet").write_bytes(b"PAR1" + bytes(100))
        self._plant(FILES, "table.parquet", 1)


WORDS = ("blistering barnacles",)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    return Damaged(tmp_path_factory.mktemp("damaged"))


@pytest.fixture(scope="module")
def audited(damaged: Damaged) -> Audit:
    return check(damaged.data, valid=damaged.valid, max_length=20_000, words=WORDS)


def test_every_planted_fault_is_found_and_no_other(damaged: Damaged, audited: Audit) -> None:
    assert damaged.found(audited) == damaged.planted


def test_what_was_read_is_counted(damaged: Damaged, audited: Audit) -> None:
    assert audited.samples == 120 + 19 + 1 + 1 + 2
    assert [share.name for share in audited.formats] == ["chat"]
    assert audited.lengths.unit == "characters"
    assert audited.source == str(damaged.data)


def test_errors_come_first_and_each_sample_is_dropped_once(audited: Audit) -> None:
    order = ["error", "warning", "note"]
    places = [order.index(finding.severity) for finding in audited.findings]
    assert places == sorted(places)
    dropped = [(one.origin.file, one.origin.line) for one in audited.dropped]
    assert dropped == sorted(set(dropped))


def test_reasons_say_what_to_change(audited: Audit) -> None:
    reasons = {d.origin.line: d.reason for d in audited.dropped if d.check == ENTRIES}
    assert "'messages'" in reasons[3]
    assert "mesages" in reasons[3]
    assert "NaN" in reasons[7]
    assert "UTF-8" in reasons[9]
    assert "mixed formats" in reasons[13]
    assert not any("entries.jsonl" in reason for reason in reasons.values())


def test_with_a_tokenizer_lengths_are_tokens_and_samples_are_shown(
    damaged: Damaged, make_tokenizer: Callable[..., Any]
) -> None:
    shown: list[Preview] = []
    audit = check(
        damaged.data,
        valid=damaged.valid,
        tokenizer=make_tokenizer("llama-3"),
        max_length=10_000,
        words=WORDS,
        show=shown.append,
    )
    assert audit.lengths.unit == "tokens"
    assert damaged.found(audit) == damaged.planted
    lengths = [preview.tokens for preview in shown]
    assert len(shown) == 3
    assert lengths == sorted(lengths)
    assert lengths[-1] <= 10_000


def test_without_faults_nothing_is_found(tmp_path: Path) -> None:
    writer = Writer()
    path = tmp_path / "clean.jsonl"
    path.write_text("".join(chat(*writer.pair()) + "\n" for _ in range(200)))
    audit = check(path)
    assert audit.findings == ()
    assert audit.dropped == ()
    assert audit.samples == 200


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


def by_name(audit: Audit) -> dict[str, Any]:
    return {finding.check: finding for finding in audit.findings}


def test_supervision_faults_are_findings_with_their_place(
    write: Callable[..., Path], make_tokenizer: Callable[..., Any]
) -> None:
    writer = Writer()
    system = json.loads(chat(*writer.pair()))
    system["messages"].insert(0, {"role": "system", "content": "Be brief."})
    path = write(*(chat(*writer.pair()) for _ in range(3)), json.dumps(system))
    finding = by_name(check(path, tokenizer=make_tokenizer("gemma")))[SUPERVISION]
    assert (finding.severity, finding.count) == ("error", 1)
    assert finding.instances[0].origin == Origin(str(path), 4)
    assert "System role not supported" in finding.instances[0].excerpt
    audit = check(path, tokenizer=make_tokenizer("gemma"))
    assert [(one.origin.line, one.check) for one in audit.dropped] == [(4, SUPERVISION)]
    assert SUPERVISION not in by_name(check(path, tokenizer=make_tokenizer("llama-3")))
    assert SUPERVISION not in by_name(check(path))


def test_what_faults_quote_is_masked(
    write: Callable[..., Path], make_tokenizer: Callable[..., Any]
) -> None:
    writer = Writer()
    tokenizer = make_tokenizer("qwen-2.5")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("zeppelin", "airship")
    path = write(
        *(chat(*writer.pair()) for _ in range(3)),
        chat("Whose?", "maria.lopez@correo.es has the zeppelin."),
        chat("Whose?", "Nobody's.").replace('"user"', '"+34 612 34 56 78"'),
    )
    audit = check(path, tokenizer=tokenizer)
    found = by_name(audit)
    (faulty,) = found[SUPERVISION].instances
    (unreadable,) = found[ENTRIES].instances
    assert "ma*********@*********" in faulty.excerpt
    assert "'+34*" in unreadable.excerpt
    for text in (*(one.reason for one in audit.dropped), faulty.excerpt, unreadable.excerpt):
        assert "lopez" not in text
        assert "612" not in text


def test_answers_beyond_the_limit_are_told(
    write: Callable[..., Path], make_tokenizer: Callable[..., Any]
) -> None:
    writer = Writer()
    asked = " ".join(writer.sentence() for _ in range(40))
    path = write(*(chat(*writer.pair()) for _ in range(3)), chat(asked, "Yes."))
    audit = check(path, tokenizer=make_tokenizer(), max_length=400)
    finding = by_name(audit)[PAST_LIMIT]
    assert (finding.severity, finding.count) == ("warning", 1)
    assert finding.instances[0].origin.line == 4
    assert audit.dropped == ()


def test_the_last_answer_alone_may_be_learnt(
    write: Callable[..., Path], make_tokenizer: Callable[..., Any]
) -> None:
    turns = [("user", "Hi"), ("assistant", "Good day."), ("user", "Ho"), ("assistant", "Thanks.")]
    path = write(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}))
    answers = {}
    for loss_on in ("completion", "last"):
        shown: list[Preview] = []
        check(path, tokenizer=make_tokenizer(), loss_on=loss_on, show=shown.append)
        spans = shown[0].spans
        answers[loss_on] = [span.text for span in spans if span.kind == "answer"]
    assert answers == {"completion": ["Good day.", "Thanks."], "last": ["Thanks."]}


def test_bad_entries_that_training_leaves_out_are_a_warning(write: Callable[..., Path]) -> None:
    path = write(chat("Hi", "Good day, and welcome."), "{")
    assert by_name(check(path))[ENTRIES].severity == "error"
    audit = check(path, skip_bad=True)
    assert by_name(audit)[ENTRIES].severity == "warning"
    assert [one.origin.line for one in audit.dropped] == [2]


def test_checks_can_be_left_out(write: Callable[..., Path]) -> None:
    path = write(chat("Hi", "Good day"), chat("Hi", "Good day"), "{")
    audit = check(path, ignore=["exact duplicates", ENTRIES])
    assert not {"exact duplicates", ENTRIES} & set(by_name(audit))
    assert [one.check for one in audit.dropped] == [ENTRIES]  # it can't be kept all the same
    with pytest.raises(ConfigError, match="nearest: exact duplicates"):
        check(path, ignore=["exact duplicate"])


def test_held_out_data_with_bad_entries(write: Callable[..., Path]) -> None:
    path, valid = write(chat("Hi", "Good day")), write("{", chat("a", "b"), name="valid.jsonl")
    audit = check(path, valid=valid)
    finding = by_name(audit)[ENTRIES]
    assert "held-out" in finding.message
    assert finding.instances[0].origin == Origin(str(valid), 1)
    assert audit.dropped == ()


def test_all_entries_bad_is_a_finding(write: Callable[..., Path]) -> None:
    audit = check(write(*['{"prompt" and nothing more}'] * 2))
    assert audit.samples == 0
    assert by_name(audit)[ENTRIES].count == 2


@pytest.mark.parametrize("name", ["missing.jsonl", "empty.jsonl", "folder", "cut.parquet"])
def test_where_nothing_can_be_read_that_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1" + bytes(20))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=name):
        check(tmp_path / name)


def test_columns_with_other_names(write: Callable[..., Path]) -> None:
    path = write(json.dumps({"question": "Hi", "answer": "Good day"}))
    audit = check(path, columns={"prompt": "question", "completion": "answer"})
    assert [share.name for share in audit.formats] == ["completion"]
    assert ENTRIES not in by_name(audit)


def test_arguments_that_make_no_sense(write: Callable[..., Path]) -> None:
    path = write(chat("Hi", "Ho"))
    for wrong in ({"max_length": 1}, {"rank": 0}, {"shown": -1}):
        with pytest.raises(ConfigError):
            check(path, **wrong)


def test_a_tokenizer_without_a_template_is_refused(
    write: Callable[..., Path], make_tokenizer: Callable[..., Any]
) -> None:
    with pytest.raises(TokenizerError, match="chat template"):
        check(write(chat("Hi", "Ho")), tokenizer=make_tokenizer(template=None))


def test_entries_that_share_a_line_are_numbered() -> None:
    origins = [Origin("a", line) for line in (1, 2, 2, 2, 3, 4, 4)]
    found = [origin for origin, _ in numbered(zip(origins, "tuvwxyz", strict=True))]
    assert list(map(str, found)) == ["a:1", "a:2:1", "a:2:2", "a:2:3", "a:3", "a:4:1", "a:4:2"]
    assert [place_of(origin, {"a"}) for origin in found[:3]] == [
        ("a", 1, 0),
        ("a", 2, 1),
        ("a", 2, 2),
    ]
    assert place_of(Origin("b:2", 1), {"a"}) == ("b:2", 1, 0)
    assert list(numbered([])) == []


def test_what_was_read_before_a_fault_still_comes() -> None:
    def read() -> Iterator[tuple[Origin, str]]:
        yield Origin("a", 1), "x"
        raise DataError("a:2: broken")

    found = numbered(read())
    assert next(found) == (Origin("a", 1), "x")
    with pytest.raises(DataError, match="broken"):
        next(found)


def test_every_own_check_has_something_to_say() -> None:
    from rango.data.check import _SAID

    assert set(_SAID) == set(OWN_CHECKS)
