#!/usr/bin/env bash
# torch 2.13.0, CPU: constructing any optimizer imports torch._dynamo, eager code or not.
#
# Valid code: torch.optim.SGD over one parameter, in a program that never calls torch.compile.
# What one would guess: a small Python object; the compiler is imported by whoever compiles.
# Expected: no module of torch._dynamo after the constructor, and hardly any new module.
# Seen: the constructor alone imports torch._dynamo and with it several hundred modules (sympy among them), some 70 MiB of
#   memory and a second of processor time, a third on top of `import torch` itself. The very same update by hand
#   (p.data.add_(p.grad, alpha=-lr)) imports nothing. So a command that trains for one step pays for the compiler.
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

print("torch", torch.__version__)


def compiler():
    return sum(name.startswith(("torch._dynamo", "torch._inductor", "sympy")) for name in sys.modules)


p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
p.data.add_(p.grad, alpha=-0.1)
before, others = compiler(), len(sys.modules)
torch.optim.SGD([p], lr=0.1)
print(f"by hand: {before} modules of the compiler; after SGD(...): {compiler()}, {len(sys.modules) - others} new modules in all")
as_recorded = before == 0 and compiler() > 100
print("as recorded" if as_recorded else "CHANGED: not what was recorded for torch 2.13.0")
sys.exit(not as_recorded)
CODE
