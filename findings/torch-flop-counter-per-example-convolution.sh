#!/usr/bin/env bash
# torch 2.13.0, FlopCounterMode: per-example gradients of an ordinary convolution count batch-size times over.
#
# Valid code: torch.func.vmap(torch.func.grad(loss)) of a convolution without groups, the documented way to per-example
#   gradients.
# What one would guess: as many operations as the ordinary backward pass over the batch (the sums over examples are
#   all that is saved).
# Expected: backward = forward (the weights' gradient alone; the input needs none), whatever the number of examples.
# Seen: n examples count n times the right number: vmap makes one convolution of n groups of it, and the formula for the
#   backward pass multiplies channels as if there were no groups (the factor 1 + groups that grouped convolutions are
#   known to get, here for a network that has none). With 32 examples the step is said to be 16.5 times dearer. The
#   forward pass is right, so is a linear layer, and so is the ordinary backward pass.
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
import warnings

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

warnings.simplefilter("ignore")
print("torch", torch.__version__)


def count(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


as_recorded = True
for n in (2, 8, 32):
    layer, x = nn.Conv1d(4, 8, 3), torch.randn(n, 4, 10)
    weights = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(weights, row):
        return functional_call(layer, weights, (row[None],)).sum()

    forward = 2 * (n * 8) * 8 * (4 * 3)  # positions, output channels, taps
    seen = count(lambda: vmap(grad(loss), (None, 0))(weights, x))
    usual = count(lambda: layer(x).sum().backward())
    print(f"{n} examples: by hand {2 * forward}, ordinary backward pass {usual}, per example {seen}")
    as_recorded &= usual == 2 * forward and seen == forward + n * forward
print("as recorded" if as_recorded else "CHANGED: not what was recorded for torch 2.13.0")
sys.exit(not as_recorded)
CODE
