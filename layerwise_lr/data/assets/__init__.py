"""Small files shipped with the package: digits.npz and lenet_mnist.npz; see README.md beside them."""
