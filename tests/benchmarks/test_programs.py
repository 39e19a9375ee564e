"""Each benchmark through its own command, on a toy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., dict[str, Any]]


def test_train_step(run: Run) -> None:
    options = ("--groups", "LoRA", "--only", "rango-fp32", "frozen", "--rounds", "2")
    result = run("train_step", "--shape", "toy", "--tokens", "32", *options)
    (row,) = result["rows"]
    assert row["name"] == "LoRA, toy 1x32: step"
    assert set(row["settings"]["share_of_gemm_peak"]) == {"rango-fp32", "frozen"}
    assert {check["what"] for check in result["checks"]} == {"rango-fp32 and frozen: first loss"}
    for one in result["measured"]["LoRA, toy"].values():
        assert (len(one["warm_up"]), len(one["samples"])) == (2, 2)


def test_train_job(run: Run) -> None:
    """Also: TRL's batches without padding keep texts apart, so all see the same first loss."""
    pytest.importorskip("trl")
    options = ("--samples", "16", "--peers", "trl-padding-free")
    result = run("train_job", "--shape", "toy", *options)
    (row,) = result["rows"]
    assert row["unit"] == "samples/s"
    ours, peer = result["measured"]["the job"].values()
    (a,), (b,) = ours["samples"], peer["samples"]
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert ours["over_seconds"] > 0


@pytest.mark.slow
def test_many(run: Run) -> None:
    pytest.importorskip("peft")
    result = run("many", "--shapes", "toy", "--kinds", "fp32", "--counts", "2", "--rounds", "1")
    names = [row["name"] for row in result["rows"]]
    assert names.count("2 jobs, toy, fp32: speed") == 2
    whole = result["rows"][names.index("2 jobs, toy, fp32: 50 steps with imports and loading")]
    assert whole["ours"] < whole["peer"]
    assert [check["what"].rpartition(" ")[2] for check in result["checks"]] == [
        *("rango-fp32", "peft-fp32")
    ]


@pytest.mark.slow
def test_decode(run: Run) -> None:
    pytest.importorskip("peft")
    options = ("--new-tokens", "4", "--prompt", "4", "--rounds", "1")
    result = run("decode", "--shape", "toy", *options)
    assert [row["unit"] for row in result["rows"]] == ["tokens/s"] * 4
    assert {check["what"] for check in result["checks"]} == {"tokens of rango-fp32 and peft-fp32"}


def test_kernels(run: Run) -> None:
    pytest.importorskip("bitsandbytes")
    result = run("kernels", "--only", "nf4", "products", "--sizes", "128", "64", "8")
    assert {row["unit"] for row in result["rows"]} == {"GB/s", "GFLOP/s"}
    assert len(result["checks"]) == 10


def test_load(run: Run) -> None:
    pytest.importorskip("bitsandbytes")
    result = run("load", "--shapes", "toy", "--rounds", "1")
    assert {"s", "bytes"} == {row["unit"] for row in result["rows"]}


@pytest.mark.slow
def test_memory(run: Run) -> None:
    pytest.importorskip("bitsandbytes")
    result = run("memory", "--shape", "toy", "--lengths", "32", "--rounds", "1")
    giant, length = result["rows"]
    assert giant["against"] == "its weights' bytes"
    assert giant["ours"] > giant["peer"] > 0
    assert length["settings"]["tokens"] == 32


def test_hotspots(run: Run) -> None:
    options = ("--shape", "toy", "--tokens", "32", "--rounds", "1")
    result = run("hotspots", "--cases", "LoRA, 25m 4x256", *options)
    (found,) = (one["profile"] for one in result["measured"].values())
    assert sum(one["share"] for one in found["functions"]) == pytest.approx(1.0)
    assert any("run_backward" in one["what"] for one in found["functions"])
