#!/usr/bin/env bash
# torch 2.13.0, activation checkpointing: a layer that draws from a generator of its own gets a wrong gradient, silently.
#
# Valid code: torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False), preserve_rng_state=True as by default, of
#   f(x) = x * torch.rand(x.shape, generator=g) with a torch.Generator, as one writes reproducible noise or dropout.
# What one would guess: gradients equal to those without checkpointing, or an error.
# Expected: the gradient is the mask that the output was made with, as it is for draws from the global stream.
# Seen: only the global streams are put back for the second forward pass. The generator goes on, the second pass draws
#   another mask, and the gradient is that mask: of the right size, unrelated to the output. No warning with either value
#   of use_reentrant; the determinism check compares shapes and types only.
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
from torch.utils.checkpoint import checkpoint

print("torch", torch.__version__)
own = torch.Generator().manual_seed(0)


def gradient_is_the_mask(generator, reentrant):
    x = torch.ones(1000, requires_grad=True)
    y = checkpoint(lambda x: x * torch.rand(x.shape, generator=generator), x, use_reentrant=reentrant)
    y.sum().backward()
    return torch.equal(x.grad, y.detach())


found = {(name, r): gradient_is_the_mask(g, r) for name, g in (("global", None), ("own", own)) for r in (False, True)}
for (name, reentrant), right in found.items():
    print("stream", name, "use_reentrant", reentrant, "gradient right:", right)
as_recorded = all(right == (name == "global") for (name, _), right in found.items())
print("as recorded" if as_recorded else "CHANGED: not what was recorded for torch 2.13.0")
sys.exit(not as_recorded)
CODE
