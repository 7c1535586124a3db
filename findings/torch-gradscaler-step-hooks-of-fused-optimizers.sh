#!/usr/bin/env bash
# torch 2.13.0, GradScaler with fused=True: step hooks see gradients that are still scaled, also of updates that are skipped.
#
# Valid code: torch.amp.GradScaler("cpu", init_scale=1024) around torch.optim.SGD with a hook from register_step_pre_hook.
# What one would guess: a hook of the optimizer's step sees the gradients that the update uses, and runs for updates alone.
# Expected: gradient 2.0 in the hook, and no call of it where the scaler skips the update for an infinite gradient.
# Seen: true with fused=False. With fused=True the scaler leaves unscaling and skipping to the fused kernel, inside the
#   step: the hook sees 2048.0, and for an infinite gradient hook and post-hook both run though no weight moves. Noise,
#   clipping or logging in a step hook is wrong by the factor of the scale, without an error.
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

print("torch", torch.__version__)


def hooked(fused, factor):
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5, fused=fused)
    before, after = [], []
    optimizer.register_step_pre_hook(lambda *_: before.append(float(weight.grad)))
    optimizer.register_step_post_hook(lambda *_: after.append(float(weight.detach())))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((weight * factor).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    return before, after


found = {fused: [hooked(fused, factor) for factor in (2.0, float("inf"))] for fused in (False, True)}
for fused, seen in found.items():
    print("fused", fused, "| gradient 2: hook saw", seen[0][0], "| infinite gradient: hook saw", *seen[1])
as_recorded = found[False] == [([2.0], [0.0]), ([], [])] and found[True] == [([2048.0], [0.0]), ([float("inf")], [1.0])]
print("as recorded" if as_recorded else "CHANGED: not what was recorded for torch 2.13.0")
sys.exit(not as_recorded)
CODE
