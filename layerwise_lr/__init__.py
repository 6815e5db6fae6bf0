"""Layer-wise learning rates: planned once, applied identically by every framework, and proved."""

__version__ = "0.1.0"
