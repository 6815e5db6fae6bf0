"""Seed documents 000 and 001 (OneFlow): their own code, mended, on OneFlow's own optimizers, against our plan and plugin.

Eager code and Graphs run in processes of their own (mixed in one they crash now and then): this file, run as
`python test_seeds_oneflow.py CASE`, prints what it measured as JSON, and the tests read it.
"""

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from beside import Ours, batch_of, largest_difference

from layerwise_lr import registry
from layerwise_lr.errors import UserError
from layerwise_lr.groups import GroupingSpec, GroupSpec
from layerwise_lr.layers import Layer, Seq, Tree, initial_weights, param_table
from layerwise_lr.models import batchnorm, conv, linear, make_tree
from layerwise_lr.plan import FreezeSpec, OptimizerSpec, make_plan
from layerwise_lr.schedules import ScheduleSpec

FEATURES = Seq("features", (conv("0", 3, 8, 3, 2), batchnorm("1", 8), Layer("relu6"), conv("3", 8, 8, 3, groups=8)))
CLASSIFIER = Seq("classifier", (linear("1", 8, 10),))
TREE = Tree("small", Seq("", (FEATURES, Layer("globalpool"), CLASSIFIER), depth=0), "classifier.1", (3, 12, 12), 10)
VIT = make_tree("vit_tiny", 10, 3, 16, patch_size=8, depth=2, embed_dim=32, num_heads=4)
STEPS, LRS, SCALES = 25, (1e-3, 1e-5), (0.9, 0.7)
VIT_SCALES = [0.9 ** (3 - i) for i in range(4)]  # layer_scales: num_layers = blocks + 1 = 3


def sgd_plan(groups, lr=1e-3):
    schedules = {"default": ScheduleSpec()}
    for name, gamma in zip(("features", "classifier"), SCALES, strict=True):
        schedules[f"{name}_decay"] = ScheduleSpec("exponential", gamma=gamma, every=10)
        schedules[name] = ScheduleSpec("product", parts=["default", f"{name}_decay"])
    return make_plan(param_table(TREE), GroupingSpec("by_module", groups=groups),
                     {"default": OptimizerSpec("sgd", lr, 0.0)}, schedules, FreezeSpec(), STEPS)[1]  # fmt: skip


def decayed():
    """The document's absolute lrs, each group with its own decay."""
    return sgd_plan(
        {n: GroupSpec([n], lr=lr, schedule=n) for n, lr in zip(("features", "classifier"), LRS, strict=True)}
    )


def scaled():
    """The document's lr_scale per group."""
    return sgd_plan({n: GroupSpec([n], lr_scale=s) for n, s in zip(("features", "classifier"), SCALES, strict=True)})


def vit_plan(schedule, optimizer="sgd", steps=24):
    return make_plan(param_table(VIT), GroupingSpec("layer_decay", layer_decay=0.9),
                     {"default": OptimizerSpec(optimizer, 1e-3, 0.0)}, {"default": schedule}, FreezeSpec(), steps)[1]  # fmt: skip


# --- what runs in the child processes -------------------------------------------------------------------------------


def native_model(tree, mode):
    framework = registry.load("oneflow")("cpu", mode, 0, "fp32", 1, False)
    model = framework.make_model(tree)
    framework.set_weights(model, initial_weights(tree, 0))
    return framework, model


def named_params(model):
    from layerwise_lr.plugins.oneflow_plugin.layers import canonical

    return {canonical(n): p for n, p in model.named_parameters()}


def below(params, prefix):
    return [p for n, p in params.items() if n.startswith(prefix)]


def adjust_learning_rate(optimizer):
    """As printed."""
    for param_group in optimizer.param_groups:
        param_group["lr"] *= param_group["lr_scale"]


def eager_sgd(mended):
    """The document's eager loop; `mended`: it decays after ten batches instead of after the first."""
    import oneflow as flow

    framework, model = native_model(TREE, "eager")
    params = named_params(model)
    optimizer = flow.optim.SGD(
        [
            {"params": below(params, "features"), "lr": 1e-3, "lr_scale": 0.9},
            {"params": below(params, "classifier"), "lr": 1e-5, "lr_scale": 0.7},
        ]
    )
    lrs = []
    for batch in range(STEPS):
        x, y = batch_of(TREE, batch)
        loss = flow.nn.functional.cross_entropy(model(flow.from_numpy(x)), flow.from_numpy(y))
        optimizer.zero_grad()
        loss.backward()
        lrs.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        if (batch + mended) % 10 == 0:
            adjust_learning_rate(optimizer)
    return lrs, framework.get_weights(model)


def case_eager_decay():
    printed, _ = eager_sgd(0)
    lrs, weights = eager_sgd(1)
    run = Ours("oneflow", "eager", TREE, decayed())
    ours = [run.step(step) for step in range(STEPS)]
    return {"printed": printed, "mended": lrs, "ours": ours, "difference": largest_difference(run.arrays(), weights)}


def graph_step(tree, groups_of, optimizer_name, steps=1):
    """The document's Graph, after `steps`: how far each parameter went."""
    import oneflow as flow

    framework, model = native_model(tree, "graph_native")
    before = framework.get_weights(model)
    params = named_params(model)
    optimizer = getattr(flow.optim, optimizer_name)(groups_of(params), lr=1e-3)

    class GraphMobileNetV2(flow.nn.Graph):
        def __init__(self):
            super().__init__()
            self.model = model
            self.loss_fn = flow.nn.CrossEntropyLoss()
            self.add_optimizer(optimizer)

        def build(self, x, y):
            y_pred = self.model(x)
            loss = self.loss_fn(y_pred, y)
            loss.backward()
            return loss

    graph = GraphMobileNetV2()
    for step in range(steps):
        x, y = batch_of(tree, step)
        graph(flow.from_numpy(x), flow.from_numpy(y)).numpy()
    after = framework.get_weights(model)
    return {n: after[n] - before[n] for n in params}


def case_graph_lr_scale():
    def groups(scales):
        return lambda params: [{"params": below(params, n), "lr_scale": s}
                               for n, s in zip(("features", "classifier"), scales, strict=True)]  # fmt: skip

    whole, scaled_ones = graph_step(TREE, groups((1.0, 1.0)), "SGD"), graph_step(TREE, groups(SCALES), "SGD")
    run = Ours("oneflow", "graph_native", TREE, scaled())
    before = run.arrays()
    run.step(0)
    after = run.arrays()
    ratio = {n: float((d * scaled_ones[n]).sum() / (d * d).sum()) for n, d in whole.items()}
    ours = {n: float((d * (after[n] - before[n])).sum() / (d * d).sum()) for n, d in whole.items()}
    return {"native": ratio, "ours": ours}


def case_graph_adam():
    """Adam's first step is lr * lr_scale for every entry with a gradient: the median tells it."""
    plan = vit_plan(ScheduleSpec(), "adam")
    of = {n: g for g in plan.groups for n in g.params}

    def groups(params):
        by_layer = {}
        for name, param in params.items():
            by_layer.setdefault(of[name].name, {"params": [], "lr_scale": of[name].lr_scale})["params"].append(param)
        return list(by_layer.values())

    moved = graph_step(VIT, groups, "Adam")
    return {n: [float(np.median(np.abs(d))), of[n].lr_scale] for n, d in moved.items() if d.ndim > 1}


def case_layer_scale_lr():
    import oneflow as flow

    schedule = flow.optim.lr_scheduler

    def optimizer():
        params = [flow.nn.Parameter(flow.zeros(1)) for _ in VIT_SCALES]
        groups = [{"params": [p], "lr_scale": s} for p, s in zip(params, VIT_SCALES, strict=True)]
        return flow.optim.SGD(groups, lr=1e-3)

    class AsPrinted(schedule._LRScheduler):
        def __init__(self, optimizer):
            super().__init__(optimizer)

        def update_lrs(self, lrs):
            self._last_lr = []
            for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
                if "lr_scale" in group:
                    group["lr"] = lr * group["lr_scale"]
                else:
                    group["lr"] = lr
                self._last_lr.append(lr)

    class WithGetLr(AsPrinted):
        def get_lr(self, base_lr, step):
            return base_lr

    class Scaled:
        """Mended: what is logged is what is applied."""

        def update_lrs(self, lrs):
            self._last_lr = []
            for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * group["lr_scale"]
                self._last_lr.append(group["lr"])

    class ScaledStep(Scaled, schedule.StepLR):
        pass

    class ScaledCosine(Scaled, schedule.CosineDecayLR):
        pass

    try:
        AsPrinted(optimizer())
        printed = "runs"
    except NotImplementedError:
        printed = "NotImplementedError"
    native = WithGetLr(optimizer())
    found = {
        "printed": printed,
        "logged": native.get_last_lr(),
        "applied": [g["lr"] for g in native.optimizer.param_groups],
    }
    for name, make in {"step": lambda o: ScaledStep(o, step_size=7, gamma=0.1),
                       "cosine": lambda o: ScaledCosine(o, decay_steps=24)}.items():  # fmt: skip
        scheduler, rows = make(optimizer()), []
        for _ in range(24):
            rows.append([g["lr"] for g in scheduler.optimizer.param_groups])
            scheduler.step()
        found[name] = rows
    run = Ours("oneflow", "eager", VIT, vit_plan(ScheduleSpec("step", gamma=0.1, every=7)))
    found["ours"] = [run.step(step) for step in range(9)]
    found["layers"] = [g.name for g in run.plan.groups]
    return found


CASES = {name.removeprefix("case_"): function for name, function in list(globals().items()) if name.startswith("case_")}


# --- the tests ------------------------------------------------------------------------------------------------------


@cache
def measured(case):
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    for attempt in range(5):
        done = subprocess.run([sys.executable, __file__, case], capture_output=True, text=True, env=environment)
        if not (case.startswith("graph") and done.returncode < 0):
            break
        print(f"{case} died of {signal.Signals(-done.returncode).name}: started again ({attempt + 2} of 5)")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_each_group_s_own_decay_every_10_batches():
    """Seed 000, eager: lr *= lr_scale per group. As printed it decays for the first time after batch 0, since
    0 % 10 == 0: nine steps earlier than "every 10 batches". Mended, its lrs and its weights are ours."""
    seen = measured("eager_decay")
    wanted = [[1e-3 * 0.9 ** (s // 10), 1e-5 * 0.7 ** (s // 10)] for s in range(STEPS)]
    np.testing.assert_allclose(seen["ours"], wanted, rtol=1e-9)
    np.testing.assert_allclose(seen["mended"], seen["ours"], rtol=1e-9)
    np.testing.assert_allclose(seen["printed"][: STEPS - 9], seen["ours"][9:], rtol=1e-9)
    assert seen["difference"] <= 1e-6


def test_the_graph_multiplies_lr_by_lr_scale():
    """Seed 000, Graph: with lr_scale 0.9 and 0.7 every parameter goes 0.9 and 0.7 as far; ours in the same mode too."""
    seen = measured("graph_lr_scale")
    for name, ratio in seen["native"].items():
        wanted = 0.9 if name.startswith("features") else 0.7
        assert ratio == pytest.approx(wanted, rel=2e-3) and seen["ours"][name] == pytest.approx(wanted, rel=2e-3), name


def test_empty_group_and_mistyped_head_are_named():
    """Seed 000: its group of adaptive_avg_pool2d holds no parameter, and `model.classifer = ...` adds a module that
    nobody calls, so that the old head is trained: both names are errors here."""
    with pytest.raises(UserError, match=r"grouping\.groups\.pool\.match: 'adaptive_avg_pool2d' matches no parameter"):
        sgd_plan({"pool": GroupSpec(["adaptive_avg_pool2d"]), "rest": GroupSpec(["*"])})
    with pytest.raises(UserError, match=r"'classifer' matches no parameter of the model; did you mean 'classifier'\?"):
        sgd_plan({"head": GroupSpec(["classifer"]), "rest": GroupSpec(["*"])})


def test_the_graph_applies_layer_scales_under_adam():
    """Seed 001, Graph: Adam's first step is lr * lr_scale long, layer by layer."""
    seen = measured("graph_adam")
    assert len({scale for _, scale in seen.values()}) == 4
    for name, (moved, scale) in seen.items():
        assert moved == pytest.approx(1e-3 * scale, rel=1e-3), name


def test_layer_scale_lr():
    """Seed 001, eager: the class as printed lacks get_lr and raises; with it, it logs the lr without the scale that it
    applies. Over StepLR and CosineDecayLR the mended class applies our plan's lrs, and ours logs what it applies."""
    seen = measured("layer_scale_lr")
    assert seen["printed"] == "NotImplementedError"
    assert seen["logged"] == [1e-3] * 4
    np.testing.assert_allclose(seen["applied"], [1e-3 * s for s in VIT_SCALES], rtol=1e-9)
    for name, spec in (("step", ScheduleSpec("step", gamma=0.1, every=7)), ("cosine", ScheduleSpec("cosine"))):
        plan = vit_plan(spec)
        columns = [next(i for i, g in enumerate(plan.groups) if g.name == f"layer_{k}") for k in range(4)]
        np.testing.assert_allclose(seen[name], plan.table()[:, columns], rtol=1e-6, atol=1e-12)
    plan = vit_plan(ScheduleSpec("step", gamma=0.1, every=7))
    np.testing.assert_allclose(seen["ours"], plan.table()[:9], rtol=1e-9)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    print(json.dumps(CASES[sys.argv[1]]()), flush=True)
    os._exit(0)  # a process with Graphs may hang in Python's own exit
