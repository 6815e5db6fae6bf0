"""`python -m layerwise_lr`: the same as the console script."""

from .cli import main

main()
