"""NumPy, with every backward pass written by hand: the slow, clear twin that the others are checked against."""
