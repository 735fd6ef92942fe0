"""The last linear map of a module: found or named, shown to be last, its features captured and its weights written."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import permutations
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from cfiv.errors import CfivError, DataError, ParameterError
from cfiv.networks.module_modes import in_mode
from cfiv.runtime.draws import run
from cfiv.runtime.processes import ALONE, Processes

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True, kw_only=True)
class Captured:
    """What one forward pass leaves.

    Parameters
    ----------
    features : Tensor (m, d)
        Inputs of the last linear map, one row for each row of the solve, with a last column of ones where it has a bias.
    output : Tensor
        The module's own, of whatever shape.
    shape : tuple of int
        Of the last linear map's output; m is the product of all its axes but that of the channels.
    """

    features: Tensor
    output: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LastLinearMap:
    """A module seen as ``W' phi``: its last linear layer, or 1x1 convolution, and what comes before it.

    Parameters
    ----------
    module : Module
        The whole.
    layer : Linear, Conv1d, Conv2d or Conv3d
        Of the module. For a convolution every point of the grid is a row.
    name : str
        Its dotted name in the module.
    order : tuple of int
        The module's output is the layer's with its axes in this order, reshaped.
    examples_axis : int
        Of the layer's output: the one that grows with the examples.
    output_axes : int
        How many the module's output has, the first for the examples.
    processes : Processes
        That run the module on their share of the examples each.
    """

    module: nn.Module
    layer: nn.Linear | Convolution
    name: str
    order: tuple[int, ...]
    examples_axis: int
    output_axes: int
    processes: Processes = ALONE

    @property
    def targets(self) -> int:
        """How many numbers a row of the output has, k."""
        return int(self.layer.weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Of the layer, and so of its targets."""
        return self.layer.weight.device

    @property
    def channel_axis(self) -> int:
        """Of the layer's output: last for a linear layer, first after the batch for a convolution."""
        return -1 if isinstance(self.layer, nn.Linear) else 1

    def __call__(self, inputs: Tensor) -> Captured:
        """Run the module, in the mode that it is in."""
        seen: list[Tensor] = []
        processes, examples = self.processes.sharing(len(inputs)), len(inputs)
        inputs = processes.own(inputs)
        with self.layer.register_forward_pre_hook(lambda _, given: seen.append(given[0])), processes.undrawn():
            output = output_of(self.module, inputs)
        features = seen[-1]
        if len(inputs) == 1:  # a module that squeezes loses the axis of the examples where there is one of them
            if features.ndim == len(self.order) - 1:
                features = features.unsqueeze(self.examples_axis)
            if output.ndim == 0 or output.shape[0] != 1 or output.ndim == self.output_axes - 1:
                output = output[None]
        if features.ndim != len(self.order) or output.shape[:1] != inputs.shape[:1]:
            raise DataError(
                f"{_of(self.module)} makes an output of shape {tuple(output.shape)} of inputs of shape {tuple(inputs.shape)}: "
                "give inputs (n, ...) with as many axes as those that it was fitted to, the first for the examples"
            )
        if features.dtype in (torch.float16, torch.bfloat16):  # under autocast
            features = features.float()
        features = processes.gather(features, rows=examples, axis=self.examples_axis)
        output = processes.gather(output, rows=examples)
        shape = [*features.shape]
        shape[self.channel_axis] = self.targets
        rows = features.movedim(self.channel_axis, -1).flatten(end_dim=-2)
        if self.layer.bias is not None:
            rows = torch.cat([rows, rows.new_ones(rows.shape[0], 1)], dim=1)
        return Captured(features=rows, output=output, shape=tuple(shape))

    def rows(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Values in the shape of the module's output, such as targets, as rows (m, k) of the solve."""
        there = values.reshape([shape[axis] for axis in self.order])
        back = there.permute([self.order.index(axis) for axis in range(len(shape))])
        return back.movedim(self.channel_axis, -1).flatten(end_dim=-2)

    def repeat(self, values: Tensor, captured: Captured) -> Tensor:
        """A number of each example (n,), at each of its rows (m,)."""
        everywhere = values.reshape(-1, *[1] * (captured.output.ndim - 1)).expand(captured.output.shape)
        return self.rows(everywhere, captured.shape)[:, 0]

    @property
    def weights(self) -> Tensor:
        """W as the layer has it, (d, k) float64, the bias its last row."""
        with torch.no_grad():
            weight = self.layer.weight.flatten(start_dim=1).mT.double()
            return weight.clone() if self.layer.bias is None else torch.cat([weight, self.layer.bias.double()[None]])

    def write(self, weights: Tensor) -> None:
        """Put W into the layer, in its own dtype."""
        inputs = self.layer.weight.shape[1]
        with torch.no_grad():
            self.layer.weight.copy_(weights[:inputs].mT.reshape(self.layer.weight.shape))
            if self.layer.bias is not None:
                self.layer.bias.copy_(weights[inputs])

    def backbone(self) -> list[nn.Parameter]:
        """Parameters that learn, without those of the layer."""
        own = {id(parameter) for parameter in self.layer.parameters()}
        return [p for p in self.module.parameters() if p.requires_grad and id(p) not in own]


def find_last_linear_map(module: nn.Module, probe: Tensor, *, name: str | None = None) -> LastLinearMap:
    """Find the last linear map that a forward pass runs, and show that the module's output is its output.

    The probe runs in evaluation mode and without gradients. The layer's output is replaced by distinct numbers of both signs;
    they must arrive at the module's output unchanged, in any order of axes and any shape that begins with the examples. It
    runs on two examples and on three, so that no other axis is taken for theirs.

    Parameters
    ----------
    module : Module
    probe : Tensor (n, ...)
        Inputs; the first three are taken, over again where there are fewer.
    name : str, optional
        Of the layer, dotted, in place of the last one that runs.

    Raises
    ------
    ParameterError
        If there is none, it runs more than once, its weights belong to other layers too, or something changes its output;
        with the name of the layer and of what comes after it. Also if the output does not begin with the examples.
    DataError
        If the module does not take the inputs.
    """
    two, three = (probe[torch.arange(examples, device=probe.device) % len(probe)] for examples in (2, 3))
    ran: list[str] = []
    names = {part: called for called, part in module.named_modules()}
    if any(type(part).__module__.startswith("torch._dynamo") for part in names):
        raise ParameterError(
            "the module is compiled, wholly or in part, and its layers cannot be watched: give it as it was before"
        )
    with ExitStack() as hooks:
        for part in names:
            hooks.enter_context(part.register_forward_pre_hook(lambda part, _: ran.append(names[part])))
        _probe(module, two)
    parts = dict(module.named_modules())
    linear = [called for called in dict.fromkeys(ran) if _is_linear(parts[called])]
    if name is None:
        if not linear:
            raise ParameterError(
                f"the module has no linear last layer: no torch.nn.Linear and no 1x1 convolution runs in {_of(module)}; end it "
                "with one of them"
            )
        name = next(called for called in reversed(ran) if called in linear)
    elif name not in linear:
        raise ParameterError(
            f"last_module={name!r} is no linear layer or 1x1 convolution that runs in {_of(module)}: use one of {linear}"
        )
    layer = parts[name]
    assert isinstance(layer, nn.Linear | Convolution)
    if layer.weight.is_complex():
        raise ParameterError(
            f"the last linear layer {name!r} has complex weights: end the module with real ones, of .real or .abs()"
        )
    after = ran[len(ran) - ran[::-1].index(name) :]
    _check_weights(module, layer, name, runs=ran.count(name))
    trailing = [(called, parts[called]) for called in after]
    order, made, axes = _axes(module, layer, name, two, trailing)
    _, more, _ = _axes(module, layer, name, three, trailing)
    growing = [axis for axis, (few, many) in enumerate(zip(made, more, strict=True)) if 3 * few == 2 * many]
    if len(growing) != 1:
        raise ParameterError(
            f"the last linear layer {name!r} gives shape {made} for two examples and {more} for three: let one axis be theirs"
        )
    return LastLinearMap(module=module, layer=layer, name=name, order=order, examples_axis=growing[0], output_axes=axes)


def output_of(module: nn.Module, inputs: Tensor) -> Any:
    """The module's output, in the mode that it is in.

    Raises
    ------
    DataError
        If it does not take such inputs.
    """
    try:
        return run(module, inputs)
    except (CfivError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        advice = ""
        if not inputs.is_floating_point():
            advice = ": most layers take floating-point inputs, such as inputs.astype(numpy.float32)"
        elif len(inputs) == 1 and module.training:
            advice = ": leave out batches of one example, as a DataLoader does with drop_last=True"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{_of(module)} does not take inputs of shape {tuple(inputs.shape)} and type {inputs.dtype} ({reason}){advice}"
        ) from error


def _axes(
    module: nn.Module, layer: nn.Module, name: str, probe: Tensor, after: list[tuple[str, nn.Module]]
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The order of axes in which the layer's output becomes the module's; the shape of the one, and the axes of the other."""
    found = f"the last linear layer found is {name!r} ({type(layer).__name__})"
    marks: list[Tensor] = []

    def mark(_: nn.Module, given: Any, output: Tensor) -> Tensor:
        # A quarter: no mark is zero, and none is minus another.
        count = output.numel()
        marks.append((torch.arange(count, device=output.device) - count // 2 + 0.25).to(output.dtype).reshape(output.shape))
        return marks[0]

    with layer.register_forward_hook(mark):
        output = _probe(module, probe)
    if not isinstance(output, Tensor):
        raise ParameterError(f"{found}, but the module returns a {type(output).__name__}: return that layer's output alone")
    dropout = any(isinstance(part, _DropoutNd) and part.p > 0 for _, part in after)
    if output.numel() == marks[0].numel() and not dropout:
        for order in permutations(range(marks[0].ndim)):
            if torch.equal(marks[0].permute(order).reshape(output.shape), output):
                if output.shape[:1] != probe.shape[:1]:
                    raise ParameterError(
                        f"{found}, but the module's output has shape {tuple(output.shape)} for {len(probe)} examples: keep "
                        "their axis, and keep it first (flatten from start_dim=1, squeeze other axes alone)"
                    )
                return order, tuple(marks[0].shape), output.ndim
    what = ", ".join(f"{called!r} ({type(part).__name__})" for called, part in after) or "an operation in its forward method"
    raise ParameterError(
        f"{found}, but the module's output is not that layer's: {what} comes after it; end the module with the linear layer "
        "(reshaping and permuting may follow), or name another one with last_module="
    )


def _check_weights(module: nn.Module, layer: nn.Linear | Convolution, name: str, *, runs: int) -> None:
    if runs > 1:
        raise ParameterError(
            f"the last linear layer {name!r} runs {runs} times in one forward pass: end the module with a layer of its own"
        )
    uses = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    own = dict(layer.named_parameters(recurse=False))
    if set(own) - {"bias"} != {"weight"} or any(uses[id(parameter)] > 1 for parameter in own.values()):
        raise ParameterError(
            f"the weights of the last linear layer {name!r} are shared with another layer or computed from other parameters, "
            "so they cannot be solved: give the layer plain weights of its own"
        )


def _is_linear(part: nn.Module) -> bool:
    if isinstance(part, nn.Linear):
        return True
    if not isinstance(part, Convolution):
        return False
    pointwise = prod(part.kernel_size) == prod(part.stride) == part.groups == 1
    return pointwise and (isinstance(part.padding, str) or not any(part.padding))


def _probe(module: nn.Module, probe: Tensor) -> Any:
    """The module's output in evaluation mode, without gradients; its mode is left as it was."""
    with torch.no_grad(), in_mode(module, training=False):
        return output_of(module, probe)


def _of(module: nn.Module) -> str:
    return f"the {type(module).__name__} given"
