"""What the one call for a layer refuses; what it computes is tested where layers are fused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rango.kernels import dispatch
from rango.kernels.decoder_layer import decoder_layer

COMPILED = [mode for mode in dispatch.available() if mode != "reference"]
pytestmark = pytest.mark.skipif(not COMPILED, reason="the compiled kernels are not installed")

HIDDEN, INNER, DIM = 8, 12, 4
_SHAPES = [(8, 8), (4, 8), (4, 8), (8, 8), (12, 8), (12, 8), (8, 12)]


@pytest.fixture(autouse=True, params=COMPILED)
def mode(request: pytest.FixtureRequest) -> Iterator[None]:
    with dispatch.using(request.param):
        yield


def _made(
    activation: str = "silu", change: tuple[int, Any] | None = None, norms: Any = None
) -> Any:
    linears: list[Any] = [(torch.ones(shape), None) for shape in _SHAPES]
    if change is not None:
        linears[change[0]] = change[1]
    norm = (torch.ones(HIDDEN), 1e-6)
    return decoder_layer(
        linears,
        norms or [norm, norm, None, None],
        head_dim=DIM,
        scale=0.5,
        activation=activation,
        offset=0.0,
    ), (linears, norm)


def test_who_is_not_served() -> None:
    assert _made()[0] is not None
    assert _made("tanh")[0] is None
    assert _made(change=(4, (torch.ones(12, 8).double(), None)))[0] is None
    assert _made(change=(0, (torch.ones(8, 8), torch.ones(8).half())))[0] is None
    assert _made(change=(0, (torch.ones(8, 8), torch.ones(7))))[0] is None
    norm, other = (torch.ones(HIDDEN), 1e-6), (torch.ones(HIDDEN - 1), 1e-6)
    head = (torch.ones(DIM), 1e-6)
    assert _made(norms=[norm, norm, head, head])[0] is not None
    for norms in ([other, norm, None, None], [norm, other, None, None], [norm, norm, norm, head]):
        assert _made(norms=norms)[0] is None
    with dispatch.using("reference"):
        assert _made()[0] is None


def test_a_norm_is_missing() -> None:
    norm = (torch.ones(HIDDEN), 1e-6)
    for norms in ([None, norm, None, None], [norm, None, None, None]):
        with pytest.raises(ValueError, match="norms before attention and the MLP"):
            _made(norms=norms)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit each other"):
        _made(change=(6, (torch.ones(8, 13), None)))


def _step(
    updates_to: int = 2,
    tokens: int = 2,
    past: int = 3,
    bounds: Any = (0, 1, 2),
    key_bounds: Any = None,
    angles_of: tuple[int, ...] = (DIM, 2),
) -> None:
    layer, _alive = _made()
    native = dispatch.native()
    x, y = torch.ones(2, HIDDEN), torch.empty(2, HIDDEN)
    angles, rooms = torch.ones(2, DIM), torch.zeros(2, 2, 1, 8, DIM)
    starts = torch.tensor(bounds)
    key_starts = starts * 4 if key_bounds is None else torch.tensor(key_bounds)
    A, B = torch.ones(2, HIDDEN), torch.ones(HIDDEN, 2)
    updates = native.Updates()
    updates.add(0, A.data_ptr(), B.data_ptr(), 2, 1.0, 0, updates_to)
    reach = native.Reach(
        starts.data_ptr(), key_starts.data_ptr(), len(bounds) - 1, 2, 8, 1 << 40, 0
    )
    layer.step(
        updates,
        x.data_ptr(),
        y.data_ptr(),
        tokens,
        native.Angles(angles.data_ptr(), angles.data_ptr(), *angles_of),
        rooms[0].data_ptr(),
        rooms[1].data_ptr(),
        8 * DIM,
        8 * DIM,
        past,
        1,
        reach,
        1,
    )
    assert bool(y.isfinite().all())
    assert bool(rooms[:, :, :, past].any())


def test_what_would_be_a_bad_address_is_refused() -> None:
    _step()
    with pytest.raises(ValueError, match="updates of other tokens"):
        _step(updates_to=3)
    with pytest.raises(ValueError, match="bounds of other tokens"):
        _step(past=4)
    with pytest.raises(ValueError, match="rise from 0"):
        _step(bounds=(0, 3, 2))
    with pytest.raises(ValueError, match="two rows of keys"):
        _step(key_bounds=(0, 5, 8))
    for angles_of in ((DIM, 1), (DIM + 2, 2), (3, 2), (-2, 2)):
        with pytest.raises(ValueError, match="angles of other tokens or heads"):
            _step(angles_of=angles_of)
    _step(angles_of=(2,))
    with pytest.raises(ValueError, match="no such layer"):
        dispatch.native().Updates().add(7, 0, 0, 1, 1.0, 0, 1)
