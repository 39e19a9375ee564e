"""Which rows each token uses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import ALL, build, inputs

import rango
from rango.adapters.attach import Adapted
from rango.adapters.routing import Lane, Routing
from rango.errors import AdapterError


def _random(name: str, rows: int, **fields: object) -> Adapted:
    adapted = rango.attach(build(name), r=3, lora_alpha=6, rows=rows, **fields)
    torch.manual_seed(1)
    adapted.bank.parameters.normal_(std=0.1)
    return adapted


def _logits(adapted: Adapted, routing: Routing, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), adapted.route(routing):
        logits: torch.Tensor = adapted.model(input_ids=ids)[0]
    return logits


@pytest.mark.parametrize("name", ALL)
def test_rows_in_one_batch_equal_each_alone(name: str) -> None:
    adapted = _random(name, rows=3)
    ids = inputs(batch=4)
    mixed = _logits(adapted, Routing.sequences([2, -1, 0, 2]), ids)
    for place, row in enumerate([2, -1, 0, 2]):
        routing = Routing.base() if row < 0 else Routing.everywhere(row)
        alone = _logits(adapted, routing, ids[place : place + 1])
        torch.testing.assert_close(mixed[place : place + 1], alone, rtol=1e-5, atol=1e-6)


def test_rows_by_token_act_on_their_tokens_only() -> None:
    adapted = _random("llama", rows=2, target_modules=["lm_head"])
    ids = inputs(batch=2, length=6)
    rows = torch.tensor([[0, 0, 1, 1, -1, -1], [-1, 1, 0, 1, 0, -1]])
    mixed = _logits(adapted, Routing.tokens(rows), ids)
    for row in (-1, 0, 1):
        routing = Routing.base() if row < 0 else Routing.everywhere(row)
        alone = _logits(adapted, routing, ids)
        torch.testing.assert_close(mixed[rows == row], alone[rows == row])


def test_scales_and_blends_add_up_at_a_module() -> None:
    adapted = _random("llama", rows=2, target_modules=["lm_head"])
    ids = inputs(batch=2)
    base = _logits(adapted, Routing.base(), ids)
    updates = [_logits(adapted, Routing.everywhere(row), ids) - base for row in (0, 1)]
    blend = Routing.blend(Routing.everywhere(0, 0.25), Routing.sequences([1, 1], [2.0, -1.0]))
    weights = torch.tensor([2.0, -1.0])[:, None, None]
    expected = base + 0.25 * updates[0] + weights * updates[1]
    torch.testing.assert_close(_logits(adapted, blend, ids), expected, rtol=1e-5, atol=1e-5)


def test_the_run_time_factor_multiplies() -> None:
    adapted = _random("llama", rows=1, target_modules=["lm_head"])
    ids = inputs()
    base = _logits(adapted, Routing.base(), ids)
    update = _logits(adapted, Routing.everywhere(), ids) - base
    adapted.scale(0, 0.5)
    halved = _logits(adapted, Routing.everywhere(), ids) - base
    torch.testing.assert_close(halved, 0.5 * update, rtol=1e-4, atol=1e-5)


def test_a_broken_adapter_cannot_reach_its_neighbours() -> None:
    adapted = _random("llama", rows=2)
    ids = inputs()
    clean = _logits(adapted, Routing.sequences([0, -1]), ids)
    adapted.bank.row(1).fill_(float("nan"))
    mixed = _logits(adapted, Routing.sequences([0, 1]), ids)
    assert torch.equal(mixed[0], clean[0])
    assert mixed[1].isnan().all()
    with adapted.route(Routing.sequences([0, 1])):
        adapted.model(input_ids=ids)[0].square().mean(dim=(1, 2))[0].backward()
    assert adapted.bank.gradients is not None
    assert adapted.bank.gradients[0].isfinite().all()


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=6), st.integers(1, 5))
def test_a_plan_gives_each_token_its_row_once(rows: list[int], length: int) -> None:
    plan = Routing.sequences(rows).plan((len(rows), length))
    given_rows = torch.tensor(rows).repeat_interleave(length)
    found = torch.full_like(given_rows, -1)
    for segment in plan:
        tokens = slice(None) if segment.tokens is None else segment.tokens
        assert bool((found[tokens] == -1).all())
        found[tokens] = segment.row
    assert torch.equal(found, given_rows)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(AdapterError, match="expected shape"):
        Lane(torch.zeros(1, 2, 3, dtype=torch.int64))
    with pytest.raises(AdapterError, match="differs"):
        Lane(torch.zeros(2, dtype=torch.int64), torch.zeros(3))
    with pytest.raises(AdapterError, match="expected a row"):
        Routing.sequences([-2])
    with pytest.raises(AdapterError, match="one row a sequence"):
        # the batch is not where the rows say: silence would give tokens another's row
        Routing.sequences([0, 1]).plan((1, 8))
    adapted = _random("llama", rows=2)
    with pytest.raises(AdapterError, match="row 5; the bank has rows 0 to 1"):
        _logits(adapted, Routing.everywhere(5), inputs())
    with pytest.raises(AdapterError, match="one row a sequence"):
        Routing.tokens(torch.zeros(2, 3, dtype=torch.int64)).plan((2, 4))
