"""The commands from end to end, on the embedded base: train, then everything that follows it."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rango.cli.main import main


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, demo_base: Path) -> dict[str, str]:
    """Base, data, a run of a few steps, and its adapter."""
    folder = tmp_path_factory.mktemp("commands")
    names = [first + second for first in "abcdef" for second in "xyz"]
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"def get_{name}(self):"},
                {"role": "assistant", "content": f"Return the {name}."},
            ]
        }
        for name in names
    ]
    data = folder / "chats.jsonl"
    data.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    general = folder / "general.txt"
    general.write_text("A module is a file of definitions.\n\nA list is mutable.\n")
    run = folder / "run"
    words = ["train", "--base.model", str(demo_base), "--data.train", str(data)]
    words += ["--data.valid_share", "0.2", "--data.general", str(general), "--output", str(run)]
    words += ["--training.max_steps", "3", "--training.learning_rate", "1e-3", "--adapter.r", "4"]
    assert main(words) == 0
    return {
        "base": str(demo_base),
        "data": str(data),
        "general": str(general),
        "run": str(run),
        "adapter": str(run / "adapter"),
    }


def result(capsys: pytest.CaptureFixture[str]) -> Any:
    """Standard output as the one JSON document that it must be."""
    return json.loads(capsys.readouterr().out)


def test_train_leaves_a_run(files: dict[str, str]) -> None:
    run = Path(files["run"])
    for name in ("config.yaml", "events.jsonl", "result.json", "report.html", "adapter/README.md"):
        assert (run / name).is_file()
    assert "<svg" in (run / "report.html").read_text()


def test_train_again_is_refused(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    config = str(Path(files["run"]) / "config.yaml")
    assert main(["train", "--config", config]) == 6
    assert "already exists" in capsys.readouterr().err
    assert main(["train", "--config", config, "--resume"]) == 6
    assert "finished" in capsys.readouterr().err


def test_train_json(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(Path(files["run"]) / "config.yaml")
    words = ["train", "--config", config, "--output", str(tmp_path / "b"), "--json"]
    assert main([*words, "--training.max_steps", "1"]) == 0
    found = result(capsys)
    assert found["steps"] == 1
    assert found["proof"]["passed"] is True


def test_eval(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "--base", files["base"], "--adapter", files["adapter"]]
    words += ["--data", files["data"], "--general", files["general"]]
    assert main([*words, "--json", "--exact_match"]) == 0
    found = result(capsys)
    before, after = found["evaluation"]["base"], found["evaluation"]["adapted"]
    assert after["loss"] < before["loss"]
    assert 0 <= after["exact_match"] <= 1
    assert found["forgetting"]["kl"] > 0
    assert main(words) == 0
    assert "KL(base ‖ adapted)" in capsys.readouterr().out


def test_eval_needs_an_adapter_for_forgetting(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--base", files["base"], "--data", files["data"]]
    assert main([*words, "--general", files["general"]]) == 2
    assert "--adapter" in capsys.readouterr().err


def test_generate(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--base", files["base"], "--adapter", files["adapter"]]
    words += ["--max_new_tokens", "6"]
    assert main([*words, "--prompt", "def get_ax(self):", "--compare", "--json"]) == 0
    (found,) = result(capsys)
    assert found["prompt"] == "def get_ax(self):"
    assert list(found["answers"]) == ["base", files["adapter"]]
    assert main([*words, "--file", files["data"], "--json"]) == 0
    assert len(result(capsys)) == 18
    assert main([*words, "--prompt", "x = ", "--raw"]) == 0
    assert main(words) == 2
    assert main([*words, "--prompt", "x", "--file", files["data"]]) == 2


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_inspect_base(
    files: dict[str, str], quantize: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", files["base"], "--quantize", quantize, "--json"]) == 0
    found = result(capsys)
    assert found["holds"] == "base"
    assert found["fingerprint"].startswith("blake3:")
    assert main(["inspect", files["base"], "--quantize", quantize]) == 0
    assert "LlamaForCausalLM" in capsys.readouterr().out


def test_inspect_adapter(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", files["adapter"], "--json"]) == 0
    found = result(capsys)
    assert found["holds"] == "adapter"
    assert all(module["r"] == 4 for module in found["modules"])
    assert main(["inspect", files["adapter"]]) == 0
    assert "256×640" in capsys.readouterr().out


def test_inspect_something_else(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", files["run"]]) == 4
    assert f"a run's adapter is in {files['adapter']}" in capsys.readouterr().err


def test_verify(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["verify", "--base", files["base"], "--adapter", files["adapter"]]
    assert main([*words, "--json"]) == 0
    assert result(capsys)["passed"] is True
    assert main(words) == 0
    assert "✓" in capsys.readouterr().out


def test_merge(files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged = str(tmp_path / "merged")
    words = ["merge", "--base", files["base"], "--adapter", files["adapter"], "--output", merged]
    assert main([*words, "--json"]) == 0
    assert result(capsys)["output"] == merged
    assert main(words) == 6
    capsys.readouterr()
    evaluation = ["eval", "--data", files["data"], "--json"]
    assert main([*evaluation, "--base", merged]) == 0
    alone = result(capsys)["evaluation"]["base"]["loss"]
    assert main([*evaluation, "--base", files["base"], "--adapter", files["adapter"]]) == 0
    assert alone == pytest.approx(result(capsys)["evaluation"]["adapted"]["loss"], rel=0.02)


def test_chat(
    files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines: Iterator[str] = iter(["def get_ax(self):", "", "/reset", "/what", "again", "/quit"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(lines))
    words = ["chat", "--base", files["base"], "--adapter", files["adapter"], "--compare"]
    assert main([*words, "--max_new_tokens", "4"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("[base] ") == 2
    assert captured.out.count("[adapted] ") == 2
    assert "(forgotten)" in captured.err
    assert "no command '/what'" in captured.err


def test_chat_that_could_never_answer_ends_at_once(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(builtins, "input", lambda prompt: pytest.fail("no message was wanted"))
    assert main(["chat", "--base", files["base"], "--top_p", "7"]) == 2
    assert "top_p" in capsys.readouterr().err


def test_chat_goes_on_after_a_message_too_long_and_ends_with_the_input(
    files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = iter(["long " * 5000, "short"])

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", read)
    assert main(["chat", "--base", files["base"], "--max_new_tokens", "2"]) == 0
    captured = capsys.readouterr()
    assert "rango: error:" in captured.err
    assert captured.out.strip()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--base", "/nonexistent"], 4),
        (["--data", "/nonexistent.jsonl"], 3),
        (["--adapter", "/nonexistent"], 5),
        (["--quantize", "nf5"], 2),
    ],
)
def test_faults_have_their_codes(
    words: list[str], code: int, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["eval", "--base", files["base"], "--data", files["data"], *words]
    assert main(given) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
