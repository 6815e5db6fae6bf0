"""MegEngine against torch: torch's numbers come from a process of its own (this file, run as a program)."""

import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from layerwise_lr.framework import STATE_KEYS, Clip, Step, begin, proof, registry, take_step
from layerwise_lr.models.layers import KINDS, PLAIN_KINDS, Layer, Residual, Seq, Tree, initial_weights, param_table
from layerwise_lr.models.trees import conv, linear, make_tree
from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.groups import GroupingSpec, GroupSpec
from layerwise_lr.planning.plan import FreezeSpec, OptimizerSpec, make_plan
from layerwise_lr.planning.schedules import ScheduleSpec

MODES = ("eager", "trace")
OPTIMIZERS = {
    "sgd": OptimizerSpec("sgd", 0.02, 5e-4),
    "momentum": OptimizerSpec("momentum", 0.02, 5e-4),
    "nesterov": OptimizerSpec("momentum", 0.02, 5e-4, nesterov=True),
    "adam": OptimizerSpec("adam", 1e-3, 1e-2),
    "adamw": OptimizerSpec("adamw", 1e-3, 0.05),
    "nadam": OptimizerSpec("nadam", 1e-3, 1e-2),
    "rmsprop": OptimizerSpec("rmsprop", 1e-4, 1e-2),
    "plain_rmsprop": OptimizerSpec("rmsprop", 3e-4, 1e-2, momentum=0.0),
    "lion": OptimizerSpec("lion", 1e-4, 0.5, betas=[0.9, 0.99]),
    "layer_adaptive": OptimizerSpec("layer_adaptive", 0.1, 1e-2),
}
COUNTING = ("adamw", "nadam", "rmsprop")
"""Whose steps are counted per parameter: those that thaw late have made fewer."""
VIT = {"embed_dim": 32, "num_heads": 4, "patch_size": 7, "depth": 2}


def layer(kind, name="it", **options):
    return Layer(kind, name, options)


def tree_of(name):
    """The model of a kind's case."""
    nodes, features = CASES[name]
    kinds = {node.kind for node in nodes if isinstance(node, Layer)}
    ends = () if kinds & {"globalpool", "flatten", "first_token", "mean_tokens"} else (Layer("flatten"),)
    first = (conv("first", 3, 8, 3, bias=True, depth=0),)
    if kinds & {"layernorm", "attention", "tokens", "layerscale", "gelu"}:
        first = (conv("first", 3, 8, 3, stride=2, bias=True, depth=0), Layer("to_tokens"))
    if "embedding" in kinds:
        first, ends = (), (Layer("mean_tokens"),)
    return Tree(
        name,
        Seq("", (*first, Seq("", (*nodes, *ends), depth=1), linear("head", features, 5, depth=2))),
        "head",
        (3, 12, 12),
        5,
    )


def convolution(o, kernel, stride=1, padding=0, groups=1, bias=False):
    return conv("it", 8, o, kernel, stride, padding, groups, bias)


SQUARE = 12 * 12
CASES = {
    "conv": ((convolution(6, 3, padding=1, bias=True),), 6 * SQUARE),
    "conv_5x5": ((convolution(6, 5),), 6 * 64),
    "conv_1x1": ((convolution(6, 1),), 6 * SQUARE),
    "conv_1x1_padded": ((convolution(6, 1, padding=1, bias=True),), 6 * 14 * 14),
    "conv_stride": ((convolution(6, 3, 2, 1),), 6 * 36),
    "conv_7x7_stride": ((convolution(6, 7, 2, 3),), 6 * 36),
    "conv_stride_uneven": ((convolution(6, 3, 2, 0),), 6 * 25),
    "conv_patches": ((convolution(6, 4, 4),), 6 * 9),
    "conv_1x1_stride": ((convolution(6, 1, 2),), 6 * 36),
    "conv_few_pixels": ((layer("avgpool", "", kernel=6, stride=6), convolution(6, 3, 1, 1)), 6 * 4),
    "conv_depthwise": ((convolution(8, 3, 1, 1, groups=8),), 8 * SQUARE),
    "conv_depthwise_stride": ((convolution(8, 3, 2, 1, groups=8),), 8 * 36),
    "conv_depthwise_uneven": ((convolution(8, 3, 2, 0, groups=8, bias=True),), 8 * 25),
    "conv_grouped": ((convolution(6, 3, 1, 1, groups=2),), 6 * SQUARE),
    "conv_multiplied": ((convolution(16, 3, 1, 1, groups=8),), 16 * SQUARE),
    "linear": ((Layer("globalpool"), layer("linear", in_features=8, out_features=7)), 7),
    "batchnorm": ((layer("batchnorm", features=8, eps=1e-3, momentum=0.3),), 8 * SQUARE),
    "layernorm": ((layer("layernorm", features=8, eps=1e-3),), 8 * 36),
    "attention": ((layer("attention", dim=8, num_heads=2),), 8 * 36),
    "tokens": ((layer("tokens", num_patches=36, dim=8),), 8 * 37),
    "embedding": ((layer("embedding", num_embeddings=11, dim=8),), 8),
    "layerscale": ((layer("layerscale", dim=8, init=0.3),), 8 * 36),
    "relu": ((Layer("relu"),), 8 * SQUARE),
    "relu6": ((Layer("relu6"),), 8 * SQUARE),
    "gelu": ((Layer("gelu"),), 8 * 36),
    "maxpool": ((layer("maxpool", "", kernel=3, stride=2, padding=1),), 8 * 36),
    "maxpool_even": ((layer("maxpool", "", kernel=2, stride=2, padding=0),), 8 * 36),
    "avgpool": ((layer("avgpool", "", kernel=2, stride=2),), 8 * 36),
    "globalpool": ((Layer("globalpool"),), 8),
    "flatten": ((Layer("flatten"),), 8 * SQUARE),
    "dropout": ((layer("dropout", p=0.0),), 8 * SQUARE),
    "drop_path": ((layer("drop_path", p=0.0),), 8 * SQUARE),
    "to_tokens": ((layer("layerscale", dim=8, init=1.0),), 8 * 36),
    "first_token": ((layer("tokens", num_patches=36, dim=8), Layer("first_token")), 8),
    "mean_tokens": ((layer("tokens", num_patches=36, dim=8), Layer("mean_tokens")), 8),
    "residual": ((convolution(8, 3, padding=1), Residual("sum", (convolution(8, 1),))), 8 * SQUARE),
}
"""Per case the layers and how many features reach the head."""

CURVES = {  # model, its options, steps, optimizer, tolerance of the first ten losses and of all
    **{
        f"lenet_{o}": (("lenet", 1, 28, {}), 50, OPTIMIZERS[o], 1e-5, 1e-4)
        for o in ("momentum", "adam", "nadam", "rmsprop", "lion", "layer_adaptive")
    },
    **{f"vit_{o}": (("vit_tiny", 1, 28, VIT), 50, OPTIMIZERS[o], 1e-5, 1e-4) for o in ("momentum", "adam")},
    "resnet18_momentum": (("resnet18", 3, 32, {}), 10, OptimizerSpec("momentum", 2e-4, 5e-4), 5e-5, 5e-5),
    "resnet18_adam": (("resnet18", 3, 32, {}), 10, OptimizerSpec("adam", 1e-5, 0.0), 5e-5, 5e-5),
}


def make(name, channels, size, options):
    return make_tree(name, 10, channels, size, **options)


def plan_of(tree, optimizer, steps=20, freeze=None, optimizers=None, **grouping):
    """layer_decay 0.75, warm-up and cosine."""
    given = GroupingSpec(layer_decay=0.75, **grouping)
    schedule = {"default": ScheduleSpec("cosine", warmup=3, warmup_start=0.1)}
    named = {"default": optimizer, **(optimizers or {})}
    return make_plan(param_table(tree), given, named, schedule, freeze or FreezeSpec(), steps)[1]


def framework(name="megengine", mode="eager", threads=1):
    return registry.load(name)("cpu", mode, threads=threads)


def batch_of(tree, step, size):
    """Noise, and classes that follow from it."""
    rng = np.random.default_rng([7, step])
    x = rng.standard_normal((size, *tree.input_shape)).astype(np.float32)
    return x, (np.abs(x[:, 0]).sum((1, 2)) * 10).astype(np.int64) % tree.num_classes


class Run:
    """A model with its state in one framework, driven step by step."""

    def __init__(self, fw, tree, plan, start=0):
        self.fw, self.tree, self.plan, self.step = fw, tree, plan, start
        self.model = fw.make_model(tree)
        fw.set_weights(self.model, initial_weights(tree, 0))
        self.state = begin(fw, self.model, plan, start)

    def take(self, batch, step=0, seed=0):
        """Step `step` of the plan on `batch`: (loss, gradients)."""
        result = take_step(self.fw, self.state, self.plan, step, batch, seed, gradients=True)
        return float(result.loss), result.gradients

    def train(self, steps, size=16):
        """The next steps' losses; `gradients` are the last one's."""
        losses = []
        for step in range(self.step, self.step + steps):
            loss, self.gradients = self.take(batch_of(self.tree, step, size), step, seed=step)
            losses.append(loss)
        self.step += steps
        return np.array(losses)

    def weights(self):
        return self.fw.get_weights(self.model)


def one_step(fw, name, frozen=()):
    """A case of a kind: logits in evaluation mode, gradients of one step, arrays after it."""
    tree = tree_of(name)
    run = Run(fw, tree, plan_of(tree, OPTIMIZERS["sgd"]))
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 3, 12, 12)).astype(np.float32)
    x[:, :, :, 5:] = 0  # an even background: equal maxima, and activations at the kinks of ReLU and ReLU6
    if name.startswith("relu"):
        bias = np.float32([0, 6, 0, 6, 3, 0, -1, 7])
        fw.set_weights(run.model, {**run.weights(), "first.bias": bias})
    x = rng.integers(0, 11, (4, 6)) if name == "embedding" else x
    logits = fw.predict(run.state, x)
    y, groups = np.array([0, 3, 1, 4]), (True,) * len(run.plan.groups)
    run.state.scheduler.apply(0)
    loss, gradients = fw.train_step(run.state, x, y, Step(0, groups, frozenset(frozen), 0, gradients=True))
    found = {"logits": logits, "loss": np.array(float(loss))}
    found |= {f"gradient/{n}": a for n, a in gradients.items()}
    return found | {f"after/{n}": a for n, a in run.weights().items()}


def curve(fw, name):
    spec, steps, optimizer, _, _ = CURVES[name]
    tree = make(*spec)
    return Run(fw, tree, plan_of(tree, optimizer, max(steps, 20))).train(steps)


def freezing(fw, optimizer):
    """Two optimizers, progressive unfreezing: losses, arrays and optimizer state at the end."""
    tree = make("lenet", 1, 16, {})
    freeze = FreezeSpec("progressive", every=3, stages=["fc2", "fc1", "conv2", "conv1"])
    groups = {"convs": GroupSpec(match=["conv*"], optimizer="other", grad_centralization=True)}
    plan = plan_of(tree, OPTIMIZERS[optimizer], 16, freeze, {"other": OPTIMIZERS["nesterov"]}, groups=groups)
    run = Run(fw, tree, plan)
    losses = run.train(16)
    state = {f"state/{n}": a for n, a in fw.get_optimizer_state(run.state).items()}
    return {"losses": losses} | state | {f"after/{n}": a for n, a in run.weights().items()}


def reference(path):
    """All that torch has to say."""
    fw = framework("torch")
    found = {f"{name}/{key}": a for name in CASES for key, a in one_step(fw, name).items()}
    found |= {f"resting/{key}": a for key, a in one_step(fw, "batchnorm", ["it"]).items()}
    found |= {f"curve/{name}": curve(fw, name) for name in CURVES}
    found |= {f"freezing_{o}/{key}": a for o in COUNTING for key, a in freezing(fw, o).items()}
    np.savez(path, **found)


@pytest.fixture(scope="module")
def torch_says(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "reference.npz"
    subprocess.run([sys.executable, __file__, str(path)], check=True)
    with np.load(path) as found:
        return dict(found)


@pytest.fixture(scope="module", params=MODES)
def mge(request):
    return framework(mode=request.param)


def close(mine, theirs, tolerance):
    """Largest difference against the largest number; a bias before BatchNorm has a true gradient of zero."""
    return np.abs(mine - theirs).max() <= tolerance * max(np.abs(theirs).max(), 0.05)


def test_every_kind_has_a_case():
    assert set(KINDS) | set(PLAIN_KINDS) <= set(CASES)
    assert set(framework().kinds) == set(KINDS) | set(PLAIN_KINDS)


@pytest.mark.parametrize("name", CASES)
def test_a_kind_computes_what_torch_computes(mge, torch_says, name):
    mine = one_step(mge, name)
    theirs = {key.partition("/")[2]: a for key, a in torch_says.items() if key.startswith(f"{name}/")}
    assert set(mine) == set(theirs)
    wrong = [key for key in mine if mine[key].shape != theirs[key].shape or not close(mine[key], theirs[key], 1e-5)]
    assert not wrong


def test_a_resting_batchnorm_computes_what_torch_computes(mge, torch_says):
    """Its own weight and bias may train all the same."""
    theirs = {key.partition("/")[2]: a for key, a in torch_says.items() if key.startswith("resting/")}
    assert not close(theirs["gradient/first.weight"], torch_says["batchnorm/gradient/first.weight"], 1e-2)
    mine = one_step(mge, "batchnorm", ["it"])
    assert all(close(mine[key], a, 1e-5) for key, a in theirs.items())


def test_who_rests_may_change_at_every_step(mge):
    """Also in a trace, which records operators: one for each set of resting layers."""
    run = Run(mge, tree_of("batchnorm"), plan_of(tree_of("batchnorm"), OPTIMIZERS["sgd"]))
    x, y = batch_of(run.tree, 0, 8)
    for rests in (False, True, False, True, True, False):
        before, active = run.weights(), (True,) * len(run.plan.groups)
        mge.train_step(run.state, x, y, Step(0, active, frozenset(["it"] * rests), 0))
        same = [np.array_equal(before[n], a) for n, a in run.weights().items() if "running" in n]
        assert same == [rests, rests]


@pytest.mark.parametrize("name", CURVES)
def test_the_curve_is_torchs(torch_says, name):
    *_, first, whole = CURVES[name]
    theirs = torch_says[f"curve/{name}"]
    difference = np.abs(curve(framework(), name) / theirs - 1)
    print(f"{name}: first ten {difference[:10].max():.1e}, all {difference.max():.1e}")
    assert theirs.std() > 1e-3
    assert difference[:10].max() <= first
    assert difference.max() <= whole


@pytest.mark.parametrize("name", ["lenet_momentum", "vit_adam"])
def test_a_trace_follows_the_same_curve(torch_says, name):
    difference = np.abs(curve(framework(mode="trace"), name) / torch_says[f"curve/{name}"] - 1)
    assert difference.max() <= 1e-5


@pytest.mark.parametrize("optimizer", COUNTING)
def test_two_optimizers_and_unfreezing_end_where_torch_ends(mge, torch_says, optimizer):
    mine = freezing(mge, optimizer)
    theirs = {key.partition("/")[2]: a for key, a in torch_says.items() if key.startswith(f"freezing_{optimizer}/")}
    assert set(mine) == set(theirs)
    keys = {key.rpartition("/")[2] for key in mine if key.startswith("state/")}
    assert keys == {"momentum_buffer", *STATE_KEYS[optimizer]}
    assert len({float(a) for key, a in mine.items() if key.endswith("/step")}) > 1
    wrong = [key for key in mine if mine[key].shape != theirs[key].shape or not close(mine[key], theirs[key], 2e-4)]
    assert not wrong
    assert np.abs(mine["losses"] / theirs["losses"] - 1).max() <= 1e-5


MODELS = {
    "lenet": ("lenet", 1, 28, {}),
    "vit": ("vit_tiny", 1, 28, {**VIT, "layer_scale": 0.1, "pool": "avg"}),
    "resnet18": ("resnet18", 3, 32, {}),
    "mobilenet_v2": ("mobilenet_v2", 3, 32, {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_weights_round_trip_bit_by_bit(name):
    tree, fw = make(*MODELS[name]), framework()
    model = fw.make_model(tree)
    for seed in (3, 4):
        weights = initial_weights(tree, seed)
        fw.set_weights(model, weights)
        got = fw.get_weights(model)
        assert list(got) == list(weights)
        assert all(got[n].dtype == np.float32 and np.array_equal(got[n], weights[n]) for n in weights)


def fine_error(records):
    """The largest error of the steps that float32 rounding leaves alone."""
    return max(record["max_relative_error"] for record in records if record["resolution"] < 1e-4)


@pytest.mark.parametrize(("name", "optimizer"), list(product(MODELS, OPTIMIZERS)))
def test_the_effective_lr_is_proved(name, optimizer):
    tree = make(*MODELS[name])
    plan = plan_of(tree, OPTIMIZERS[optimizer], 12, FreezeSpec("head_first", every=5))
    fw = framework()
    model, weights = fw.make_model(tree), initial_weights(tree, 0)
    assert fine_error(proof.check(fw, model, plan, weights, batch_of(tree, 0, 4), 0)) <= 1e-4


def test_the_proof_holds_in_a_trace_and_catches_a_saboteur(monkeypatch):
    tree, fw = make(*MODELS["lenet"]), framework(mode="trace")
    plan = plan_of(tree, OPTIMIZERS["adamw"], 12, FreezeSpec("progressive", every=2))
    arguments = fw, fw.make_model(tree), plan, initial_weights(tree, 0), batch_of(tree, 0, 4), 0
    assert fine_error(proof.check(*arguments)) <= 1e-4
    flat = lambda self, index: [group.update(lr=plan.base_lr) for group in self._groups]  # noqa: E731
    monkeypatch.setattr("layerwise_lr.framework.GroupScheduler.apply", flat)
    with pytest.raises(proof.LrMismatch):
        proof.check(*arguments)


def test_every_step_moves_by_its_lr(mge):
    tree = make(*MODELS["lenet"])
    plan = plan_of(tree, replace(OPTIMIZERS["sgd"], weight_decay=0.0), 12)
    run, start = Run(mge, tree, plan), initial_weights(tree, 0)
    for step in range(12):
        mge.set_weights(run.model, start)
        run.train(1)
        gradients, after = run.gradients, run.weights()
        for group, lr in zip(plan.groups, plan.lrs(step), strict=True):
            g = np.concatenate([gradients[n].ravel() for n in group.params]).astype(np.float64)
            moved = np.concatenate([(start[n].astype(np.float64) - after[n]).ravel() for n in group.params])
            assert moved @ g / (g @ g) == pytest.approx(lr, rel=1e-3)


def test_frozen_groups_keep_weights_and_state(mge):
    tree = make(*MODELS["lenet"])
    plan = plan_of(tree, OPTIMIZERS["adamw"], 12)
    run = Run(mge, tree, plan)
    run.train(2)
    windows = {True: (0, 12), False: (5, 12)}
    groups = tuple(replace(g, active=windows[g.name.startswith("layer_4")]) for g in plan.groups)
    run.plan = replace(plan, groups=groups)
    frozen = {
        n for group, trains in zip(plan.groups, run.plan.active(2), strict=True) if not trains for n in group.params
    }
    before, state = run.weights(), mge.get_optimizer_state(run.state)
    run.train(3)
    after, later = run.weights(), mge.get_optimizer_state(run.state)
    assert frozen
    assert {n for n in before if np.array_equal(before[n], after[n])} == frozen
    kept = {n for n in state if np.array_equal(state[n], later[n])}
    assert kept == {n for n in state if n.rpartition("/")[0] in frozen}
    assert set(run.gradients) == set(before) - frozen
    run.train(1)
    assert not any(np.array_equal(after[n], a) for n, a in run.weights().items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ten_steps_are_five_and_five(mge, optimizer):
    tree = make("lenet", 1, 16, {})
    plan = plan_of(tree, OPTIMIZERS[optimizer], 10)
    whole, first = Run(mge, tree, plan), Run(mge, tree, plan)
    losses = whole.train(10)
    first.train(5)
    second = Run(mge, tree, plan, start=5)
    mge.set_weights(second.model, first.weights())
    mge.set_optimizer_state(second.state, mge.get_optimizer_state(first.state))
    assert np.array_equal(second.train(5), losses[5:])
    assert all(np.array_equal(a, second.weights()[n]) for n, a in whole.weights().items())


def test_state_without_entry_starts_fresh():
    tree, fw = make("lenet", 1, 16, {}), framework()
    run = Run(fw, tree, plan_of(tree, OPTIMIZERS["adamw"]))
    assert fw.get_optimizer_state(run.state) == {}
    run.train(2)
    fw.set_optimizer_state(run.state, {})
    assert fw.get_optimizer_state(run.state) == {}


def test_predict_leaves_everything_as_it_was(mge):
    tree = make(*MODELS["mobilenet_v2"])
    plan = plan_of(tree, OPTIMIZERS["sgd"])
    one, two = Run(mge, tree, plan), Run(mge, tree, plan)
    x, y = batch_of(tree, 0, 4)
    losses = []
    for run, asks in ((one, False), (two, True)):
        losses.append(run.take((x, y), 0, seed=5)[0])
        if asks:
            before = run.weights()
            assert np.array_equal(mge.predict(run.state, x), mge.predict(run.state, x))
            assert all(np.array_equal(a, before[n]) for n, a in run.weights().items())
        losses.append(run.take((x, y), 1, seed=6)[0])
    assert losses[:2] == losses[2:]


def test_dropout_follows_from_the_seed(mge):
    nodes = (Layer("flatten"), layer("dropout", p=0.5), linear("head", 48, 5, depth=0))
    tree = Tree("drop", Seq("", nodes), "head", (3, 4, 4), 5)
    run = Run(mge, tree, plan_of(tree, replace(OPTIMIZERS["sgd"], lr=1e-9)))
    batch = np.ones((64, 3, 4, 4), np.float32), np.arange(64) % 5
    first, other, again = (run.take(batch, seed=seed)[1]["head.weight"] for seed in (1, 2, 1))
    assert not np.array_equal(first, other)
    assert np.allclose(first, again, atol=1e-7)
    from layerwise_lr.plugins.megengine_plugin.layers import mask

    kept = mask(np.random.default_rng(0), (1000, 100), 0.25).numpy()
    assert set(np.unique(kept)) == {np.float32(0), np.float32(1) / np.float32(0.75)}
    assert kept.mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", ["dropout", "drop_path"])
def test_each_part_of_a_batch_is_drawn_for_by_itself(mge, kind):
    nodes = (Layer("flatten"), layer(kind, p=0.5), linear("head", 48, 3, depth=0))
    tree = Tree("drawing", Seq("", nodes), "head", (3, 4, 4), 3)
    run = Run(mge, tree, replace(plan_of(tree, OPTIMIZERS["sgd"]), accumulate=2))
    mge.set_weights(run.model, {name: 0 * a for name, a in run.weights().items()})
    batch = np.ones((32, 3, 4, 4), np.float32), np.arange(32) // 16  # the parts are alike, but for the class
    gradient = run.take(batch, seed=3)[1]["head.weight"]
    assert not np.allclose(gradient[0], gradient[1])  # the same masks would give both classes the same


def test_fp16_clips_gradients_without_the_scale_of_the_loss():
    tree = make("lenet", 1, 16, {})
    fw = registry.load("megengine")("cpu", "eager", "fp16")
    plan = replace(plan_of(tree, replace(OPTIMIZERS["sgd"], weight_decay=0.0)), clip=Clip(norm=0.01), accumulate=2)
    run = Run(fw, tree, plan)
    before = run.weights()
    gradients = run.take(batch_of(tree, 0, 16))[1]
    assert np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values())) > 0.1  # as the loss gave them
    after, square = run.weights(), 0.0
    for group, lr in zip(plan.groups, plan.lrs(0), strict=True):
        square += sum((((before[n] - after[n].astype(np.float64)) / lr) ** 2).sum() for n in group.params)
    assert np.sqrt(square) == pytest.approx(0.01, rel=1e-2)


def test_our_convolution_is_the_native_one(monkeypatch):
    from layerwise_lr.plugins.megengine_plugin import layers

    fw, taken = framework(), []
    own = {name: one_step(fw, name) for name in CASES if name.startswith("conv")}

    def native(x, w, stride, padding):
        taken.append(w.shape)
        return layers.F.conv2d(x, w, None, stride, padding, groups=w.shape[0] if w.ndim == 5 else 1)

    monkeypatch.setattr(layers, "conv2d", native)
    for name, mine in own.items():
        theirs = one_step(fw, name)
        assert all(close(mine[key], theirs[key], 1e-5) for key in mine), name
    assert len(taken) > len(own)


def test_a_failed_optimizer_step_leaves_megengine_usable():
    tree, fw = make("lenet", 1, 16, {}), framework()
    run = Run(fw, tree, plan_of(tree, OPTIMIZERS["momentum"]))
    run.state.groups[0]["momentum"] = "much"
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        run.train(1)
    run.state.groups[0]["momentum"] = 0.9
    assert np.isfinite(Run(fw, tree, run.plan).train(2)).all()


def test_a_failed_trace_is_made_anew():
    tree, fw = make("lenet", 1, 16, {}), framework(mode="trace")
    run = Run(fw, tree, plan_of(tree, OPTIMIZERS["momentum"]))
    run.train(2)
    x, y = batch_of(tree, 0, 16)
    with pytest.raises(Exception):  # noqa: B017 (whatever MegEngine says to a wrong shape)
        run.take((x[:, :, :9], y))
    assert np.isfinite(run.train(2)).all()


def test_other_batch_sizes_and_nobody_training(mge):
    tree = make("lenet", 1, 16, {})
    run = Run(mge, tree, plan_of(tree, OPTIMIZERS["momentum"]))
    assert np.isfinite([*run.train(2, 16), *run.train(2, 5), *run.train(1, 16)]).all()
    before = run.weights()
    run.plan = replace(run.plan, groups=tuple(replace(group, active=(0, 0)) for group in run.plan.groups))
    assert np.isfinite(run.train(1)).all()
    assert all(np.array_equal(a, before[n]) for n, a in run.weights().items())
    assert run.gradients == {}


def test_more_threads_compute_the_same():
    tree = make(*MODELS["lenet"])
    plan = plan_of(tree, OPTIMIZERS["momentum"])
    losses = [Run(framework(threads=n), tree, plan).train(4) for n in (1, 2)]
    assert np.abs(losses[0] / losses[1] - 1).max() <= 1e-6


def test_devices_are_asked_before_they_are_used():
    found = registry.load("megengine")
    assert found.devices()[-1] == "cpu"
    assert found.version().startswith("megengine 1.")
    assert found.fork_safe is False
    for device in ("cuda:7", "ascend:0", "tpu"):
        with pytest.raises(UserError, match=r"is not here; megengine .* sees: .*cpu"):
            found(device, "eager")


def test_nothing_is_said_at_the_start():
    code = (
        "from layerwise_lr.framework import registry; f = registry.load('megengine'); f.devices(); f('auto', 'eager')"
    )
    said = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout + said.stderr == ""


if __name__ == "__main__":
    reference(sys.argv[1])
