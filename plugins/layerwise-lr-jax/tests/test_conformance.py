"""pytest --framework jax"""

from layerwise_lr.framework.conformance.suite import test_promise

__all__ = ["test_promise"]
