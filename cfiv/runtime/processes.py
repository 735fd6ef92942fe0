"""Several processes that fit together: each runs its share of the rows of every batch through the networks.

What networks make of the rows is gathered. So every process has the features of the whole batch, solves the last layers and
differentiates losses on them: with the numbers of one process, whatever the last layer. Each goes back through the networks
with the gradient of its own rows' features, and gradients of parameters are summed. So all have the same weights after every
step. Sums of moments would travel lighter where rows are many times the features, as the points of grids are, but not every
last layer is a function of moments, and where rows are few they are the heavier of the two.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cfiv.errors import ParameterError, ProcessError
from cfiv.runtime.draws import states_here

#: What `torchrun` tells a process that it starts.
STARTED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a fit, as one of them sees them; alone, all that is shared is its own.

    Parameters
    ----------
    count : int
    place : int
        Of this one, from 0.
    words : ProcessGroup, optional
        Through which the processor's memory travels; that of other devices goes through torch's default group.
    """

    count: int = 1
    place: int = 0
    words: Any = None

    @property
    def first(self) -> bool:
        """Whether it is this one that writes checkpoints and shows progress."""
        return self.place == 0

    def sharing(self, rows: int) -> Processes:
        """These; where there are fewer rows than processes, each alone, with all of them."""
        return self if rows >= self.count else ALONE

    def own(self, rows: Tensor, *, axis: int = 0) -> Tensor:
        """The rows along an axis that are this one's: neighbours, as many as others have or one more or less."""
        start, stop = self._bounds(rows.shape[axis])[self.place]
        return rows.narrow(axis, start, stop - start)

    def gather(self, own: Tensor, *, rows: int, axis: int = 0) -> Tensor:
        """What all make of so many rows, along the axis that grows with them; a gradient goes back to one's own."""
        if self.count == 1:
            return own
        start, stop = self._bounds(rows)[self.place]
        each = own.shape[axis] // (stop - start)
        gathered: Tensor = _Gathered.apply(own, self, [(each * a, each * b) for a, b in self._bounds(rows)], axis)  # type: ignore[no-untyped-call]
        return gathered

    def sum(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Those of all processes, added up; the same are None in each of them."""
        there = [tensor for tensor in tensors if tensor is not None]
        if self.count == 1 or not there:
            return list(tensors)
        real = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in there]
        total: list[Tensor] = [tensor.new_empty(0) for tensor in real]
        for dtype in {tensor.dtype for tensor in real}:
            places = [place for place, tensor in enumerate(real) if tensor.dtype == dtype]
            flat = torch.cat([real[place].flatten() for place in places])
            with _together():
                dist.all_reduce(flat, group=self._group(flat))
            for place, part in zip(places, torch.split(flat, [real[place].numel() for place in places]), strict=True):
                total[place] = part.view(real[place].shape)
        summed = iter(
            torch.view_as_complex(part) if tensor.is_complex() else part for part, tensor in zip(total, there, strict=True)
        )
        return [None if tensor is None else next(summed) for tensor in tensors]

    @contextmanager
    def undrawn(self) -> Iterator[None]:
        """Raise a ParameterError, with others, where a network inside draws: shares would draw other numbers than all rows."""
        before = None if self.count == 1 else states_here()
        yield
        if before is not None and any(not torch.equal(*pair) for pair in zip(before, states_here(), strict=True)):
            raise ParameterError(
                "a network draws random numbers in training (dropout?), for its share of the rows in each of several processes "
                "others than for all of them: set the dropout to 0, or fit in one process"
            )

    def check_alike(self, what: str, *parts: object) -> None:
        """Raise a ParameterError, in all of them, unless these have the same texts in every process."""
        if self.count == 1:
            return
        own = torch.frombuffer(bytearray(blake2b(repr(parts).encode(), digest_size=16).digest()), dtype=torch.uint8)
        everybody = [torch.empty_like(own) for _ in range(self.count)]
        with _together():
            dist.all_gather(everybody, own, group=self.words)
        if any(not torch.equal(each, own) for each in everybody):
            raise ParameterError(
                f"{what} must be the same in each of the {self.count} processes, got others in some: let all read the same "
                "data and checkpoint, give a whole number as random_state, and seed torch before a module is made"
            )

    def first_says(self, answer: bool) -> bool:
        """The first one's answer, which may depend on its clock; and nobody goes on before it is given."""
        if self.count == 1:
            return answer
        said = torch.tensor([answer])
        with _together():
            dist.broadcast(said, src=0, group=self.words)
        return bool(said)

    def _bounds(self, rows: int) -> list[tuple[int, int]]:
        """First and last of the rows of each."""
        ends = [rows * place // self.count for place in range(self.count + 1)]
        return list(pairwise(ends))

    def _group(self, tensor: Tensor) -> Any:
        return self.words if tensor.device.type == "cpu" else None


ALONE = Processes()


class _Here(threading.local):
    """Of this thread."""

    processes = ALONE


_HERE = _Here()


def here() -> Processes:
    """The processes that this thread fits with: those of a block of :func:`several_processes`, else it alone."""
    return _HERE.processes


@contextmanager
def several_processes() -> Iterator[Processes]:
    """Inside, the processes that ``torchrun`` has started share the rows of every batch.

    ``torchrun --nproc-per-node 2 script.py`` runs a script twice. Every process does all of it with the same data, seeds and
    arguments, and comes to the same models. Fits of :class:`cfiv.LastLayerTrainer`, :class:`cfiv.DFIV` and
    :class:`cfiv.NetworkRegression` inside the block run the networks on their share of a batch only; everything else happens in
    each process. The numbers are those of one process with the same batches, to rounding.

    The first process writes checkpoints, shows progress and calls ``on_step``. If one of them ends, so do the fits of the
    others; a checkpoint goes on where it was written last. Ctrl-C ends them too.

    In a process that nobody has started with others the block changes nothing, so that a script serves both.

    Yields
    ------
    Processes
        ``count``, ``place`` from 0, and ``first``, which tells the process that is to save a model or print.

    Raises
    ------
    ParameterError
        In a fit: if data, seeds or weights are not the same in all processes; or if a network draws random numbers in training
        or looks at other rows of its batch (dropout, batch normalisation): a share of the rows would give other numbers.
    ProcessError
        In a fit: if another process has ended.

    Notes
    -----
    Only the thread that enters the block fits with others. On cuda, where torch's backend is nccl, process k of a machine
    computes on its k-th card.

    Examples
    --------
    >>> with several_processes() as here:
    ...     here.count, here.first
    (1, True)
    """
    if _HERE.processes is not ALONE:
        yield _HERE.processes
        return
    started = dist.is_available() and dist.is_initialized()
    if not started and not (dist.is_available() and all(name in os.environ for name in STARTED)):
        yield ALONE
        return
    if not started:
        with _together():
            dist.init_process_group()
    try:
        if dist.get_world_size() > 1:
            with _together():
                words = dist.new_group(backend="gloo")
            _HERE.processes = Processes(count=dist.get_world_size(), place=dist.get_rank(), words=words)
        with _own_card():
            yield _HERE.processes
    finally:
        _HERE.processes = ALONE
        if not started:
            dist.destroy_process_group()


def check_shareable(network: nn.Module) -> None:
    """Raise a ParameterError where a network is known to look at other rows of its batch: statistics of a share are others'."""
    for name, part in network.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not isinstance(part, nn.SyncBatchNorm):
            raise ParameterError(
                f"{name or 'the network'} ({type(part).__name__}) looks at all rows of a batch, of which each of several "
                "processes has a share: use GroupNorm or LayerNorm, on cuda SyncBatchNorm, or one process"
            )


class _Gathered(torch.autograd.Function):
    """Parts of all processes, one after another along an axis. They all go on alike, so each has its own part's gradient."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, processes: Processes, bounds: list[tuple[int, int]], axis: int) -> Tensor:
        ctx.axis, (ctx.start, stop) = axis, bounds[processes.place]
        ctx.length = stop - ctx.start
        rows = own.detach().movedim(axis, 0)
        longest = max(stop - start for start, stop in bounds)
        padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])]).contiguous()
        everybody = [torch.empty_like(padded) for _ in bounds]
        with _together():  # as bytes: of any type
            sent = [part.reshape(-1).view(torch.uint8) for part in (padded, *everybody)]
            dist.all_gather(sent[1:], sent[0], group=processes._group(padded))
        return torch.cat([part[: stop - start] for part, (start, stop) in zip(everybody, bounds, strict=True)]).movedim(0, axis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return gradients[0].narrow(ctx.axis, ctx.start, ctx.length), None, None, None


@contextmanager
def _own_card() -> Iterator[None]:
    """Process k of a machine computes on its k-th card."""
    card = os.environ.get("LOCAL_RANK")
    if not torch.cuda.is_available() or card is None:
        yield
        return
    with torch.cuda.device(int(card) % torch.cuda.device_count()):
        yield


@contextmanager
def _together() -> Iterator[None]:
    """What fails inside does so because of another process."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ProcessError(
            f"another process of this run has ended, or cannot be reached ({reason}): start all of them again; a fit with a "
            "checkpoint goes on where that was written last"
        ) from error
