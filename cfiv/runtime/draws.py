"""Random numbers of a fit's own: what layers, loaders and factories draw comes from its seed, thread by thread.

Layers draw from torch's global generator and cannot be given another. So a mode of torch's, which is in force in one thread
only, hands the fit's own generator to whatever draws. The stream is the one that the global generator has after
``torch.manual_seed(seed)``, and the global one itself is neither read nor written: fits in other threads, and programs that
draw meanwhile, are not disturbed. What code inside says to the global generator (``torch.manual_seed``,
``torch.get_rng_state``, ``torch.random.fork_rng``, activation checkpointing) it says to the fit's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: Functions of torch's and methods of tensors that may draw, by name, besides all of ``torch.nn.init``.
MAY_DRAW = frozenset({
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli", "multinomial",
    "poisson", "binomial", "_standard_gamma", "_sample_dirichlet", "uniform_", "normal_", "bernoulli_", "random_",
    "exponential_", "cauchy_", "geometric_", "log_normal_", "dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d",
    "feature_dropout", "feature_dropout_", "native_dropout", "_fused_dropout", "alpha_dropout", "alpha_dropout_",
    "feature_alpha_dropout", "feature_alpha_dropout_", "rrelu", "rrelu_", "rrelu_with_noise", "rrelu_with_noise_",
    "rrelu_with_noise_functional", "gumbel_softmax", "fractional_max_pool2d", "fractional_max_pool3d",
    "fractional_max_pool2d_with_indices", "fractional_max_pool3d_with_indices", "scaled_dot_product_attention",
    "multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu", "svd_lowrank", "pca_lowrank",
    "get_approximate_basis", "lobpcg",
})  # fmt: skip
#: Torch's layers that draw in training, where the attribute of this name is not zero.
DRAWING_LAYERS: dict[type[nn.Module], str] = {
    nn.modules.dropout._DropoutNd: "p",
    nn.MultiheadAttention: "dropout",
    nn.RNNBase: "dropout",
    nn.RReLU: "upper",
    nn.FractionalMaxPool2d: "kernel_size",
    nn.FractionalMaxPool3d: "kernel_size",
}
#: Where classes are at home that draw nothing but by such layers.
KNOWN = ("torch.nn.", "torch.optim.", "cfiv.networks.", "cfiv.learning.")


class _Here(threading.local):
    """Of this thread: the generator that stands in for the global one, networks that may draw, who has asked for its state."""

    generator: torch.Generator | None = None
    networks: frozenset[int] = frozenset()
    asked = False


_HERE, _GLOBAL = _Here(), torch.default_generator
#: Whoever has to draw from the global generators does so one after another.
_ONE_AT_A_TIME = threading.RLock()


class Draws:
    """A stream of random numbers, which goes on where the block before has left it.

    Parameters
    ----------
    seed : int
    device : device
        Where layers run: on cuda they draw there, from the same seed.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._own = torch.Generator().manual_seed(seed)
        self._on_cuda = torch.Generator(device).manual_seed(seed) if device.type == "cuda" else None

    @contextmanager
    def here(self, *networks: nn.Module, other_code: bool = False) -> Iterator[None]:
        """In this thread, draws come from the stream inside.

        Parameters
        ----------
        networks : Module
            That :func:`run` inside. Those known to draw nothing are not watched.
        other_code : bool
            Whether other code that may draw runs too, such as factories: all is watched then. Otherwise say where it does,
            by :func:`watched`.

        Notes
        -----
        To watch costs a microsecond for each of torch's functions, in a step some hundred.

        Compiled and scripted modules, and layers on cuda, draw where no mode reaches. They get the global generators, whose
        states are put back: such blocks are entered by one thread after the other.
        """
        if self._on_cuda is not None or any(_out_of_reach(part) for network in networks for part in network.modules()):
            with _borrowed(self._own, self._on_cuda), _drawing_from(None, ()):
                yield
            return
        with ExitStack() as stack:
            stack.enter_context(_drawing_from(self._own, filter(may_draw, networks)))
            if other_code:
                stack.enter_context(watched())
            yield


def run(network: nn.Module, inputs: Tensor) -> Any:
    """What a network gives; in a block of :class:`Draws` that names it, it draws from the block's stream."""
    if id(network) not in _HERE.networks:
        return network(inputs)
    with watched():
        return network(inputs)


@contextmanager
def running_again() -> Iterator[None]:
    """Gradients of what ran: layers that keep no activations (``torch.utils.checkpoint``) run again, and draw as they did."""
    if _HERE.generator is None or not _HERE.asked:
        yield
    else:
        with _HandOver():  # type: ignore[no-untyped-call]  # torch has no type for it
            yield


@contextmanager
def watched(thing: object = None) -> Iterator[None]:
    """In a block of :class:`Draws`: code that draws from the block's stream, unless it is that of a thing which is known."""
    if _HERE.generator is None or (thing is not None and type(thing).__module__.startswith(KNOWN)):
        yield
    else:
        with _OwnGenerator():
            yield


def reseed(seed: int, device: torch.device) -> None:
    """Start the stream of this thread's block anew."""
    (_HERE.generator or _GLOBAL).manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def states_here() -> list[Tensor]:
    """States of the generators that layers draw from in this thread's block, on cuda that of the present card too."""
    on_cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return [(_HERE.generator or _GLOBAL).get_state(), *on_cuda]


def may_draw(network: nn.Module) -> bool:
    """Whether a network may draw in training: it has such a layer, or code that is not known."""
    return any(_may_draw(part) for part in network.modules())


def _may_draw(part: nn.Module) -> bool:
    classes = type(part).__mro__[: type(part).__mro__.index(nn.Module)]
    if not all(kind.__module__.startswith(KNOWN) for kind in classes) or "forward" in vars(part):
        return True
    if part._forward_hooks or part._forward_pre_hooks:
        return True
    return any(bool(getattr(part, chance)) for kind, chance in DRAWING_LAYERS.items() if isinstance(part, kind))


def _out_of_reach(part: nn.Module) -> bool:
    """Whether a part runs code that torch has made of it."""
    return isinstance(part, torch.jit.ScriptModule) or type(part).__module__.startswith("torch._dynamo")


class _OwnGenerator(TorchFunctionMode):
    """Looks at what is called; few things cost the same again under :class:`_HandOver`, to which every draw shows."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "").partition(".")[0]
        if name in MAY_DRAW or getattr(func, "__module__", None) == "torch.nn.init":
            with _HandOver():  # type: ignore[no-untyped-call]  # torch has no type for it
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _HandOver(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives the thread's generator to every operation that would take the global one."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to keep this out of compiled code torch imports its compiler, 1.5 s, and compiled code is borrowed for anyway."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given, own = kwargs or {}, _HERE.generator
        if own is None or torch.Tag.nondeterministic_seeded not in func.tags or given.get("generator") not in (None, _GLOBAL):
            return func(*args, **given)
        packet = func.overloadpacket
        for overload in (func, *(getattr(packet, name) for name in packet.overloads())):
            if any(argument.name == "generator" for argument in overload._schema.arguments):
                # The packet finds the overload: some have a sibling that differs by the generator alone.
                return packet(*args, **{**given, "generator": own})
        with _borrowed(own, None):
            return func(*args, **given)


class _OfThisThread:
    """What stands for the global generator where torch's functions speak to it: in a block, the thread's own."""

    def __getattr__(self, name: str) -> Any:
        _HERE.asked = _HERE.asked or name == "get_state"
        return getattr(_HERE.generator or _GLOBAL, name)


class _Spoken:
    """Where torch's functions speak to while any block is entered."""

    def __init__(self) -> None:
        self._blocks, self._lock, self._to_thread = 0, threading.Lock(), _OfThisThread()

    def add(self, blocks: int) -> None:
        """One more, or one less."""
        with self._lock:
            self._blocks += blocks
            vars(torch.random)["default_generator"] = self._to_thread if self._blocks else _GLOBAL


_SPOKEN = _Spoken()


@contextmanager
def _drawing_from(generator: torch.Generator | None, networks: Iterable[nn.Module]) -> Iterator[None]:
    before = _HERE.generator, _HERE.networks, _HERE.asked
    _HERE.generator, _HERE.networks, _HERE.asked = generator, frozenset(map(id, networks)), False
    _SPOKEN.add(1)
    try:
        yield
    finally:
        _SPOKEN.add(-1)
        _HERE.generator, _HERE.networks, _HERE.asked = before


@contextmanager
def _borrowed(own: torch.Generator, on_cuda: torch.Generator | None) -> Iterator[None]:
    """The global generators go on with these streams inside, and with their own outside."""
    with _ONE_AT_A_TIME, ExitStack() as stack:
        stack.callback(_GLOBAL.set_state, _GLOBAL.get_state())
        stack.callback(lambda: own.set_state(_GLOBAL.get_state()))
        _GLOBAL.set_state(own.get_state())
        if on_cuda is not None:
            device = on_cuda.device
            stack.callback(torch.cuda.set_rng_state, torch.cuda.get_rng_state(device), device)
            stack.callback(lambda: on_cuda.set_state(torch.cuda.get_rng_state(device)))
            torch.cuda.set_rng_state(on_cuda.get_state(), device)
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws of layers (initial weights, dropout) come from ``seed`` inside; see :class:`Draws`."""
    with Draws(seed, device).here(other_code=True):
        yield
