"""Routing: which rows of the bank each token of a batch uses, each with a scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rango.errors import AdapterError

NO_ROW = -1
"""Row of a token that uses the base alone."""


@dataclass(frozen=True)
class Lane:
    """One row for each token.

    rows: int64, () for every token, (B,) one a sequence, or (B, S) one a token; NO_ROW for none.
    scales: fp32 of the same shape, on top of the adapter's own scaling; None for 1.
    """

    rows: Tensor
    scales: Tensor | None = None

    def __post_init__(self) -> None:
        if self.rows.ndim > 2:
            raise AdapterError(f"rows: expected shape (), (B,) or (B, S), found {self.rows.shape}")
        if self.rows.numel() and not self.rows.is_meta and int(self.rows.min()) < NO_ROW:
            raise AdapterError(
                f"rows: {int(self.rows.min())}; expected a row, or {NO_ROW} for none"
            )
        if self.scales is not None and self.scales.shape != self.rows.shape:
            raise AdapterError(f"scales: shape {self.scales.shape} differs from {self.rows.shape}")


@dataclass(frozen=True)
class Segment:
    """The tokens of a batch that use one row.

    tokens: int64 (n,), indices into the flattened tokens, rising; None for all of them.
    scale: one for all tokens, or fp32 (n, 1).
    runs: the same tokens as half-open ranges.
    """

    row: int
    tokens: Tensor | None
    scale: float | Tensor
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Routing:
    """Lanes whose contributions add up: one, or several for a blend of adapters."""

    lanes: tuple[Lane, ...]
    _plans: dict[tuple[object, ...], tuple[Segment, ...]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @staticmethod
    def base() -> Routing:
        """No token uses a row."""
        return Routing(())

    @staticmethod
    def everywhere(row: int = 0, scale: float = 1.0) -> Routing:
        """Every token uses `row`."""
        return Routing((Lane(torch.tensor(row), torch.tensor(float(scale))),))

    @staticmethod
    def sequences(rows: Sequence[int], scales: Sequence[float] | None = None) -> Routing:
        """One row a sequence of the batch."""
        return Routing(
            (
                Lane(
                    torch.tensor(list(rows)),
                    None if scales is None else torch.tensor(list(scales), dtype=torch.float32),
                ),
            )
        )

    @staticmethod
    def tokens(rows: Tensor, scales: Tensor | None = None) -> Routing:
        """One row a token: (B, S)."""
        return Routing((Lane(rows, scales),))

    @staticmethod
    def blend(*routings: Routing) -> Routing:
        """The sum of several routings' contributions."""
        return Routing(tuple(lane for routing in routings for lane in routing.lanes))

    def plan(
        self, leading: tuple[int, ...], device: torch.device | None = None
    ) -> tuple[Segment, ...]:
        """Segments for a module whose input is (*leading, in), with their tensors on `device`; made
        once and shared by layers."""
        key = (leading, device)
        if key not in self._plans:
            self._plans[key] = tuple(
                segment for lane in self.lanes for segment in _segments(lane, leading, device)
            )
        return self._plans[key]


def _segments(lane: Lane, leading: tuple[int, ...], device: torch.device | None) -> list[Segment]:
    if lane.rows.ndim == 0:
        row = int(lane.rows)
        scale = 1.0 if lane.scales is None else float(lane.scales)
        everything = ((0, int(torch.Size(leading).numel())),)
        return [] if row == NO_ROW else [Segment(row, None, scale, everything)]
    rows = _per_token(lane.rows, leading).to(device)
    scales = None if lane.scales is None else _per_token(lane.scales, leading).to(device)
    segments = []
    for row in rows.unique().tolist():
        if row == NO_ROW:
            continue
        tokens = (rows == row).nonzero()[:, 0]
        share: float | Tensor = 1.0 if scales is None else scales[tokens][:, None]
        every = len(tokens) == len(rows)
        segments.append(Segment(row, None if every else tokens, share, _runs(tokens)))
    return segments


def _runs(tokens: Tensor) -> tuple[tuple[int, int], ...]:
    """Rising indices (n,) -> half-open ranges of neighbours."""
    indices = tokens.tolist()
    firsts = [i for i, token in enumerate(indices) if i == 0 or token != indices[i - 1] + 1]
    lasts = [*firsts[1:], len(indices)]
    return tuple((indices[i], indices[j - 1] + 1) for i, j in zip(firsts, lasts, strict=True))


def _per_token(values: Tensor, leading: tuple[int, ...]) -> Tensor:
    """(B,) or (B, S) -> (N,), N = Π leading; modules may see their tokens flattened."""
    count = int(torch.Size(leading).numel())
    if tuple(values.shape) == leading or (values.ndim == 2 and leading == (values.numel(),)):
        return values.flatten()
    # (B, …), or the tokens of B sequences one after the other; anywhere else the batch's dimension
    # cannot be told (position embeddings of all sequences at once, sequence-first modules)
    flat = len(leading) == 1 and len(values) and count % len(values) == 0
    if values.ndim == 1 and (leading[:1] == tuple(values.shape) or flat):
        return values.repeat_interleave(count // len(values))
    raise AdapterError(
        f"routing gives rows for {tuple(values.shape)}, but a module's input has tokens "
        f"{leading}: give one row a sequence (B,), or one a token (B, S) where every adapted "
        "module sees every token"
    )
