"""A KV cache of transformers that grows in place: a token costs a token, not a copy of all before.

It keeps every key, also of layers with a sliding window: the masks say what they may see.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_BLOCK = 64
"""Tokens by which a layer's room grows at least."""


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, (batch, kv_heads, length, dim), at the front of larger tensors
    that are written in place: not for what is differentiated through.

    `keys` and `values` are views of what is filled; setting them takes another tensor for the room.
    """

    def __init__(self, **fields: Any) -> None:
        self._rooms: list[Tensor | None] = [None, None]
        self._filled = [0, 0]
        super().__init__(**fields)

    @property
    def keys(self) -> Tensor | None:
        """(batch, kv_heads, length, dim); None before the first."""
        return self._view(0)

    @keys.setter
    def keys(self, tensor: Tensor | None) -> None:
        self._take(0, tensor)

    @property
    def values(self) -> Tensor | None:
        """As the keys."""
        return self._view(1)

    @values.setter
    def values(self, tensor: Tensor | None) -> None:
        self._take(1, tensor)

    def get_seq_length(self) -> int:
        """Tokens that are kept."""
        return self._filled[0]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (batch, kv_heads, tokens, dim) to each; all there are then."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rooms = self._extend(key_states.shape)
        end = self.get_seq_length()
        for room, states in zip(rooms, (key_states, value_states), strict=True):
            room[:, :, end - states.shape[2] : end] = states
        keys, values = (room[:, :, :end] for room in rooms)
        return keys, values

    def room_for(self, x: Tensor, heads: int, dim: int) -> tuple[Tensor, Tensor] | None:
        """Count in keys and values for x (batch, tokens, …), fp32 on the CPU, which the caller
        then writes: the rooms (batch, heads, …, dim) of both, the tokens of a head contiguous and
        both alike; None, and nothing done, where they are not so."""
        batch, tokens = x.shape[:2]
        if not self.is_initialized:
            self.lazy_initialization(x, x)
        keys, values = self._rooms
        if keys is not None and values is not None:
            strides = keys.stride()
            if (
                keys.dtype != torch.float32
                or not keys.is_cpu
                or (keys.shape[0], keys.shape[1], keys.shape[3]) != (batch, heads, dim)
                or strides[2:] != (dim, 1)
                or values.dtype != torch.float32
                or values.stride() != strides
                or values.shape != keys.shape
            ):
                return None
        return self._extend(torch.Size((batch, heads, tokens, dim)))

    def _extend(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Rooms with space for `shape` (batch, kv_heads, tokens, dim) more, counted in."""
        needed = self.get_seq_length() + shape[2]
        keys, values = self._rooms
        if keys is None or values is None or min(keys.shape[2], values.shape[2]) < needed:
            keys, values = (
                self._grown(self.keys, shape, needed),
                self._grown(self.values, shape, needed),
            )
            self._rooms = [keys, values]
        self._filled = [needed, needed]
        return keys, values

    def _grown(self, kept: Tensor | None, shape: torch.Size, needed: int) -> Tensor:
        batch, heads, _, dim = shape
        capacity = -(-(needed + needed // 2) // _BLOCK) * _BLOCK
        grown = torch.empty(batch, heads, capacity, dim, dtype=self.dtype, device=self.device)
        if kept is not None:
            grown[:, :, : kept.shape[2]] = kept
        return grown

    def _view(self, which: int) -> Tensor | None:
        room = self._rooms[which]
        return None if room is None else room[:, :, : self._filled[which]]

    def _take(self, which: int, tensor: Tensor | None) -> None:
        if tensor is None or not tensor.numel():
            self._rooms[which], self._filled[which] = None, 0
        else:
            self._rooms[which], self._filled[which] = tensor, tensor.shape[2]


def roomy_cache(model: Any) -> Cache | None:
    """An empty cache for a model of transformers; None where its own holds more than keys and
    values, or is not known."""
    config = getattr(model, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        return None
    cache = DynamicCache(config=config)
    known = (DynamicLayer, DynamicSlidingWindowLayer)
    if not cache.layers or any(type(layer) not in known for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer() for _ in cache.layers]
    return cache
