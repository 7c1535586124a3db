#!/usr/bin/env bash
# torch 2.13.0, Optimizer.load_state_dict: the loaded optimizer goes on in the buffers of the one that was read.
#
# Valid code: second.load_state_dict(first.state_dict()) in one process, for weights of equal shape and type, as one forks
#   a run, or compares two ways to go on from one state. Module.load_state_dict copies values.
# What one would guess: the second optimizer has momentum and moments of its own.
# Expected: a step of the second leaves the first one's state as it is.
# Seen: the tensors are the same objects; a step of the second moves the first one's momentum_buffer, exp_avg, exp_avg_sq
#   and even its step counter, so that the first continues wrongly, without an error. Saving to a file in between helps.
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


def moved(kind, **settings):
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    first, second = (kind([weight], lr=0.1, **settings) for weight in weights)
    weights[0].sum().backward()
    first.step()
    second.load_state_dict(first.state_dict())
    own = first.state[weights[0]]
    before = {name: value.clone() for name, value in own.items()}
    (3 * weights[1]).sum().backward()
    second.step()
    return sorted(name for name, value in own.items() if not torch.equal(value, before[name]))


found = {
    "SGD": moved(torch.optim.SGD, momentum=0.9),
    "AdamW": moved(torch.optim.AdamW),
    "RMSprop": moved(torch.optim.RMSprop),
}
for name, names in found.items():
    print(name, "state of the first that a step of the second moved:", names)
as_recorded = found == {
    "SGD": ["momentum_buffer"],
    "AdamW": ["exp_avg", "exp_avg_sq", "step"],
    "RMSprop": ["square_avg", "step"],
}
print("as recorded" if as_recorded else "CHANGED: not what was recorded for torch 2.13.0")
sys.exit(not as_recorded)
CODE
