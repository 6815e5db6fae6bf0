"""MindSpore: PyNative, and the whole step compiled."""
