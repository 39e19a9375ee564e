"""The demo from end to end, on a few of its samples and for two steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rango
from rango.demo import run
from rango.demo.package_data import GENERAL, TEST, TRAIN, VALID
from rango.errors import OutputExistsError


@pytest.mark.slow
def test_every_method_is_trained_judged_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, path, count in (
        ("TRAIN", TRAIN, 40),
        ("VALID", VALID, 4),
        ("TEST", TEST, 8),
        ("GENERAL", GENERAL, 2),
    ):
        few = tmp_path / path.name
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        few.write_text("".join(lines[:count]), encoding="utf-8")
        monkeypatch.setattr(run, name, few)
    output = tmp_path / "demo"
    result = rango.run_demo(output, max_steps=2)
    names = ["base", "base in NF4", "LoRA", "QLoRA", "full", "LoRA shuffled"]
    assert [row.method for row in result.rows] == names
    by_name = {row.method: row.values for row in result.rows}
    assert by_name["base"]["forgetting"] == pytest.approx(0, abs=1e-6)
    assert (by_name["base in NF4"]["forgetting"] or 0) > 1e-3
    for name in names[2:]:
        assert by_name[name]["loss"] != by_name["base"]["loss"]
    assert by_name["LoRA"]["trainable"] == by_name["QLoRA"]["trainable"]
    assert by_name["full"]["share"] == 1
    assert result.merged["loss_merged"] == pytest.approx(result.merged["loss_unmerged"], abs=1e-4)
    assert set(result.samples[0]) == {"question", "expected", *names}
    assert json.loads((output / "result.json").read_text())["rows"][0]["method"] == "base"
    assert "<svg" in (output / "comparison.html").read_text()
    with pytest.raises(OutputExistsError):
        rango.run_demo(output)
