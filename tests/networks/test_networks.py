"""Feature networks: fresh, seeded, checked, and described without code."""

import json

import pytest
import torch
from torch import nn

import cfiv
from cfiv.errors import ParameterError
from cfiv.networks import default_networks as nets
from cfiv.networks import original_networks
from cfiv.networks.architecture import bounded, describe, rebuild
from cfiv.networks.build import NetworkSpec, build
from cfiv.networks.feature_maps import evaluate
from cfiv.runtime.draws import seeded

CPU = torch.device("cpu")


def built(spec: NetworkSpec, seed: int = 0, shape: tuple[int, ...] = (3,)) -> nn.Module:
    with seeded(seed, CPU):
        return build(spec, shape=shape, default=nets.covariate_network, role="covariate")


@pytest.mark.law
def test_default_features_begin_with_the_input_itself() -> None:
    x = torch.randn(5, 3)
    assert torch.equal(built(None)(x)[:, :3], x)


@pytest.mark.law
def test_initial_weights_depend_on_the_seed_alone() -> None:
    x = torch.randn(5, 3)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, again, other = built(None, 0)(x), built(None, 0)(x), built(None, 1)(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.law
def test_a_module_given_is_copied_and_initialised_anew() -> None:
    given = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    weights = {name: value.clone() for name, value in given.state_dict().items()}
    made = built(given)
    assert made is not given
    assert not torch.equal(made[0].weight, given[0].weight)
    assert torch.equal(made[0].weight, built(given)[0].weight)
    assert all(torch.equal(value, weights[name]) for name, value in given.state_dict().items())
    assert not given.training


@pytest.mark.law
def test_a_factory_gets_the_width_of_flat_inputs_and_the_shape_of_images() -> None:
    assert built(lambda width: nn.Linear(width, 2))(torch.zeros(4, 3)).shape == (4, 2)
    convolution = built(lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1], 2)), shape=(6, 6))
    assert convolution(torch.zeros(4, 6, 6)).shape == (4, 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("relu", r"covariate_network must be None, a factory or a torch module, got str"),
        (lambda width: "net", r"the covariate_network factory must return a torch module, got str"),
        (
            nn.Linear,
            r"the covariate_network factory could not be called with 3, the width of its input \(.*\): give a function",
        ),
        (nn.Linear(7, 2), r"the covariate_network does not accept inputs of shape \('rows', 3\)"),
        (nn.Unflatten(1, (3, 1)), r"must map \(rows, 3\) to \(rows, features\), got output shape \(2, 3, 1\)"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(spec: NetworkSpec, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        built(spec)


@pytest.mark.contract
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_torch_jit_has_made_is_refused_before_anything_is_trained() -> None:
    scripted = torch.jit.script(nn.Linear(3, 2))
    within = nn.Sequential(torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3)), nn.Tanh())
    for spec in (scripted, lambda width: scripted):
        with pytest.raises(
            ParameterError, match=r"the covariate_network must be made of torch.nn, and it is of torch.jit: give"
        ):
            built(spec)
    with pytest.raises(ParameterError, match=r"the covariate_network must be made of torch.nn, and its '0' is of torch.jit"):
        built(within)
    with pytest.raises(ParameterError, match=r"the module must be made of torch.nn, and it is of torch.jit"):
        cfiv.LastLayerTrainer(scripted)


@pytest.mark.law
def test_evaluating_leaves_batch_statistics_and_mode_alone() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    mean = network[1].running_mean.clone()
    features = evaluate(network, torch.randn(10, 3))
    assert network.training
    assert torch.equal(network[1].running_mean, mean)
    assert not features.requires_grad


PLAIN = [
    nets.treatment_network((1,)),
    nets.treatment_network((8, 8)),
    original_networks.original_instrument_network(3),
    original_networks.original_covariate_network(2),
    nn.Sequential(
        nn.Flatten(), nn.Linear(4, 3, bias=False), nn.LayerNorm(3), nn.Sequential(nn.GELU(), nn.Dropout(0.1)), nn.Tanh()
    ),
]


@pytest.mark.law
@pytest.mark.parametrize("network", PLAIN, ids=lambda network: type(network).__name__)
def test_a_plain_network_is_rebuilt_from_its_description(network: nn.Module) -> None:
    description = describe(network)
    assert description is not None
    again = rebuild(description)
    again.load_state_dict(network.state_dict())
    width = next(layer for layer in network.modules() if isinstance(layer, nn.Linear)).in_features
    x = torch.randn(5, width)
    assert torch.equal(evaluate(again, x), evaluate(network, x))


TOO_LARGE = {
    "width": (nn.Linear(2, 9), (40, 2)),
    "padding": (nn.Conv2d(1, 1, 3, padding=(0, 60)), (1, 3, 3)),
    "channels": (nn.Conv2d(1, 12, 3), (1, 6, 6)),
    "reach": (nn.Conv2d(1, 1, 3, padding="same", dilation=50), (1, 3, 3)),
    "pool": (nn.AdaptiveAvgPool2d((None, 200)), (1, 3, 3)),
}


@pytest.mark.law
@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_layer_that_would_make_more_numbers_than_are_believed_is_refused_before_it_does(name: str) -> None:
    layer, shape = TOO_LARGE[name]
    ran: list[nn.Module] = []
    layer.register_forward_hook(lambda module, *_: ran.append(module))
    with bounded(layer, most=350), pytest.raises(ValueError, match=f"a layer {type(layer).__name__} that makes"):
        evaluate(layer, torch.zeros(1, *shape))
    assert not ran
    with bounded(layer, most=50_000):
        evaluate(layer, torch.zeros(1, *shape))
    assert ran


COARSE = pytest.mark.parametrize("shape", [(64, 64), (1, 32, 32), (3, 64, 48), (2, 70, 50), (1, 100, 33)], ids=str)


@pytest.mark.law
@COARSE
def test_the_default_network_of_images_keeps_the_variance_of_white_noise(shape: tuple[int, ...]) -> None:
    """Its coarse pixels are orthonormal combinations of pixels: their values at one bright pixel at a time show them."""
    network = nets.image_network(shape)
    assert isinstance(network, nn.Sequential)
    height, width = shape[-2:]
    impulses = torch.eye(height * width, dtype=torch.float64).reshape(-1, 1, height, width)
    combinations = network[0](impulses).flatten(start_dim=1)
    coarse = combinations.shape[1]
    torch.testing.assert_close(combinations.mT @ combinations, torch.eye(coarse, dtype=torch.float64))
    # Each channel by itself, 16 to 31 coarse pixels on the shorter side, at most a side's width of pixels left out.
    assert network[2].inputs == coarse * (shape[0] if len(shape) == 3 else 1)
    pooled = network[0](torch.zeros(1, 1, height, width)).shape[-2:]
    assert 16 <= min(pooled) <= 31
    side = min(height, width) // 16
    assert all(pixels - side < many * side <= pixels for many, pixels in zip(pooled, (height, width), strict=True))


@pytest.mark.law
@pytest.mark.parametrize("shape", [(8, 8), (1, 31, 64), (3, 28, 28), (2, 3, 32, 32)], ids=str)
def test_small_images_and_volumes_are_taken_pixel_by_pixel(shape: tuple[int, ...]) -> None:
    network = nets.treatment_network(shape)
    assert isinstance(network, nets.FeatureNetwork)
    assert network.inputs == torch.zeros(shape).numel()


LAYERS_OF_IMAGES = {
    "Conv2d": lambda: nn.Conv2d(4, 6, 3),
    "Conv2d padded, dilated": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1), bias=False),
    "Conv2d same": lambda: nn.Conv2d(4, 6, 5, padding="same", dilation=2),
    "Conv2d circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "Conv2d reflected": lambda: nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect"),
    "Conv2d in groups": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "AvgPool2d": lambda: nn.AvgPool2d(3),
    "AvgPool2d with options": lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    "AvgPool2d with a divisor": lambda: nn.AvgPool2d((3, 2), divisor_override=2),
    "MaxPool2d": lambda: nn.MaxPool2d(2),
    "MaxPool2d with options": lambda: nn.MaxPool2d((3, 2), stride=(2, 1), padding=1, dilation=(2, 1), ceil_mode=True),
    "AdaptiveAvgPool2d": lambda: nn.AdaptiveAvgPool2d((3, None)),
    "BatchNorm2d": lambda: nn.BatchNorm2d(4, eps=0.5),
    "BatchNorm2d without scale": lambda: nn.BatchNorm2d(4, affine=False),
    "Flatten, Unflatten": lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (9, 8, 8))),
}


@pytest.mark.law
@pytest.mark.parametrize("name", LAYERS_OF_IMAGES)
def test_a_layer_of_images_is_rebuilt_from_json_with_all_its_arguments(name: str) -> None:
    x = torch.randn(3, 4, 12, 12)
    network = nn.Sequential(LAYERS_OF_IMAGES[name](), nn.Flatten())
    network(torch.randn(3, 4, 12, 12) + 1.0)  # moves batch statistics
    again = rebuild(json.loads(json.dumps(describe(network))))
    again.load_state_dict(network.state_dict())
    assert torch.equal(evaluate(again, x), evaluate(network, x))


class Custom(nn.Linear):
    """A subclass may compute anything."""


@pytest.mark.parametrize(
    "network",
    [
        Custom(3, 2),
        nn.Sequential(nn.Linear(3, 2), Custom(2, 2)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)),
        nn.ConvTranspose2d(1, 2, 3),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv3d(2, 2, 3)),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 2, 3)),
    ],
    ids=["subclass", "nested subclass", "spectral norm", "transposed", "unknown", "spectral convolution"],
)
def test_a_network_with_code_of_its_own_is_not_described(network: nn.Module) -> None:
    assert describe(network) is None


@pytest.mark.law
def test_frozen_layers_of_a_module_given_keep_their_weights() -> None:
    given = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 2))
    made = built(given)
    assert torch.equal(made[0].weight, given[0].weight)
    assert not torch.equal(made[1].weight, given[1].weight)
