"""Each kind of declared layer as a torch module, every number explicit, and the model made of them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from layerwise_lr.framework import Layer, Tree, fold, join


class Attention(nn.Module):
    """Multi-head self-attention, written out: the fused CPU kernel is slower for short sequences."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.heads, self.width = num_heads, dim // num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        weights = ((q * self.width**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, t, d))


class Tokens(nn.Module):
    """Prepend the class token, add the position embedding."""

    def __init__(self, num_patches: int, dim: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches + 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T + 1, D]. (len(x) would be a number for torch.export, B stays any.)"""
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed


class DropPath(nn.Module):
    """Drop whole samples with probability p in training, scale the others up."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that begins with B."""
        if not self.training:
            return x
        kept = torch.ones((x.shape[0], *(1,) * (x.ndim - 1)), dtype=x.dtype, device=x.device)
        return x * nn.functional.dropout(kept, self.p, self.training)


class LayerScale(nn.Module):
    """x * gamma; the declared `init` concerns the initial value only."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape ending in D."""
        return x * self.gamma


def _conv(
    in_channels: int, out_channels: int, kernel: int, stride: int, padding: int, groups: int, bias: bool
) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias)


def _batchnorm(features: int, eps: float, momentum: float) -> nn.Module:
    norm = nn.BatchNorm2d(features, eps, momentum)
    norm.num_batches_tracked = None  # a buffer that no other framework has
    return norm


KINDS: Mapping[str, Callable[..., Callable[[Tensor], Tensor]]] = {
    "conv": _conv,
    "linear": lambda in_features, out_features, std=None: nn.Linear(in_features, out_features),  # std: only initial
    "batchnorm": _batchnorm,
    "layernorm": lambda features, eps: nn.LayerNorm(features, eps),
    "embedding": lambda num_embeddings, dim: nn.Embedding(num_embeddings, dim),
    "attention": Attention,
    "tokens": Tokens,
    "layerscale": LayerScale,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": lambda: nn.GELU(approximate="none"),
    "maxpool": lambda kernel, stride, padding: nn.MaxPool2d(kernel, stride, padding),
    "avgpool": lambda kernel, stride: nn.AvgPool2d(kernel, stride),
    "globalpool": lambda: lambda x: x.mean((2, 3)),
    "flatten": nn.Flatten,
    "dropout": lambda p: nn.Dropout(p),
    "drop_path": DropPath,
    "to_tokens": lambda: lambda x: x.flatten(2).transpose(1, 2),
    "first_token": lambda: lambda x: x[:, 0],
    "mean_tokens": lambda: lambda x: x[:, 1:].mean(1),
}


class Model(nn.Module):
    """A whole declared tree."""

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.names: list[str] = []
        self.layers = nn.ModuleList()
        self.function = fold(tree, self._layer)

    def _layer(self, name: str, layer: Layer) -> Callable[[Tensor], Tensor]:
        part = KINDS[layer.kind](**layer.options)
        if isinstance(part, nn.Module):
            self.names.append(name)
            self.layers.append(part)
        return part

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, C, H, W] or int64 [B, T] -> logits [B, classes]."""
        return self.function(x)

    def arrays(self) -> dict[str, Tensor]:
        """Parameters and buffers by canonical name; the tensors themselves."""
        return {
            join(name, local): tensor
            for name, layer in zip(self.names, self.layers, strict=True)
            for local, tensor in layer.state_dict(keep_vars=True).items()
        }

    def rest(self, frozen: frozenset[str]) -> None:
        """These batchnorm layers run on their running statistics in the next training step, the others train."""
        for name, layer in zip(self.names, self.layers, strict=True):
            if isinstance(layer, nn.BatchNorm2d):
                layer.train(name not in frozen)
