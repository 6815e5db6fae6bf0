"""Every hand-written backward pass against torch's autograd in float64, and whole models' gradients."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from layerwise_lr.plugins.reference_plugin import layers as reference
from layerwise_lr.plugins.reference_plugin import optimizers
from layerwise_lr.plugins.reference_plugin.plugin import ReferenceFramework
from layerwise_lr.plugins.torch_plugin import layers as native

from layerwise_lr.models.layers import KINDS, PLAIN_KINDS, Layer, Residual, Seq, Tree, initial_weights
from layerwise_lr.models.trees import make_tree
from layerwise_lr.planning.plan import OPTIMIZERS, OptimizerSpec

IMAGE, SEQUENCE = (3, 4, 9, 9), (3, 6, 8)
CASES: Mapping[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "conv": (
        IMAGE,
        {"in_channels": 4, "out_channels": 6, "kernel": 3, "stride": 2, "padding": 1, "groups": 2, "bias": True},
    ),
    "linear": (SEQUENCE, {"in_features": 8, "out_features": 5, "std": None}),
    "batchnorm": (IMAGE, {"features": 4, "eps": 1e-5, "momentum": 0.1}),
    "layernorm": (SEQUENCE, {"features": 8, "eps": 1e-6}),
    "attention": (SEQUENCE, {"dim": 8, "num_heads": 2}),
    "tokens": (SEQUENCE, {"num_patches": 6, "dim": 8}),
    "embedding": ((3, 6), {"num_embeddings": 11, "dim": 8}),
    "layerscale": (SEQUENCE, {"dim": 8, "init": 0.5}),
    "relu": (IMAGE, {}),
    "relu6": (IMAGE, {}),
    "gelu": (SEQUENCE, {}),
    "maxpool": (IMAGE, {"kernel": 3, "stride": 2, "padding": 1}),
    "avgpool": (IMAGE, {"kernel": 3, "stride": 2}),
    "globalpool": (IMAGE, {}),
    "flatten": (IMAGE, {}),
    "dropout": (SEQUENCE, {"p": 0.0}),
    "drop_path": (SEQUENCE, {"p": 0.0}),
    "to_tokens": (IMAGE, {}),
    "first_token": (SEQUENCE, {}),
    "mean_tokens": (SEQUENCE, {}),
}


def test_every_kind_has_a_case() -> None:
    assert set(CASES) == set(KINDS) | set(PLAIN_KINDS) == set(ReferenceFramework.kinds)


class Plain(torch.nn.Module):
    """A layer that is a function alone, as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.forward = function


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", CASES)
def test_forward_and_backward_equal_autograd(kind: str, train: bool) -> None:
    shape, options = CASES[kind]
    rng = np.random.default_rng(3)
    layer = Layer(kind, "", options)
    op = reference.KINDS[kind](layer)
    made = native.KINDS[kind](**options)
    theirs = (made if isinstance(made, torch.nn.Module) else Plain(made)).double().train(train)
    for name, tensor in theirs.named_parameters():
        op.params[name] = (rng.standard_normal(tensor.shape) * 0.7).astype(np.float32)
        tensor.data.copy_(torch.from_numpy(op.params[name]))
    for name, tensor in theirs.named_buffers():
        op.params[name] = tensor.numpy().astype(np.float32)
    x = rng.integers(0, 11, shape) if kind == "embedding" else 4 * rng.standard_normal(shape)
    tensor_x = torch.from_numpy(x).requires_grad_(kind != "embedding")
    wanted, got = theirs(tensor_x), op.forward(x, train, rng)
    np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-9, atol=1e-9)
    if not train:
        return
    dy = rng.standard_normal(got.shape)
    wanted.backward(torch.from_numpy(dy))
    dx = op.backward(dy)
    if kind != "embedding":
        np.testing.assert_allclose(dx, tensor_x.grad.numpy(), rtol=1e-8, atol=1e-9)
    for name, tensor in theirs.named_parameters():
        np.testing.assert_allclose(op.grads[name], tensor.grad.numpy(), rtol=1e-8, atol=1e-9)
    for name, tensor in theirs.named_buffers():
        np.testing.assert_allclose(op.params[name], tensor.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("lenet", 16, {}),
        ("resnet18", 32, {}),
        ("resnet50", 32, {}),
        ("mobilenet_v2", 32, {"dropout": 0.0}),
        ("vit_tiny", 8, {"patch_size": 4, "depth": 2, "embed_dim": 24, "layer_scale": 0.1}),
        ("vit_tiny", 8, {"patch_size": 4, "depth": 1, "embed_dim": 24, "pool": "avg"}),
        ("mlp", 8, {"width": 9}),
    ],
)
def test_whole_models_equal_autograd_in_float64(name: str, size: int, options: dict[str, Any]) -> None:
    tree = make_tree(name, 4, 3, size, **options)
    weights = initial_weights(tree, 1)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 3, size, size)), rng.integers(0, 4, 4)
    framework = ReferenceFramework("cpu")
    model = framework.make_model(tree)
    framework.set_weights(model, weights)
    value, gradient = reference.loss(model.chain.forward(x, True, rng), y)
    model.chain.backward(gradient)

    theirs = native.Model(tree).double().train()
    for key, tensor in theirs.arrays().items():
        tensor.data.copy_(torch.from_numpy(weights[key]))
    loss = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(y))
    loss.backward()
    assert value == pytest.approx(loss.item(), rel=1e-10)
    for key, tensor in theirs.arrays().items():
        if not tensor.requires_grad:
            continue
        op, local = model.where[key]
        scale = tensor.grad.abs().max().item()
        np.testing.assert_allclose(op.grads[local], tensor.grad.numpy(), rtol=1e-5, atol=1e-8 * scale + 1e-12)


def test_every_optimizer_has_its_formula() -> None:
    assert set(optimizers.UPDATES) == set(OPTIMIZERS)


def test_layer_adaptive_worked_out() -> None:
    """Two entries, a step with an L2 of 0.5 and one without, computed on paper."""
    spec, state = OptimizerSpec("layer_adaptive", betas=[0.5, 0.75], eps=1.0), {}
    p = optimizers.layer_adaptive(spec, np.array([2.0, -4.0]), np.array([3.0, 4.0]), state, 0.3, 0.5)
    # g = (4, 2), m = (2, 1), v = (4, 1): ratios 2/3 and 1/2, their mean 7/12, the step size 0.175
    np.testing.assert_allclose(p, [2 - 0.35, -4 - 0.175], rtol=1e-12)
    p = optimizers.layer_adaptive(spec, np.array([2.0, -4.0]), np.array([-1.0, 2.0]), state, 0.6, 0.0)
    # g = (-1, 2), m = (0.5, 1.5), v = (3.25, 1.75)
    size = 0.6 * (0.5 / (3.25**0.5 + 1) + 1.5 / (1.75**0.5 + 1)) / 2
    np.testing.assert_allclose(p, [2 - 0.5 * size, -4 - 1.5 * size], rtol=1e-12)
    assert set(state) == {"exp_avg", "exp_avg_sq"}


def test_layer_adaptive_without_a_gradient_stands_still() -> None:
    p, state = np.array([1.0, -2.0]), {}
    for _ in range(2):
        p = optimizers.layer_adaptive(OptimizerSpec("layer_adaptive"), p, np.zeros(2), state, 0.1, 0.0)
    assert np.array_equal(p, [1.0, -2.0])


def test_dropout_keeps_its_share_and_repeats_with_the_seed() -> None:
    tree = Tree("d", Seq("", (Layer("dropout", "", {"p": 0.25}), Residual("", (Layer("relu"),)))), "head", (1, 1, 1), 2)
    model = ReferenceFramework("cpu").make_model(tree)
    x = np.ones((200, 300))
    draws = []
    for seed in (5, 5, 6):
        draws.append(model.chain.forward(x, True, np.random.default_rng(seed)))
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert (draws[0] == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert draws[0].mean() == pytest.approx(2.0, abs=0.02)
