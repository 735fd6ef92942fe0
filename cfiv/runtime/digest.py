"""Digests of data, by which a checkpoint knows what it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def digest(parts: Iterable[Tensor | None]) -> str:
    """Of all values of some tensors, with their types and shapes and in their order; None is a part that is not there."""
    hashed = hashlib.blake2b(digest_size=16)
    for values in parts:
        if values is None:
            hashed.update(b"none")
            continue
        plain = values.detach().cpu().resolve_conj().resolve_neg().contiguous()
        hashed.update(f"{str(plain.dtype).removeprefix('torch.')} {tuple(plain.shape)}".encode())
        if plain.numel():
            hashed.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
