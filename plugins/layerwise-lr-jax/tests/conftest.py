"""The kit's tests, of layerwise-lr."""

pytest_plugins = ["layerwise_lr.framework.conformance.suite"]
