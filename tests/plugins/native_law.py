"""The law by hand, for the small net that each test_FRAMEWORK_library.py writes in its framework's own words: declared
in another order than executed (head, bn, blocks, token, stem), three blocks in a list."""

import math

import numpy as np

TOP, STEPS = 4, 50
DEPTH = {"token": 0, "stem": 0, "blocks.0": 1, "blocks.1": 2, "blocks.2": 3, "bn": 4, "head": 4}
PLAN = {"lr": 0.1, "layer_decay": 0.5, "schedule": "cosine", "warmup": 0.1, "steps": STEPS}


def depth(name):
    return next(d for start, d in DEPTH.items() if name.startswith(start))


def law(step, name, lr=0.1, decay=0.5, warmup=5):
    """Linear warm-up from 0, then half a cosine to 0."""
    rises = step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup)))
    return lr * decay ** (TOP - depth(name)) * rises


def check_move(name, step, before, after, direction):
    """before - after = law * direction, as exactly as float32 weights show it."""
    moved, want = np.float64(before) - after, law(step, name) * np.float64(direction)
    rounding = 2e-7 * np.abs(before).max() + 5e-6 * np.abs(want).max() + 1e-7
    np.testing.assert_allclose(moved, want, rtol=1e-5, atol=rounding, err_msg=f"{name} at step {step}")


def constants(shapes):
    """A gradient for each parameter, the same at each step: 0.5 to 1.5 and either sign."""
    rng = np.random.RandomState(0)
    return {
        name: (rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def spared(name):
    """What has no weight decay: biases, norms and the token."""
    return not name.endswith("weight") or ".norm." in name or name.startswith("bn.")
