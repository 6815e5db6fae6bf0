import dataclasses

import numpy as np
import pytest
import torch
from layerwise_lr.plugins.torch_plugin.optimizers import LayerAdaptive, Muon
from layerwise_lr.plugins.torch_plugin.plugin import TorchFramework
from torch.nn import functional as F

from layerwise_lr.framework import begin, take_step
from layerwise_lr.models.layers import KINDS, PLAIN_KINDS, Layer, Residual, Seq, Tree, initial_weights, param_table
from layerwise_lr.models.reading import read
from layerwise_lr.models.trees import make_tree
from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.groups import GroupingSpec, GroupSpec
from layerwise_lr.planning.plan import FreezeSpec, OptimizerSpec, make_plan
from layerwise_lr.planning.schedules import ScheduleSpec
from layerwise_lr.run.folder import RunFolder

RNG = np.random.default_rng(0)


@pytest.fixture
def torch_framework():
    return TorchFramework("cpu")


def random_weights(tree, seed=3):
    """Nothing at its initial value: ones and zeros would hide mistakes."""
    rng = np.random.default_rng(seed)
    return {
        n: (0.5 + rng.random(a.shape)).astype(np.float32) * (0.2 if a.ndim > 1 else 1)
        for n, a in initial_weights(tree, 0).items()
    }


# --- every kind against functional code with the same weights


def attention(x, w):
    b, t, d = x.shape
    q, k, v = F.linear(x, w["qkv.weight"], w["qkv.bias"]).chunk(3, dim=-1)
    heads = [a.view(b, t, 2, d // 2).transpose(1, 2) for a in (q, k, v)]
    out = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(b, t, d)
    return F.linear(out, w["proj.weight"], w["proj.bias"])


CONV = {"in_channels": 4, "out_channels": 6, "kernel": 3, "stride": 2, "padding": 1, "groups": 2, "bias": True}
IMAGE, TOKENS = (2, 4, 8, 8), (2, 5, 6)
KIND_CASES = {
    "conv": (IMAGE, CONV, lambda x, w: F.conv2d(x, w["weight"], w["bias"], 2, 1, groups=2)),
    "linear": (TOKENS, {"in_features": 6, "out_features": 3}, lambda x, w: F.linear(x, w["weight"], w["bias"])),
    "batchnorm": (
        IMAGE,
        {"features": 4, "eps": 1e-3, "momentum": 0.3},
        lambda x, w: F.batch_norm(x, None, None, w["weight"], w["bias"], True, 0.0, 1e-3),
    ),
    "layernorm": (
        TOKENS,
        {"features": 6, "eps": 1e-2},
        lambda x, w: F.layer_norm(x, (6,), w["weight"], w["bias"], 1e-2),
    ),
    "embedding": (None, {"num_embeddings": 7, "dim": 3}, lambda x, w: w["weight"][x]),
    "attention": (TOKENS, {"dim": 6, "num_heads": 2}, attention),
    "tokens": (
        TOKENS,
        {"num_patches": 5, "dim": 6},
        lambda x, w: torch.cat([w["cls_token"].repeat(2, 1, 1), x], 1) + w["pos_embed"],
    ),
    "layerscale": (TOKENS, {"dim": 6, "init": 0.5}, lambda x, w: x * w["gamma"]),
    "relu": (IMAGE, {}, lambda x, w: x.clamp(min=0)),
    "relu6": (IMAGE, {}, lambda x, w: torch.minimum(torch.maximum(x, torch.zeros(())), torch.full((), 6.0))),
    "gelu": (IMAGE, {}, lambda x, w: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
    "maxpool": (IMAGE, {"kernel": 3, "stride": 2, "padding": 1}, lambda x, w: F.max_pool2d(x, 3, 2, 1)),
    "avgpool": (IMAGE, {"kernel": 2, "stride": 2}, lambda x, w: x.reshape(2, 4, 4, 2, 4, 2).mean((3, 5))),
    "globalpool": (IMAGE, {}, lambda x, w: F.adaptive_avg_pool2d(x, 1).flatten(1)),
    "flatten": (IMAGE, {}, lambda x, w: x.reshape(2, -1)),
    "dropout": (IMAGE, {"p": 0.0}, lambda x, w: x),
    "drop_path": (IMAGE, {"p": 0.0}, lambda x, w: x),
    "to_tokens": (IMAGE, {}, lambda x, w: x.reshape(2, 4, 64).permute(0, 2, 1)),
    "first_token": (TOKENS, {}, lambda x, w: x.select(1, 0)),
    "mean_tokens": (TOKENS, {}, lambda x, w: x[:, 1:].sum(1) / 4),
}


def test_every_kind_has_its_case():
    assert set(KIND_CASES) == set(KINDS) | set(PLAIN_KINDS) == set(TorchFramework.kinds)


@pytest.mark.parametrize("kind", sorted(KIND_CASES))
def test_forward_of_each_kind(torch_framework, kind):
    shape, options, by_hand = KIND_CASES[kind]
    tree = Tree("t", Seq("", (Layer(kind, "", options),), depth=0), "", (1, 1, 1), 1)
    model = torch_framework.make_model(tree)
    weights = random_weights(tree)
    torch_framework.set_weights(model, weights)
    x = torch.tensor([[0, 6, 3]]) if shape is None else torch.tensor(RNG.normal(0, 4, shape).astype(np.float32))
    expected = by_hand(x, {n: torch.from_numpy(a) for n, a in weights.items()})
    torch.testing.assert_close(model(x), expected, rtol=2e-5, atol=2e-5)


def test_batchnorm_s_running_statistics_by_hand(torch_framework):
    """new = (1 - momentum) * old + momentum * batch, with the unbiased variance."""
    tree = Tree("t", Seq("", (Layer("batchnorm", "", KIND_CASES["batchnorm"][1]),), depth=0), "", (1, 1, 1), 1)
    model, weights = torch_framework.make_model(tree), random_weights(tree)
    torch_framework.set_weights(model, weights)
    x = RNG.normal(2, 3, IMAGE).astype(np.float32)
    model(torch.from_numpy(x))
    after = torch_framework.get_weights(model)
    flat = x.transpose(1, 0, 2, 3).reshape(4, -1)
    assert after["running_mean"] == pytest.approx(0.7 * weights["running_mean"] + 0.3 * flat.mean(1), rel=1e-5)
    assert after["running_var"] == pytest.approx(0.7 * weights["running_var"] + 0.3 * flat.var(1, ddof=1), rel=1e-5)
    model.eval()
    expected = (x - after["running_mean"][:, None, None]) / np.sqrt(after["running_var"][:, None, None] + 1e-3)
    expected = expected * weights["weight"][:, None, None] + weights["bias"][:, None, None]
    assert model(torch.from_numpy(x)).detach().numpy() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_dropout_drops_its_share_and_scales_the_rest(torch_framework):
    model = torch_framework.make_model(Tree("t", Seq("", (Layer("dropout", "", {"p": 0.25}),)), "", (1, 1, 1), 1))
    x = torch.ones(1, 20000)
    torch.manual_seed(3)
    one = model(x)
    assert sorted(one.unique().tolist()) == pytest.approx([0.0, 4 / 3])
    assert (one == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.manual_seed(3)
    assert torch.equal(model(x), one)
    assert torch.equal(model.eval()(x), x)


def test_a_residual_is_the_sum_of_body_and_shortcut(torch_framework):
    def lin(name):
        return Layer("linear", name, {"in_features": 3, "out_features": 3})

    tree = Tree(
        "t", Seq("", (Residual("r", (lin("a"),), (lin("b"),)), Residual("", (lin("c"),))), depth=0), "", (1, 1, 1), 1
    )
    model, weights = torch_framework.make_model(tree), random_weights(tree)
    torch_framework.set_weights(model, weights)
    x = RNG.normal(size=(2, 3)).astype(np.float32)

    def by(name, v):
        return v @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    h = by("r.a", x) + by("r.b", x)
    expected = by("c", h) + h
    assert model(torch.from_numpy(x)).detach().numpy() == pytest.approx(expected, rel=1e-5)


def resnet18_by_hand(x, w):
    """torchvision's resnet18 in evaluation mode, spelled with functions and the checkpoint's names."""

    def bn(x, name):
        return F.batch_norm(
            x,
            w[f"{name}.running_mean"],
            w[f"{name}.running_var"],
            w[f"{name}.weight"],
            w[f"{name}.bias"],
            False,
            0.1,
            1e-5,
        )

    x = F.max_pool2d(F.relu(bn(F.conv2d(x, w["conv1.weight"], None, 2, 3), "bn1")), 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for index in (0, 1):
            at, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            y = F.relu(bn(F.conv2d(x, w[f"{at}.conv1.weight"], None, stride, 1), f"{at}.bn1"))
            y = bn(F.conv2d(y, w[f"{at}.conv2.weight"], None, 1, 1), f"{at}.bn2")
            if f"{at}.downsample.0.weight" in w:
                x = bn(F.conv2d(x, w[f"{at}.downsample.0.weight"], None, stride), f"{at}.downsample.1")
            x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), w["fc.weight"], w["fc.bias"])


def vit_by_hand(x, w, depth, pool):
    """timm's ViT."""
    dim = w["cls_token"].shape[-1]

    def norm(x, name):
        return F.layer_norm(x, (dim,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], 16).flatten(2).transpose(1, 2)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    for i in range(depth):
        at, (b, t, _) = f"blocks.{i}", x.shape
        qkv = F.linear(norm(x, f"{at}.norm1"), w[f"{at}.attn.qkv.weight"], w[f"{at}.attn.qkv.bias"])
        q, k, v = (a.view(b, t, 3, dim // 3).transpose(1, 2) for a in qkv.chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, dim)
        x = x + F.linear(y, w[f"{at}.attn.proj.weight"], w[f"{at}.attn.proj.bias"]) * w[f"{at}.ls1.gamma"]
        y = F.gelu(F.linear(norm(x, f"{at}.norm2"), w[f"{at}.mlp.fc1.weight"], w[f"{at}.mlp.fc1.bias"]))
        x = x + F.linear(y, w[f"{at}.mlp.fc2.weight"], w[f"{at}.mlp.fc2.bias"]) * w[f"{at}.ls2.gamma"]
    x = norm(x[:, 1:].mean(1), "fc_norm") if pool == "avg" else norm(x, "norm")[:, 0]
    return F.linear(x, w["head.weight"], w["head.bias"])


def small(tree, seed=3):
    return {n: a * 0.2 if a.ndim > 1 else a for n, a in random_weights(tree, seed).items()}


@pytest.mark.parametrize("model", ["resnet18", "token", "avg"])
def test_whole_models_against_functions(torch_framework, model):
    if model == "resnet18":
        tree = make_tree("resnet18", 5, 3, 64)
        weights = initial_weights(tree, 1)  # trained-like magnitudes through 18 layers
        weights |= {n: a for n, a in random_weights(tree).items() if a.ndim == 1}
    else:
        tree = make_tree("vit_tiny", 5, 3, 32, depth=2, layer_scale=0.1, pool=model)
        weights = small(tree)
    native = torch_framework.make_model(tree)
    torch_framework.set_weights(native, weights)
    x = RNG.normal(size=(2, *tree.input_shape)).astype(np.float32)
    w = {n: torch.from_numpy(a) for n, a in weights.items()}
    by_hand = resnet18_by_hand if model == "resnet18" else lambda x, w: vit_by_hand(x, w, 2, model)
    state = state_of(torch_framework, native, plan_of(tree))
    expected = by_hand(torch.from_numpy(x), w).numpy()
    assert torch_framework.predict(state, x) == pytest.approx(
        expected, rel=1e-4, abs=1e-4 * float(np.abs(expected).max())
    )


@pytest.mark.parametrize("model", ["lenet", "mlp", "resnet18", "resnet50", "mobilenet_v2", "vit_tiny"])
def test_native_names_are_canonical(torch_framework, model):
    tree = make_tree(model, 4, 3, 32)
    native = torch_framework.make_model(tree)
    found = {n: (a.shape, a.dtype) for n, a in torch_framework.get_weights(native).items()}
    assert found == {r.name: (r.shape, np.float32) for r in param_table(tree)}


def test_weights_go_in_and_out_bit_by_bit_and_are_copies(torch_framework):
    tree = make_tree("resnet18", 4, 3, 32)
    native, weights = torch_framework.make_model(tree), random_weights(tree)
    weights["fc.weight"] = np.asfortranarray(weights["fc.weight"])
    torch_framework.set_weights(native, weights)
    out = torch_framework.get_weights(native)
    assert all(np.array_equal(out[n], weights[n]) for n in weights)
    out["fc.weight"][:] = 9
    weights["fc.bias"][:] = 9
    again = torch_framework.get_weights(native)
    assert not (again["fc.weight"] == 9).any()
    assert not (again["fc.bias"] == 9).any()


# --- training


LENET = make_tree("lenet", 10, 1, 12)
X = RNG.normal(size=(16, 1, 12, 12)).astype(np.float32)
Y = RNG.integers(0, 10, 16)


def plan_of(tree, optimizer=None, schedule=None, steps=20, freeze=None, optimizers=(), **grouping):
    named = {"default": optimizer or OptimizerSpec("adamw", lr=1e-3), **dict(optimizers)}
    return make_plan(
        param_table(tree),
        GroupingSpec(**grouping),
        named,
        {"default": schedule or ScheduleSpec("cosine")},
        freeze or FreezeSpec(),
        steps,
    )[1]


def state_of(framework, model, plan, start=0):
    return begin(framework, model, plan, start)


def fresh(framework, plan, start=0, weights=None, tree=LENET):
    model = framework.make_model(tree)
    framework.set_weights(model, weights or initial_weights(tree, 1))
    return state_of(framework, model, plan, start)


def batch(step):
    rng = np.random.default_rng(step)
    return rng.normal(size=(16, 1, 12, 12)).astype(np.float32), rng.integers(0, 10, 16)


def train(framework, state, plan, start, stop):
    """Losses; the gradients of the last step are in `state.compiled`, which torch leaves alone."""
    losses = []
    for step in range(start, stop):
        loss, state.compiled = take_step(framework, state, plan, step, batch(step), step, gradients=True)
        losses.append(float(loss))
    return losses


class LayerAdaptiveByHand(torch.optim.Optimizer):
    """What seed document 002 means, in float64: betas 0.8 and 0.95, eps 1e-6."""

    def __init__(self, groups):
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.held = {}

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                w, g = (t.detach().double().numpy() for t in (p, p.grad))
                g = g + group["weight_decay"] * w
                m, v = self.held.get(p, (np.zeros_like(g), np.zeros_like(g)))
                m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
                self.held[p] = m, v
                size = group["lr"] * sum(abs(a) / (b**0.5 + 1e-6) for a, b in zip(m.flat, v.flat, strict=True)) / m.size
                p.data.copy_(torch.from_numpy(w - size * m))


BY_HAND = {
    "sgd": (OptimizerSpec("sgd", lr=0.05, weight_decay=0.01), lambda g: torch.optim.SGD(g)),
    "momentum": (
        OptimizerSpec("momentum", lr=0.05, momentum=0.8, weight_decay=0.01),
        lambda g: torch.optim.SGD(g, momentum=0.8),
    ),
    "nesterov": (
        OptimizerSpec("momentum", lr=0.05, momentum=0.8, weight_decay=0.01, nesterov=True),
        lambda g: torch.optim.SGD(g, momentum=0.8, nesterov=True),
    ),
    "adam": (
        OptimizerSpec("adam", lr=0.002, weight_decay=0.1, betas=[0.8, 0.95], eps=1e-6),
        lambda g: torch.optim.Adam(g, betas=(0.8, 0.95), eps=1e-6),
    ),
    "adamw": (
        OptimizerSpec("adamw", lr=0.002, weight_decay=0.1, betas=[0.8, 0.95], eps=1e-6),
        lambda g: torch.optim.AdamW(g, betas=(0.8, 0.95), eps=1e-6),
    ),
    "layer_adaptive": (
        OptimizerSpec("layer_adaptive", lr=0.1, weight_decay=0.1, betas=[0.8, 0.95], eps=1e-6),
        LayerAdaptiveByHand,
    ),
}


def lenet_by_hand():
    model = torch.nn.Sequential()
    for name, module in [
        ("conv1", torch.nn.Conv2d(1, 6, 5, padding=2)),
        ("r1", torch.nn.ReLU()),
        ("p1", torch.nn.MaxPool2d(2)),
        ("conv2", torch.nn.Conv2d(6, 16, 5)),
        ("r2", torch.nn.ReLU()),
        ("p2", torch.nn.MaxPool2d(2)),
        ("flat", torch.nn.Flatten()),
        ("fc1", torch.nn.Linear(16, 120)),
        ("r3", torch.nn.ReLU()),
        ("fc2", torch.nn.Linear(120, 84)),
        ("r4", torch.nn.ReLU()),
        ("classifier", torch.nn.Linear(84, 10)),
    ]:
        model.add_module(name, module)
    model.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in initial_weights(LENET, 1).items()})
    return model


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_five_steps_as_torch_used_by_hand(torch_framework, name):
    spec, build = BY_HAND[name]
    plan = plan_of(LENET, spec, ScheduleSpec("cosine"), layer_decay=0.6)
    state = fresh(torch_framework, plan)
    losses = train(torch_framework, state, plan, 0, 5)

    model = lenet_by_hand()
    depth = {"conv1": 0, "conv2": 1, "fc1": 2, "fc2": 3, "classifier": 4}
    groups = [
        {
            "params": [p],
            "lr": spec.lr * 0.6 ** (4 - depth[n.split(".")[0]]),
            "weight_decay": spec.weight_decay if p.ndim > 1 else 0.0,
        }
        for n, p in model.named_parameters()
    ]
    optimizer = build(groups)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for step in range(5):
        x, y = map(torch.from_numpy, batch(step))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        assert losses[step] == pytest.approx(loss.item(), rel=1e-5)
        loss.backward()
        optimizer.step()
        scheduler.step()
    ours = torch_framework.get_weights(state.model)
    start = initial_weights(LENET, 1)
    for n, theirs in model.state_dict().items():
        moved = np.linalg.norm(theirs.numpy() - start[n])
        assert np.linalg.norm(ours[n] - theirs.numpy()) < 1e-3 * moved, n
        assert moved > 0, n


class LayerAdaptiveLR(torch.optim.Adam):
    """Seed document 002's class as printed."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0):
        super().__init__(params, lr, betas, eps, weight_decay)
        self.param_groups = sorted(self.param_groups, key=lambda x: id(x["params"][0]))

    def step(self, closure=None):
        loss = None
        if closure is not None:
            loss = closure()

        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad = p.grad.data
                state = self.state[p]

                if len(state) == 0:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(p.data)
                    state["exp_avg_sq"] = torch.zeros_like(p.data)

                exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
                beta1, beta2 = group["betas"]

                state["step"] += 1

                exp_avg.mul_(beta1).add_(grad, alpha=1 - beta1)
                exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)

                denom = exp_avg_sq.sqrt().add_(group["eps"])

                step_size = group["lr"] * (exp_avg.abs() / denom).mean().item()
                p.data.add_(exp_avg, alpha=-step_size)

        return loss


def five_steps(make, weight_decay):
    """LeNet in float64, one group per layer, each with its own lr; the weights after it and the optimizer."""
    model = lenet_by_hand().double()
    layers = [module for module in model if list(module.parameters())]
    optimizer = make(
        [
            {
                "params": list(module.named_parameters() if make is LayerAdaptive else module.parameters()),
                "lr": 0.1 * 0.6**i,
            }
            for i, module in enumerate(layers)
        ],
        weight_decay=weight_decay,
    )
    for step in range(5):
        x, y = map(torch.from_numpy, batch(step))
        optimizer.zero_grad()
        F.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
    return {n: a.numpy() for n, a in model.state_dict().items()}, optimizer


def test_without_weight_decay_layer_adaptive_is_the_document_s_class():
    (ours, _), (theirs, _) = five_steps(LayerAdaptive, 0.0), five_steps(LayerAdaptiveLR, 0.0)
    start = initial_weights(LENET, 1)
    for name, array in theirs.items():
        assert np.abs(array - start[name]).max() > 1e-4, name
        np.testing.assert_allclose(ours[name], array, rtol=1e-12, atol=1e-15, err_msg=name)


def test_layer_adaptive_decays_where_the_document_s_class_does_not():
    theirs = five_steps(LayerAdaptiveLR, 0.0)[0]
    assert all(np.array_equal(a, theirs[n]) for n, a in five_steps(LayerAdaptiveLR, 0.1)[0].items())
    decayed = five_steps(LayerAdaptive, 0.1)[0]
    assert not any(np.allclose(a, theirs[n], rtol=1e-3, atol=0) for n, a in decayed.items())


def test_layer_adaptive_keeps_its_groups_in_order():
    _, optimizer = five_steps(LayerAdaptive, 0.0)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1 * 0.6**i for i in range(5)]
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": float(i)} for i in range(1, 9)]
    groups.sort(key=lambda g: -id(g["params"][0]))
    assert [g["lr"] for g in LayerAdaptive(groups).param_groups] == [g["lr"] for g in groups]
    assert [g["lr"] for g in LayerAdaptiveLR(groups).param_groups] == [g["lr"] for g in groups][::-1]


def test_layer_adaptive_waits_for_no_device():
    """A tensor on torch's meta device has no value that one could wait for."""
    for make, waits in ((LayerAdaptive, False), (LayerAdaptiveLR, True)):
        param = torch.nn.Parameter(torch.zeros(3, 2, device="meta"))
        param.grad = torch.zeros_like(param)
        optimizer = make([param])
        if waits:
            with pytest.raises(RuntimeError, match="item"):
                optimizer.step()
        else:
            optimizer.step()
            assert set(optimizer.state[param]) == {"exp_avg", "exp_avg_sq"}


def test_layer_adaptive_calls_a_closure_with_gradients_on():
    param = torch.nn.Parameter(torch.tensor([3.0, -4.0]))
    optimizer = LayerAdaptive([param], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert float(optimizer.step(closure)) == 25.0
        assert float((param**2).sum()) < 25.0
        with pytest.raises(RuntimeError, match="grad"):
            LayerAdaptiveLR([param]).step(closure)


RESUMED = {
    "adamw": (OptimizerSpec("adamw", lr=0.002), {}),
    "momentum": (OptimizerSpec("momentum", lr=0.02), {}),
    "sgd": (OptimizerSpec("sgd", lr=0.02), {}),
    "layer_adaptive": (OptimizerSpec("layer_adaptive", lr=0.1), {}),
    "two": (OptimizerSpec("adam", lr=0.002), {"groups": {"stem": GroupSpec(match=["conv*"], optimizer="slow")}}),
}


@pytest.mark.parametrize("freeze", ["none", "progressive", "after"])
@pytest.mark.parametrize("name", sorted(RESUMED))
def test_ten_steps_are_five_a_checkpoint_and_five_bit_by_bit(torch_framework, tmp_path, name, freeze):
    spec, grouping = RESUMED[name]
    strategy = FreezeSpec(freeze, every=2, match=["conv1"] if freeze == "after" else [], at=3)
    plan = plan_of(
        LENET,
        spec,
        ScheduleSpec("cosine", warmup=2, warmup_start=0.1),
        10,
        strategy,
        {"slow": OptimizerSpec("momentum", lr=0.1)},
        **grouping,
    )
    whole = fresh(torch_framework, plan)
    losses = train(torch_framework, whole, plan, 0, 10)

    half = fresh(torch_framework, plan)
    train(torch_framework, half, plan, 0, 5)
    arrays = torch_framework.get_weights(half.model), torch_framework.get_optimizer_state(half)
    RunFolder(tmp_path).save_checkpoint(5, *arrays, {}, None)
    at = tmp_path / "checkpoints" / "step_5"
    resumed = fresh(torch_framework, plan, 5, read(at / "model.safetensors").states[""])
    torch_framework.set_optimizer_state(resumed, read(at / "optim.safetensors").states[""])
    assert train(torch_framework, resumed, plan, 5, 10) == losses[5:]
    one, two = torch_framework.get_weights(whole.model), torch_framework.get_weights(resumed.model)
    assert all(one[n].tobytes() == two[n].tobytes() for n in one)
    one, two = torch_framework.get_optimizer_state(whole), torch_framework.get_optimizer_state(resumed)
    assert set(one) == set(two)
    assert all(one[n].tobytes() == two[n].tobytes() and one[n].shape == two[n].shape for n in one)


def test_optimizer_state_goes_by_name_and_is_a_copy(torch_framework):
    plan = plan_of(LENET)
    state = fresh(torch_framework, plan)
    assert torch_framework.get_optimizer_state(state) == {}
    train(torch_framework, state, plan, 0, 2)
    held = torch_framework.get_optimizer_state(state)
    names = {r.name for r in param_table(LENET)}
    assert set(held) == {f"{n}/{k}" for n in names for k in ("step", "exp_avg", "exp_avg_sq")}
    assert {float(held[f"{n}/step"]) for n in names} == {2.0}
    held["fc1.weight/exp_avg"][:] = 99
    assert not (torch_framework.get_optimizer_state(state)["fc1.weight/exp_avg"] == 99).any()


def test_parameters_without_an_entry_start_fresh(torch_framework):
    plan = plan_of(LENET)
    state = fresh(torch_framework, plan)
    train(torch_framework, state, plan, 0, 3)
    held = torch_framework.get_optimizer_state(state)
    torch_framework.set_optimizer_state(state, {k: a for k, a in held.items() if k.startswith("fc1.")})
    assert {k.partition("/")[0] for k in torch_framework.get_optimizer_state(state)} == {"fc1.weight", "fc1.bias"}
    train(torch_framework, state, plan, 3, 4)
    held = torch_framework.get_optimizer_state(state)
    assert (float(held["fc1.weight/step"]), float(held["fc2.weight/step"])) == (4.0, 1.0)


def test_predict_changes_nothing(torch_framework):
    tree = make_tree("mobilenet_v2", 4, 3, 32, dropout=0.5)
    model = torch_framework.make_model(tree)
    torch_framework.set_weights(model, initial_weights(tree, 0))
    plan = plan_of(tree)
    state = state_of(torch_framework, model, plan)
    x, y = RNG.normal(size=(4, 3, 32, 32)).astype(np.float32), np.arange(4)
    take_step(torch_framework, state, plan, 0, (x, y), 0)
    before = torch_framework.get_weights(model), torch_framework.get_optimizer_state(state)
    rng, lrs = torch.random.get_rng_state(), state.scheduler.lrs()
    one, two = torch_framework.predict(state, x), torch_framework.predict(state, x)
    assert one.dtype == np.float32
    assert np.array_equal(one, two)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert state.scheduler.lrs() == lrs
    assert model.training
    assert all(m.training for m in model.modules())
    after = torch_framework.get_weights(model), torch_framework.get_optimizer_state(state)
    for a, b in zip(before, after, strict=True):
        assert set(a) == set(b)
        assert all(np.array_equal(a[n], b[n]) for n in a)


# --- freezing


def test_frozen_groups_keep_weights_and_optimizer_state(torch_framework):
    plan = plan_of(
        LENET,
        OptimizerSpec("adamw", lr=0.01, weight_decay=0.5),
        steps=9,
        groups={"stem": GroupSpec(match=["conv1.*"], start=3, stop=6)},
    )
    state = fresh(torch_framework, plan)
    seen = []
    for stop in (3, 6, 9):
        train(torch_framework, state, plan, stop - 3, stop)
        seen.append((torch_framework.get_weights(state.model), torch_framework.get_optimizer_state(state)))
    start = initial_weights(LENET, 1)
    for name in ("conv1.weight", "conv1.bias"):
        assert np.array_equal(seen[0][0][name], start[name])
        assert not [k for k in seen[0][1] if k.startswith("conv1")]
        assert not np.array_equal(seen[1][0][name], start[name])
        assert np.array_equal(seen[2][0][name], seen[1][0][name])
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert np.array_equal(seen[2][1][f"{name}/{key}"], seen[1][1][f"{name}/{key}"])
    assert float(seen[2][1]["conv1.weight/step"]) == 3
    assert float(seen[2][1]["fc1.weight/step"]) == 9


def test_a_frozen_parameter_has_no_gradient(torch_framework):
    plan = plan_of(LENET, freeze=FreezeSpec("head_first", every=4))
    state = fresh(torch_framework, plan)
    train(torch_framework, state, plan, 0, 2)
    assert set(state.compiled) == {"classifier.weight", "classifier.bias"}
    train(torch_framework, state, plan, 2, 5)
    assert set(state.compiled) == {r.name for r in param_table(LENET)}


def test_a_stretch_in_which_nothing_trains_passes(torch_framework):
    plan = plan_of(LENET, strategy="flat", groups={"all": GroupSpec(match=["*"], start=2, stop=4)}, steps=6)
    state = fresh(torch_framework, plan)
    train(torch_framework, state, plan, 0, 2)
    start = initial_weights(LENET, 1)
    assert all(np.array_equal(a, start[n]) for n, a in torch_framework.get_weights(state.model).items())
    assert state.compiled == {}
    train(torch_framework, state, plan, 2, 4)
    thawed = torch_framework.get_weights(state.model)
    assert not any(np.array_equal(a, start[n]) for n, a in thawed.items())
    train(torch_framework, state, plan, 4, 6)
    assert all(np.array_equal(a, thawed[n]) for n, a in torch_framework.get_weights(state.model).items())


def test_an_lr_of_zero_is_not_freezing(torch_framework):
    """At lr 0 nothing moves, but momentum goes on: the next step differs from that of a frozen group."""
    named = {
        "default": ScheduleSpec("constant"),
        "gap": ScheduleSpec("join", parts=["default", "none", "default"], starts=[3, 6]),
        "none": ScheduleSpec("multistep", gamma=1e-300, milestones=[0, 0]),
    }
    spec = {"default": OptimizerSpec("momentum", lr=0.02, momentum=0.9, weight_decay=0.0)}
    groups = {"all": GroupSpec(match=["*"], schedule="gap")}
    plan = make_plan(param_table(LENET), GroupingSpec(strategy="flat", groups=groups), spec, named, FreezeSpec(), 9)[1]
    assert plan.table()[3:6].max() == 0.0
    assert plan.active(4) == (True,)
    state = fresh(torch_framework, plan)
    train(torch_framework, state, plan, 0, 3)
    at_three = torch_framework.get_weights(state.model)
    momentum = torch_framework.get_optimizer_state(state)
    train(torch_framework, state, plan, 3, 6)
    assert all(np.array_equal(a, at_three[n]) for n, a in torch_framework.get_weights(state.model).items())
    expected, grads = dict(momentum), {}
    model = lenet_by_hand()
    model.load_state_dict({n: torch.from_numpy(a) for n, a in at_three.items()})
    for step in (3, 4, 5):
        model.zero_grad()
        x, y = map(torch.from_numpy, batch(step))
        F.cross_entropy(model(x), y).backward()
        grads = {n: p.grad.numpy() for n, p in model.named_parameters()}
        expected = {k: 0.9 * a + grads[k.partition("/")[0]] for k, a in expected.items()}
    found = torch_framework.get_optimizer_state(state)
    for key, array in expected.items():
        assert found[key] == pytest.approx(array, rel=1e-3, abs=1e-6), key


# --- more than one optimizer, gradient centralization, the scheduler


def test_two_optimizers_each_move_their_own_parameters(torch_framework):
    plan = plan_of(
        LENET,
        OptimizerSpec("adamw", lr=0.01, weight_decay=0.0),
        ScheduleSpec("constant"),
        strategy="flat",
        optimizers={"plain": OptimizerSpec("sgd", lr=123.0)},
        groups={"stem": GroupSpec(match=["conv*"], optimizer="plain", lr=0.5, weight_decay=0.0)},
    )
    state = fresh(torch_framework, plan)
    assert [type(o).__name__ for o in state.optimizer] == ["SGD", "AdamW"]
    before = torch_framework.get_weights(state.model)
    train(torch_framework, state, plan, 0, 1)
    after, gradients = torch_framework.get_weights(state.model), state.compiled
    for name in before:
        moved, g = after[name] - before[name], gradients[name]
        unit = 0.5 * g if name.startswith("conv") else 0.01 * g / (np.abs(g) + 1e-8)
        assert moved == pytest.approx(-unit, rel=1e-3, abs=2e-7), name


def test_gradient_centralization_takes_each_filter_s_mean_and_no_other(torch_framework):
    plan = plan_of(
        LENET,
        OptimizerSpec("sgd", lr=0.5, weight_decay=0.0),
        ScheduleSpec("constant"),
        strategy="flat",
        groups={"c": GroupSpec(match=["conv2.*", "fc1.*"], grad_centralization=True)},
    )
    state = fresh(torch_framework, plan)
    before = torch_framework.get_weights(state.model)
    train(torch_framework, state, plan, 0, 1)
    after, given = torch_framework.get_weights(state.model), state.compiled
    model = lenet_by_hand()
    x, y = map(torch.from_numpy, batch(0))
    F.cross_entropy(model(x), y).backward()
    for name, p in model.named_parameters():
        g = p.grad.numpy()
        assert given[name] == pytest.approx(g, rel=1e-3, abs=1e-6), "gradients are told as the loss gave them"
        if name in ("conv2.weight", "fc1.weight"):
            g = np.stack([row - row.mean() for row in g])
        assert after[name] - before[name] == pytest.approx(-0.5 * g, rel=1e-3, abs=1e-6), name


def test_the_scheduler_writes_the_plan_into_torch_s_own_groups(torch_framework):
    plan = plan_of(
        LENET, optimizers={"o": OptimizerSpec("sgd")}, groups={"s": GroupSpec(match=["fc1.*"], optimizer="o")}
    )
    state = fresh(torch_framework, plan, start=7)
    state.scheduler.apply(7)
    assert state.scheduler.lrs() == pytest.approx(plan.lrs(7))
    state.scheduler.apply(13)
    native = {g["name"]: g["lr"] for o in state.optimizer for g in o.param_groups}
    assert native == pytest.approx({g.name: plan.lr(13, g) for g in plan.groups})
    assert not [k for o in state.optimizer for g in o.param_groups for k in g if k == "lr_scale"]


def test_groups_are_the_plan_s_in_order(torch_framework):
    plan = plan_of(LENET)
    groups = torch_framework.make_groups(torch_framework.make_model(LENET), plan)
    assert [g["name"] for g in groups] == [g.name for g in plan.groups]
    assert [[n for n, _ in g["params"]] for g in groups] == [list(g.params) for g in plan.groups]
    assert [g["weight_decay"] for g in groups] == [g.weight_decay for g in plan.groups]


def test_the_loss_is_the_mean_cross_entropy_before_the_update(torch_framework):
    plan = plan_of(LENET)
    state = fresh(torch_framework, plan)
    logits = torch_framework.predict(state, X).astype(np.float64)
    expected = np.mean([np.log(np.exp(z).sum()) - z[y] for z, y in zip(logits, Y, strict=True)])
    assert float(take_step(torch_framework, state, plan, 0, (X, Y), 0).loss) == pytest.approx(expected, rel=1e-5)


def test_gradients_do_not_pile_up(torch_framework):
    plan = plan_of(LENET, OptimizerSpec("sgd", lr=1e-30))
    state = fresh(torch_framework, plan)
    one, two = (take_step(torch_framework, state, plan, 0, (X, Y), 0, gradients=True).gradients for _ in range(2))
    assert one and all(np.array_equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"device": "cuda:9"}, r"framework\.device='cuda:9' is not here.*cpu"), ({"device": "tpu"}, "'tpu'")],
)
def test_what_is_not_here_is_said(change, word):
    with pytest.raises(UserError, match=word):
        TorchFramework(**change)


def test_optimizer_specs_have_no_field_that_torch_is_not_told():
    told = {"name", "lr", "weight_decay", "momentum", "nesterov", "betas", "eps", "alpha", "momentum_decay"}
    assert {f.name for f in dataclasses.fields(OptimizerSpec)} == told


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torch_s_but_for_its_rounding_to_16_bits(shape, nesterov):
    torch.manual_seed(0)
    start, options = torch.randn(shape), {"lr": 0.02, "weight_decay": 0.1, "nesterov": nesterov}
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    pair = (
        Muon([ours], momentum=0.9, **options),
        torch.optim.Muon([theirs], momentum=0.9, adjust_lr_fn="match_rms_adamw", **options),
    )
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in pair:
            optimizer.step()
    moved = [(parameter - start).detach() for parameter in (ours, theirs)]
    assert (moved[0] - moved[1]).norm() < 0.02 * moved[1].norm()
