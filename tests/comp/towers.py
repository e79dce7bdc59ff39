"""Shared by the tests of small encoders: random weights with an effect, and recording observers."""

import torch
from torch import nn


def shaken(model, seed, std=1.5):
    """Set weights large enough that attention is not flat, effective biases, norms about the identity."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std * parameter[0].numel() ** -0.5)
        else:
            # layer_norm1, pre_layrnorm, LayerNorm: as transformers spells them
            norm = "norm" in name.lower() and name.endswith("weight")
            nn.init.normal_(parameter, mean=float(norm), std=0.1)
    return model.eval()


class Observed:
    """An observer that records the number of tokens, and the number of importances."""

    def __init__(self):
        self.seen = []

    def heads(self, key, mixed, importance):
        assert len(mixed) == len(importance)
        self.seen.append(("heads", key, mixed.shape[1], importance.shape[1]))

    def channels(self, key, hidden, importance):
        assert len(hidden) == len(importance)
        self.seen.append(("channels", key, hidden.shape[1], importance.shape[1]))
