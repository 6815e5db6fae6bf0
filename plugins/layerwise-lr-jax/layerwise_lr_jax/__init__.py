"""JAX for layerwise-lr: layers, optimizers, and the framework that steps them, compiled."""
