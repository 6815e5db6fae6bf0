"""Seed documents 000 and 001 (OneFlow): their own code, mended and in plain OneFlow, against our plan and plugin.

Eager and nn.Graph each have a process of their own: this file, run as `python test_seeds_oneflow.py eager OUT`, plays
the documents' code and ours and writes what both did; the tests compare. Neither does the learning-rate arithmetic
of the other: the native side has the document's lines, ours has a plan.
"""

import math
import os
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from layerwise_lr.framework import begin, registry, take_step
from layerwise_lr.models.layers import initial_weights, param_table
from layerwise_lr.models.trees import make_tree
from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.groups import GroupingSpec, GroupSpec
from layerwise_lr.planning.plan import FreezeSpec, OptimizerSpec, make_plan
from layerwise_lr.planning.schedules import ScheduleSpec

MOBILENET = make_tree("mobilenet_v2", num_classes=10, in_channels=3, image_size=32, dropout=0.0)
VIT = make_tree("vit_tiny", 10, 3, 16, patch_size=8, embed_dim=16, num_heads=2, depth=3)
LRS, SCALES = {"features": 1e-3, "classifier": 1e-5}, {"features": 0.9, "classifier": 0.7}
BATCHES, BASE, DECAY = 25, 1e-3, 0.9


# --- what runs in the child processes -------------------------------------------------------------------------------


def batch_of(tree, step, size=4):
    rng = np.random.default_rng([11, step])
    return rng.standard_normal((size, *tree.input_shape)).astype(np.float32), rng.integers(0, 10, size)


def native_model(fw, tree):
    """A OneFlow module with our initial weights; its parameters by canonical name."""
    model = fw.make_model(tree)
    fw.set_weights(model, initial_weights(tree, 0))
    return model, {name: array for name, array in model.arrays().items() if array.is_leaf and array.requires_grad}


def of_module(named, module):
    """`model.features.parameters()` of the document."""
    return [p for name, p in named.items() if name.startswith(module + ".")]


def train(model, optimizer, tree, step, after=lambda: None):
    """The document's inner loop."""
    import oneflow as flow

    x, y = map(flow.tensor, batch_of(tree, step))
    loss = flow.nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    after()


def ours(fw, tree, plan, start=0, steps=BATCHES):
    """The plan in our plugin: final weights, and what scheduler.lrs() told at every step."""
    model = fw.make_model(tree)
    fw.set_weights(model, initial_weights(tree, 0))
    state, told = begin(fw, model, plan, start), []
    for step in range(steps):
        take_step(fw, state, plan, start + step, batch_of(tree, step), seed=step)
        told.append(state.scheduler.lrs())
    return fw.get_weights(model), np.array(told)


def plan_000(steps=BATCHES, cosine=False):
    """Groups by module with a decay of their own; `cosine`: multiplied with the run's schedule."""
    named = {f"{m}_decay": ScheduleSpec("exponential", gamma=s, every=10) for m, s in SCALES.items()}
    named |= {f"{m}_both": ScheduleSpec("product", parts=["default", f"{m}_decay"]) for m in SCALES}
    groups = {m: GroupSpec([m], lr=lr, schedule=m + ("_both" if cosine else "_decay")) for m, lr in LRS.items()}
    return make_plan(
        param_table(MOBILENET),
        GroupingSpec("by_module", groups=groups),
        {"default": OptimizerSpec("sgd", BASE, 0.0)},
        {"default": ScheduleSpec("cosine"), **named},
        FreezeSpec(),
        steps,
    )[1]


def native_000(fw, decays_after, cosine=False):
    """param_groups and adjust_learning_rate of the document, eager; `decays_after(batch)` is the question its loop
    asks. `cosine` multiplies each group's decayed lr with half a cosine over the run."""
    import oneflow as flow

    model, named = native_model(fw, MOBILENET)
    param_groups = [
        {"params": of_module(named, "features"), "lr": 1e-3, "lr_scale": 0.9},
        {"params": of_module(named, "adaptive_avg_pool2d"), "lr": 1e-4, "lr_scale": 0.8},
        {"params": of_module(named, "classifier"), "lr": 1e-5, "lr_scale": 0.7},
    ]
    assert [len(g["params"]) for g in param_groups] == [156, 0, 2]  # the pooling has no parameters
    optimizer, lrs = flow.optim.SGD(param_groups), []

    def adjust_learning_rate(optimizer):
        for param_group in optimizer.param_groups:
            param_group["lr"] *= param_group["lr_scale"]

    def under(factor):
        for param_group in optimizer.param_groups:
            param_group["lr"] *= factor

    for batch in range(BATCHES):
        factor = 0.5 * (1 + math.cos(math.pi * batch / BATCHES)) if cosine else 1.0
        under(factor)
        lrs.append([optimizer.param_groups[0]["lr"], optimizer.param_groups[2]["lr"]])
        train(model, optimizer, MOBILENET, batch)
        under(1 / factor)
        if decays_after(batch):
            adjust_learning_rate(optimizer)
    return fw.get_weights(model), np.array(lrs)


def scale_groups(named, scale_of):
    """Document 001's dicts: lr_scale and parameters per layer."""
    groups = {}
    for name, param in named.items():
        scale = scale_of(name)
        groups.setdefault(scale, {"lr_scale": scale, "params": []})["params"].append(param)
    return list(groups.values())


def plan_001(schedule=None, optimizer="sgd", steps=12):
    """layer_decay 0.9 on the tiny ViT; no weight decay."""
    return make_plan(
        param_table(VIT),
        GroupingSpec("layer_decay", DECAY),
        {"default": OptimizerSpec(optimizer, BASE, 0.0)},
        {"default": schedule or ScheduleSpec("constant")},
        FreezeSpec(),
        steps,
    )[1]


SCHEDULES = {"step": ScheduleSpec("step", gamma=0.5, every=4), "cosine": ScheduleSpec("cosine", floor=0.1)}


def native_001(fw, name, steps=12):
    """The document's LayerScaleLR over a native scheduler, whose get_lr is the one it lacks: group lrs, what the
    class logs, weights."""
    import oneflow as flow

    class LayerScaleLR(flow.optim.lr_scheduler._LRScheduler):
        def update_lrs(self, lrs):
            self._last_lr = []
            for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
                if "lr_scale" in group:
                    group["lr"] = lr * group["lr_scale"]
                else:
                    group["lr"] = lr
                self._last_lr.append(lr)

    of = {
        "step": (flow.optim.lr_scheduler.StepLR, {"step_size": 4, "gamma": 0.5}),
        "cosine": (flow.optim.lr_scheduler.CosineDecayLR, {"decay_steps": steps, "alpha": 0.1}),
    }
    base, options = of[name]
    mended = type("Mended", (LayerScaleLR, base), {})
    model, named = native_model(fw, VIT)
    optimizer = flow.optim.SGD(scale_groups(named, scale_of_vit), lr=BASE)
    printed = "nothing"
    try:
        LayerScaleLR(optimizer=optimizer)
    except NotImplementedError:
        printed = "NotImplementedError"
    scheduler, lrs, logged = mended(optimizer, **options), [], []
    for step in range(steps):
        lrs.append([g["lr"] for g in optimizer.param_groups])
        logged.append(scheduler.get_last_lr())
        train(model, optimizer, VIT, step, scheduler.step)
    return fw.get_weights(model), np.array(lrs), np.array(logged), printed


def play_eager(fw, out):
    printed = native_000(fw, lambda batch: batch % 10 == 0)
    mended = native_000(fw, lambda batch: batch % 10 == 9)
    both = native_000(fw, lambda batch: batch % 10 == 9, cosine=True)
    for key, native, plan, start in (
        ("mended", mended, plan_000(), 0),
        ("both", both, plan_000(cosine=True), 0),
        ("printed", printed, plan_000(BATCHES + 9), 9),
    ):
        save(out, f"000 {key}", native, ours(fw, MOBILENET, plan, start))
    for name, schedule in SCHEDULES.items():
        *native, logged, error = native_001(fw, name)
        save(out, f"001 {name}", native, ours(fw, VIT, plan_001(schedule), steps=12))
        out[f"001 {name}/logged"], out[f"001 {name}/error"] = logged, error
    out["000 typo"] = typo_000()
    for key, tree in (("000", MOBILENET), ("001", VIT)):
        out |= {f"{key} gradient/{n}": g for n, g in gradients(fw, tree).items()}


def typo_000():
    """`model.classifer = ...` on a module with MobileNetV2's three parts and forward: how many logits there are then,
    parameters of the pooling, and gradients of the new module."""
    import oneflow as flow
    from oneflow import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.adaptive_avg_pool2d = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d((1, 1))
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 1000))

        def forward(self, x):
            return self.classifier(self.adaptive_avg_pool2d(self.features(x)).flatten(1))

    model = Model()
    model.classifer = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 10))
    x, y = map(flow.tensor, batch_of(MOBILENET, 0))
    logits = model(x)
    flow.nn.functional.cross_entropy(logits, y).backward()
    pooling = len(list(model.adaptive_avg_pool2d.parameters()))
    return [logits.shape[1], pooling, sum(p.grad is not None for p in model.classifer.parameters())]


def gradients(fw, tree):
    """Of the first batch at the initial weights."""
    import oneflow as flow

    model, named = native_model(fw, tree)
    x, y = map(flow.tensor, batch_of(tree, 0))
    flow.nn.functional.cross_entropy(model(x), y).backward()
    return {name: p.grad.numpy() for name, p in named.items()}


def native_graph(fw, tree, optimizer_of, steps):
    """The documents' Graph over param_groups with lr_scale: weights after the first step and after all."""
    import oneflow as flow
    from oneflow import nn

    network, named = native_model(fw, tree)
    optimizer = optimizer_of(named)

    class GraphOfTheModel(nn.Graph):
        def __init__(self):
            super().__init__()
            self.model, self.loss_fn = network, nn.CrossEntropyLoss()
            self.add_optimizer(optimizer)

        def build(self, x, y):
            loss = self.loss_fn(self.model(x), y)
            loss.backward()
            return loss

    graph, seen = GraphOfTheModel(), []
    for step in range(steps):
        graph(*map(flow.tensor, batch_of(tree, step)))
        for param in named.values():
            param.grad = None
        seen.append(fw.get_weights(network))
    return seen[0], seen[-1]


def native_graphs():
    """(tree, plan, function that makes the document's optimizer) by case."""
    import oneflow as flow

    def sgd_000(named):
        return flow.optim.SGD(
            [
                {"params": of_module(named, "features"), "lr_scale": 0.9},
                {"params": of_module(named, "adaptive_avg_pool2d"), "lr_scale": 0.8},
                {"params": of_module(named, "classifier"), "lr_scale": 0.7},
            ],
            lr=1e-3,
        )

    groups = {m: GroupSpec([m], lr_scale=s) for m, s in SCALES.items()}
    plan = make_plan(
        param_table(MOBILENET),
        GroupingSpec("by_module", groups=groups),
        {"default": OptimizerSpec("sgd", BASE, 0.0)},
        {"default": ScheduleSpec("constant")},
        FreezeSpec(),
        12,
    )[1]
    cases = {"000 sgd": (MOBILENET, plan, sgd_000)}
    for name, optimizer in (("sgd", flow.optim.SGD), ("adam", flow.optim.Adam)):
        make = partial(
            lambda named, optimizer: optimizer(scale_groups(named, scale_of_vit), lr=1e-3), optimizer=optimizer
        )
        cases[f"001 {name}"] = (VIT, plan_001(optimizer=name), make)
    return cases


def play_graph(fw, out):
    for key, (tree, plan, make) in native_graphs().items():
        first, last = native_graph(fw, tree, make, 4)
        out |= {f"{key}/first/{n}": a for n, a in first.items()}
        save(out, key, (last, []), ours(fw, tree, plan, steps=4))


def save(out, key, native, mine):
    for side, (weights, lrs) in (("native", native), ("ours", mine)):
        out |= {f"{key}/{side}/{n}": a for n, a in weights.items()}
        out[f"{key}/{side}_lrs"] = np.array(lrs)


# --- the documents' lines that need no framework --------------------------------------------------------------------


def get_layer_idx_for_vit(name, num_layers):
    """What document 001 calls and does not show: BEiT's and MAE's, tokens and patches 0, block i at i + 1."""
    if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    if name.startswith("blocks"):
        return int(name.split(".")[1]) + 1
    return num_layers


def layer_scales_of(blocks, layer_decay=DECAY):
    """Document 001's list."""
    num_layers = blocks + 1
    return [layer_decay ** (num_layers - i) for i in range(num_layers + 1)], num_layers


def scale_of_vit(name):
    scales, num_layers = layer_scales_of(3)
    return scales[get_layer_idx_for_vit(name, num_layers)]


AS_PRINTED = """for name, param in model.named_parameters():
    if not param.requires_grad:
    \tcontinue

    if group_name not in param_group_names:
    \tthis_scale = layer_scales[layer_idx]

        param_group_names[group_name] = {
            "lr_scale": this_scale,
        }
"""


# --- tests ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """mode -> arrays. A Graph that OneFlow's own race has killed is started again, as a job of a sweep is."""
    result = {}
    for mode in ("eager", "graph_native"):
        path = tmp_path_factory.mktemp(mode) / "out.npz"
        for attempt in range(5):
            done = subprocess.run([sys.executable, __file__, mode, str(path)], capture_output=True, text=True)
            if done.returncode not in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS) or mode == "eager":
                break
            print(f"died of {signal.Signals(-done.returncode).name}: started again ({attempt + 2} of 5)")
        assert done.returncode == 0, done.stdout + done.stderr
        with np.load(path) as held:
            result[mode] = dict(held)
    return result


def arrays(found, prefix):
    return {key.removeprefix(prefix): a for key, a in found.items() if key.startswith(prefix)}


def largest_difference(found, case):
    """Between native and our weights after all steps, of any number, relative to its array's largest; and how far
    the matrices and filters, none of which is born zero, went on the same scale."""
    native, mine = arrays(found, f"{case}/native/"), arrays(found, f"{case}/ours/")
    start = initial_weights(MOBILENET if case.startswith("000") else VIT, 0)
    assert set(native) == set(mine) == set(start)
    size = {n: max(float(np.abs(a).max()), 1e-6) for n, a in native.items()}
    went = max(float(np.abs(start[n] - a).max()) / size[n] for n, a in native.items() if a.ndim in (2, 4))
    return max(float(np.abs(mine[n] - a).max()) / size[n] for n, a in native.items()), went


def test_000_absolute_lrs_and_decay_every_ten_batches(seen):
    """Seed 000: absolute lr per module, each times its own lr_scale (0.9, 0.7) every 10 batches, eager, 25 batches.

    Mended: the first decay after ten batches instead of one, and no pooling group."""
    found = seen["eager"]
    np.testing.assert_allclose(found["000 mended/native_lrs"], plan_000().table(), rtol=1e-12)
    np.testing.assert_allclose(found["000 mended/ours_lrs"], plan_000().table(), rtol=1e-12)
    np.testing.assert_allclose(
        found["000 mended/native_lrs"][[9, 10, 24]], [[1e-3, 1e-5], [9e-4, 7e-6], [8.1e-4, 4.9e-6]], rtol=1e-12
    )
    difference, went = largest_difference(found, "000 mended")
    print(f"weights: {difference:.1e} apart after moving {went:.1e}")
    assert difference <= 1e-6 < 1e-3 < went


def test_000_as_printed_is_nine_batches_ahead(seen):
    """Seed 000: `batch % 10 == 0` holds for batch 0 too, so the document decays after one batch, then after eleven:
    its lr at batch s is ours at s + 9, number for number, and so are the weights of our plan begun at step 9."""
    found = seen["eager"]
    native, plan = found["000 printed/native_lrs"], plan_000(BATCHES + 9)
    np.testing.assert_allclose(native, [plan.lrs(s + 9) for s in range(BATCHES)], rtol=1e-12)
    np.testing.assert_allclose(native[:, 0], [1e-3 * 0.9 ** math.ceil(s / 10) for s in range(BATCHES)], rtol=1e-12)
    assert (native[0] == [1e-3, 1e-5]).all()
    differs = [s for s in range(BATCHES) if not np.allclose(native[s], plan.lrs(s), rtol=1e-9)]
    assert differs == [s for s in range(BATCHES) if s % 10]  # equal at 0, 10, 20 alone
    assert not np.array_equal(
        found["000 printed/native/classifier.1.weight"], found["000 mended/native/classifier.1.weight"]
    )
    difference, went = largest_difference(found, "000 printed")
    print(f"weights: {difference:.1e} apart after moving {went:.1e}")
    assert difference <= 1e-6 < 1e-3 < went


def test_000_own_decay_under_a_cosine_of_the_run(seen):
    """Seed 000: a layer's own decay together with the run's schedule: a product of [default, mine] in our plan, the
    document's adjust_learning_rate times a cosine in native code."""
    found = seen["eager"]
    plan = plan_000(cosine=True)
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(BATCHES) / BATCHES))[:, None]
    np.testing.assert_allclose(plan.table(), plan_000().table() * cosine, rtol=1e-12)
    np.testing.assert_allclose(found["000 both/native_lrs"], plan.table(), rtol=1e-9)
    difference, went = largest_difference(found, "000 both")
    print(f"weights: {difference:.1e} apart after moving {went:.1e}")
    assert difference <= 1e-6 < 5e-4 < went


def test_000_graph_multiplies_lr_scale(seen):
    """Seed 000: in a Graph the real lr is lr * lr_scale: 1e-3 times 0.9 and 0.7, by displacement, in the document's
    own Graph and in ours (graph_native), which end at the same weights."""
    found, gradient = seen["graph_native"], arrays(seen["eager"], "000 gradient/")
    start, first = initial_weights(MOBILENET, 0), arrays(found, "000 sgd/first/")
    for module, scale in SCALES.items():
        names = [n for n in gradient if n.startswith(module + ".")]
        lr = displacement(start, first, gradient, names)
        print(f"{module}: {lr:.6g}")
        assert lr == pytest.approx(1e-3 * scale, rel=1e-4)
    difference, went = largest_difference(found, "000 sgd")
    print(f"weights: {difference:.1e} apart after moving {went:.1e}")
    assert difference <= 1e-6 < 5e-4 < went


def displacement(start, after, unit, names):
    """-<dw, u> / <u, u> over `names`: the lr that moved them."""
    dot = sum(float(((start[n].astype(float) - after[n]) * unit[n]).sum()) for n in names)
    return dot / sum(float((unit[n].astype(float) ** 2).sum()) for n in names)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("adaptive_avg_pool2d", r"groups\.it\.match: 'adaptive_avg_pool2d' matches no parameter of the model"),
        ("classifer", r"groups\.it\.match: 'classifer' matches no parameter.*did you mean '?classifier"),
    ],
)
def test_000_groups_without_parameters_are_named(module, says):
    """Seed 000: the pooling group trains nothing, since pooling has no parameters, and `model.classifer = ...` adds a
    module that nothing calls (the logits stay 1000-way). OneFlow takes both in silence; our plan names them."""
    grouping = GroupingSpec("by_module", groups={"it": GroupSpec([module], lr=1e-4), "rest": GroupSpec(["*"])})
    with pytest.raises(UserError, match=says):
        make_plan(
            param_table(MOBILENET),
            grouping,
            {"default": OptimizerSpec("sgd", BASE, 0.0)},
            {"default": ScheduleSpec("constant")},
            FreezeSpec(),
            10,
        )


def test_000_the_typo_changes_no_logit(seen):
    """Seed 000: after `model.classifer = ...` for ten classes the logits are still 1000, the new head has no gradient
    in either of its two parameters, and `adaptive_avg_pool2d.parameters()` is empty."""
    assert seen["eager"]["000 typo"].tolist() == [1000, 0, 0]


@pytest.mark.parametrize("name", ["vit_base", "vit_tiny"])
def test_001_layer_scales_are_our_lr_scales(name):
    """Seed 001: layer_scales = 0.9 ** (num_layers - i), picked by get_layer_idx_for_vit: exactly the lr_scale of
    every one of 152 parameters in our plan. Mended: tabs after spaces, which Python 3 refuses."""
    table = param_table(make_tree(name, num_classes=1000, in_channels=3, image_size=224))
    plan = make_plan(
        table,
        GroupingSpec("layer_decay", DECAY),
        {"default": OptimizerSpec("adam", BASE, 0.0)},
        {"default": ScheduleSpec("constant")},
        FreezeSpec(),
        10,
    )[1]
    layer_scales, num_layers = layer_scales_of(12)
    assert (len(layer_scales), layer_scales[0], layer_scales[-1]) == (14, 0.9**13, 1.0)
    wanted = {row.name: layer_scales[get_layer_idx_for_vit(row.name, num_layers)] for row in table.trainable}
    assert len(wanted) == 152
    assert {n: g.lr_scale for n, g in plan.group_of().items()} == wanted
    assert len(plan.groups) == 14
    with pytest.raises(TabError):
        compile(AS_PRINTED, "document", "exec")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_001_graph_applies_lr_times_lr_scale(seen, optimizer):
    """Seed 001: param_groups with lr_scale in a Graph move each layer by lr * lr_scale, under SGD and under Adam, in
    the document's Graph; ours (graph_native) ends at the same weights."""
    found, unit = seen["graph_native"], arrays(seen["eager"], "001 gradient/")
    if optimizer == "adam":  # its first step, both moments corrected
        unit = {n: g / (np.abs(g) + 1e-8) for n, g in unit.items()}
    start, first = initial_weights(VIT, 0), arrays(found, f"001 {optimizer}/first/")
    scales, num_layers = layer_scales_of(3)
    errors = []
    for depth, scale in enumerate(scales):
        names = [n for n in unit if get_layer_idx_for_vit(n, num_layers) == depth and not n.endswith("qkv.bias")]
        errors.append(displacement(start, first, unit, names) / (BASE * scale) - 1)
    difference, went = largest_difference(found, f"001 {optimizer}")
    print(f"lr off by {np.abs(errors).max():.1e}; weights: {difference:.1e} apart after moving {went:.1e}")
    assert len(errors) == 5
    assert np.abs(errors).max() <= 1e-3
    assert difference <= 1e-6 < 5e-4 < went


@pytest.mark.parametrize("name", SCHEDULES)
def test_001_eager_layer_scale_lr_over_native_schedulers(seen, name):
    """Seed 001: eager OneFlow ignores lr_scale, so LayerScaleLR multiplies in update_lrs. Mended: it has no get_lr
    and raises at once; here it gets StepLR's or CosineDecayLR's. Then its group lrs are our plan's at every step and
    the weights are ours. It logs `lr` where it wrote `lr * lr_scale`: one number for all layers; ours tells each."""
    found = seen["eager"]
    plan = plan_001(SCHEDULES[name])
    assert found[f"001 {name}/error"] == "NotImplementedError"
    native, logged = found[f"001 {name}/native_lrs"], found[f"001 {name}/logged"]
    np.testing.assert_allclose(native, plan.table(), rtol=1e-12)
    np.testing.assert_allclose(found[f"001 {name}/ours_lrs"], plan.table(), rtol=1e-12)
    scales = [g.lr_scale for g in plan.groups]
    np.testing.assert_allclose(logged, np.repeat(plan.table()[:, [-1]], 5, axis=1), rtol=1e-12)
    np.testing.assert_allclose(native / logged, np.tile(scales, (12, 1)), rtol=1e-12)
    assert scales[0] == DECAY**4
    difference, went = largest_difference(found, f"001 {name}")
    print(f"weights: {difference:.1e} apart after moving {went:.1e}")
    assert difference <= 1e-6 < 5e-4 < went


if __name__ == "__main__":
    mode, path = sys.argv[1:]
    kept = {}
    {"eager": play_eager, "graph_native": play_graph}[mode](registry.load("oneflow")("cpu", mode), kept)
    np.savez(path, **kept)
    sys.stdout.flush()
    os._exit(0)  # OneFlow's threads may hang at a normal exit
