"""What the tests of small encoders share: random weights that matter, and what observers are shown."""

import torch
from torch import nn


def shaken(model, seed, std=1.5):
    """Weights large enough that attention is not flat, biases that matter, norms about the identity."""
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
    """An observer that writes down how many tokens it is shown, and importances of how many."""

    def __init__(self):
        self.seen = []

    def heads(self, key, mixed, importance):
        assert len(mixed) == len(importance)
        self.seen.append(("heads", key, mixed.shape[1], importance.shape[1]))

    def channels(self, key, hidden, importance):
        assert len(hidden) == len(importance)
        self.seen.append(("channels", key, hidden.shape[1], importance.shape[1]))
