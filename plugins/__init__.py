"""One folder per framework; each implements layerwise_lr.framework.Framework."""
