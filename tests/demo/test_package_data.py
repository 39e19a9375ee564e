"""The demo's data: splits that share nothing, and a control that keeps nothing in place."""

from __future__ import annotations

import json
from pathlib import Path

from rango.demo.package_data import BASE, GENERAL, TEST, TRAIN, VALID, write_shuffled


def _samples(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_splits_share_no_file_and_no_text() -> None:
    files, texts = [], []
    for path in (TRAIN, VALID, TEST):
        samples = _samples(path)
        assert len(samples) >= 150
        files.append({str(sample["source"]).partition(":")[0] for sample in samples})
        texts.append({json.dumps(sample["messages"]) for sample in samples})
        assert len(texts[-1]) == len(samples)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not files[one] & files[other]
        assert not texts[one] & texts[other]
    assert _samples(GENERAL)


def test_the_weights_are_small() -> None:
    assert (BASE / "model.safetensors").stat().st_size <= 8_000_000


def test_shuffling_moves_every_answer(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shuffled(VALID, tmp_path / name, seed=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    before, after = _samples(VALID), _samples(tmp_path / "a")
    assert [s["messages"][0] for s in before] == [s["messages"][0] for s in after]  # type: ignore[index]
    answers = [[s["messages"][1]["content"] for s in samples] for samples in (before, after)]  # type: ignore[index]
    assert sorted(answers[0]) == sorted(answers[1])
    assert all(old != new for old, new in zip(*answers, strict=True))
