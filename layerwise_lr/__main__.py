"""`python -m layerwise_lr`: the same as the command layerwise-lr."""

from .cli import main

main()
