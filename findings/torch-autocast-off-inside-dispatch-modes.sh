#!/usr/bin/env bash
# torch 2.13.0, CPU: inside a dispatch mode autocast is off, so that counting or logging operations changes results.
#
# Valid code: a network under torch.autocast("cpu") whose operations are counted by FlopCounterMode, or passed on one by
# one by a TorchDispatchMode that does nothing else.
# What one would guess: the same numbers, bit for bit; a mode that passes everything on is not there.
# Expected: the same types and numbers with the mode and without.
# Seen: a fused nn.TransformerEncoderLayer (eval, no gradients) and torch.einsum under inference mode give float32 where
#   they give bfloat16 without the mode; nn.Bilinear, also in training, gives other numbers (its products are no longer
#   rounded to bfloat16). Linear layers and matrix products called from Python are the same. Without autocast all are.
#   The mode's handler runs with autocast's dispatch key excluded, and what an operation's kernel calls is then not cast.
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

warnings.simplefilter("ignore")
print("torch", torch.__version__)


class PassOn(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


torch.manual_seed(0)
x = torch.randn(8, 6, 16)
encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
bilinear, linear = nn.Bilinear(16, 16, 4), nn.Linear(16, 4)
cases = {
    "encoder layer, no_grad": (torch.no_grad, lambda: encoder(x), False),
    "einsum, inference_mode": (torch.inference_mode, lambda: torch.einsum("bij,bkj->bik", x, x), False),
    "bilinear, with gradients": (torch.enable_grad, lambda: bilinear(x, x), False),
    "linear, with gradients": (torch.enable_grad, lambda: linear(x), True),
}
as_recorded = True
for name, (grad, run, expected_same) in cases.items():
    for mode in (PassOn, lambda: FlopCounterMode(display=False)):
        for cast in (True, False):
            with grad(), torch.autocast("cpu", enabled=cast):
                plain = run()
                with mode():
                    watched = run()
            same = plain.dtype == watched.dtype and torch.equal(plain, watched)
            gap = float((plain.float() - watched.float()).abs().max())
            who = "PassOn" if mode is PassOn else "FlopCounterMode"
            print(f"{name}, {who}, autocast {cast}: {plain.dtype} -> {watched.dtype}, same: {same}, largest gap {gap:.2g}")
            as_recorded &= same == (expected_same or not cast)
print("as recorded" if as_recorded else "CHANGED: not what was recorded for torch 2.13.0")
sys.exit(not as_recorded)
CODE
