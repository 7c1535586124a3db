#!/usr/bin/env bash
# torch 2.13.0, float16: normalize and cosine_similarity of a row of zeros are NaN, in other precisions 0.
#
# Valid code: F.normalize(x) and F.cosine_similarity(x, y) at their defaults, x with a row of zeros (padding, dead units).
# What one would guess: zeros, as the eps of 1e-12 and 1e-8 is there for, in every precision.
# Expected: 0 in float64, float32, bfloat16 and float16.
# Seen: both eps are 0 in float16, whose least positive number is 6e-8; what is computed is 0 / 0 = NaN. layer_norm of a
#   constant row in float16 is 0 all the same, as its eps is added in float32.
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
from torch.nn import functional as F

print("torch", torch.__version__)
as_recorded = True
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    zeros, ones = torch.zeros(1, 4, dtype=dtype), torch.ones(1, 4, dtype=dtype)
    finite = [
        bool(found.isfinite().all())
        for found in (F.normalize(zeros), F.cosine_similarity(zeros, ones), F.layer_norm(ones, (4,)))
    ]
    print(dtype, "normalize, cosine_similarity, layer_norm finite:", *finite)
    as_recorded &= finite == [dtype != torch.float16, dtype != torch.float16, True]
print("as recorded" if as_recorded else "CHANGED: not what was recorded for torch 2.13.0")
sys.exit(not as_recorded)
CODE
