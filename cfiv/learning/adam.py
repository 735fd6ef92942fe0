"""Adam and AdamW for what cfiv trains, without the machinery of ``torch.optim``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """With g the gradient, to which ``weight_decay`` times the parameters p is added unless the decay is ``decoupled``,

        m <- .9 m + .1 g,    v <- .999 v + .001 g^2,    p <- p - lr m' / (sqrt(v') + 1e-8),

    where m' and v' are m and v divided by ``1 - .9^t`` and ``1 - .999^t`` at step t. Decoupled, p is multiplied by
    ``1 - lr weight_decay`` before.

    Parameters
    ----------
    parameters : iterable of Parameter or of dict
        Those that move; or groups ``{"params": ...}``, with options of their own.
    lr, weight_decay : float
        Of groups that have none of their own.
    decoupled : bool
        AdamW.

    Notes
    -----
    All of a group move in one operation of torch's, bit for bit as by ``torch.optim.Adam(..., fused=True)``; its interface is
    that of ``torch.optim``, whose optimisers import torch's compiler once one is made, a second and a half of a processor.

    References
    ----------
    Kingma and Ba (ICLR 2015); Loshchilov and Hutter (ICLR 2019) for the decoupled decay.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        given: list[Any] = list(parameters)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        options = {"lr": lr, "weight_decay": weight_decay, "decoupled": decoupled}
        self.param_groups: list[dict[str, Any]] = [options | group for group in groups]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    def __repr__(self) -> str:
        groups = [{name: option for name, option in group.items() if name != "params"} for group in self.param_groups]
        return f"Adam {groups}"

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[Any, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    raise RuntimeError("sparse gradients are for torch.optim.SparseAdam")
                if parameter.grad is not None:
                    alike[parameter.device, parameter.dtype].append(parameter)
            for parameters in alike.values():
                self._move(parameters, group)

    def state_dict(self) -> dict[str, Any]:
        """What is remembered of parameters, by their numbers, and the groups with these numbers, as in ``torch.optim``."""
        numbers = {parameter: number for number, parameter in enumerate(self._parameters())}
        groups = [group | {"params": [numbers[parameter] for parameter in group["params"]]} for group in self.param_groups]
        return {"state": {numbers[parameter]: kept for parameter, kept in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """The reverse."""
        parameters = self._parameters()
        for group, kept in zip(self.param_groups, values["param_groups"], strict=True):
            group |= kept | {"params": group["params"]}
        self.state = {
            parameters[number]: {name: part.to(parameters[number].device, copy=True) for name, part in kept.items()}
            for number, kept in values["state"].items()
        }

    def _move(self, parameters: list[nn.Parameter], group: Mapping[str, Any]) -> None:
        """Those of one device and type; torch pairs numbers as they lie in memory, so all have to lie alike."""
        kept = [self._kept(parameter) for parameter in parameters]
        moved = [parameter.contiguous().resolve_conj() for parameter in parameters]
        columns = [moved, [parameter.grad.contiguous() for parameter in parameters if parameter.grad is not None]]
        columns += [[each[name] for each in kept] for name in ("exp_avg", "exp_avg_sq")]
        steps = [each["step"] for each in kept]
        torch._foreach_add_(steps, 1)
        update = torch._fused_adamw_ if group["decoupled"] else torch._fused_adam_
        values, gradients, means, squares = ([_real(part) for part in column] for column in columns)
        update(
            values,
            gradients,
            means,
            squares,
            [],
            steps,
            lr=group["lr"],
            beta1=BETA1,
            beta2=BETA2,
            weight_decay=group["weight_decay"],
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )
        for parameter, new in zip(parameters, moved, strict=True):
            if new is not parameter:
                parameter.copy_(new)

    def _kept(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if parameter not in self.state:
            still = torch.zeros_like(parameter, memory_format=torch.contiguous_format, requires_grad=False)
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            self.state[parameter] = {"step": step, "exp_avg": still, "exp_avg_sq": still.clone()}
        return self.state[parameter]

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def _real(values: Tensor) -> Tensor:
    """Complex numbers as pairs: their parts move by themselves."""
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
