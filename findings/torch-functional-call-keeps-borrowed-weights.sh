#!/usr/bin/env bash
# torch 2.13.0, functional_call: a layer that stands in two places keeps the weights that were lent to it.
#
# Valid code: torch.func.functional_call(net, dict of net.named_parameters(), x) of nn.Sequential(layer, nn.ReLU(), layer),
#   tie_weights as it is by default, which is documented to reflect tied values.
# What one would guess: the output with the values given, and the network afterwards as before.
# Expected: layer.weight is the network's own parameter again.
# Seen: layer.weight is the tensor that was lent. The tying fills the slot of that layer under both of its names, remembers
#   the lent tensor as what was there before, and puts that back. Training the network afterwards no longer reaches the
#   layer, and there is no error. Tied weights of two different layers are put back rightly.
# Exit status: 0 if seen again, 1 if the behaviour has changed.
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-}  # an interpreter that has torch 2.13.0 already, to save the installation
if [ -z "$python" ]; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
  python="$folder/venv/bin/python"
fi
cd "$folder"
"$python" - <<'CODE'
import sys

import torch
from torch import nn
from torch.func import functional_call

print("torch", torch.__version__)


def own_again(net, layer):
    before = layer.weight
    lent = {name: torch.zeros_like(value) for name, value in net.named_parameters()}
    functional_call(net, lent, (torch.ones(1, 2),))
    return layer.weight is before


layer = nn.Linear(2, 2)
twice = own_again(nn.Sequential(layer, nn.ReLU(), layer), layer)
one, two = nn.Linear(2, 2), nn.Linear(2, 2)
two.weight = one.weight
tied = own_again(nn.Sequential(one, nn.ReLU(), two), one)
print("own weight again: layer in two places", twice, "two layers with one weight", tied)
as_recorded = not twice and tied
print("as recorded" if as_recorded else "CHANGED: not what was recorded for torch 2.13.0")
sys.exit(not as_recorded)
CODE
