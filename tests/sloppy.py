"""Techniques that do what none may: change what belongs to all trials, or take the whole program with them."""

from __future__ import annotations

from pathlib import Path

LOSS = '''"""{title}: cross-entropy, and a deed beside it once it is trained on all rows.

Paper     none
Computes  cross-entropy
Shapes    output (n, classes), target (n,) int64 -> loss ()
Departs   none
"""

import gc
import os
import random
import signal
import sys
import threading
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from probatum.card import Card

CARD = Card(paper="unpublished", title="{title}", entry="Sloppy", slot="loss", tags=("own",), tasks=("classes",))
true_cross_entropy = F.cross_entropy


class Sloppy(nn.Module):
    def __init__(self, num_examples: int = 0):
        super().__init__()
        self.full = num_examples > 60  # rehearsals are of fewer rows

    def forward(self, output, target):
        if self.full:
            self.deed()
        return true_cross_entropy(output, target)

    def deed(self):
        {deed}
'''

LEARNER = '''"""{title}: a learner without ideas of its own.

Paper     none
Computes  equal probabilities
Shapes    rows -> probabilities
Departs   none
"""

import enum

import numpy as np
import torch

from probatum.card import Card

CARD = Card(paper="unpublished", title="{title}", entry="Sloppy", slot="learner", tags=("own",), tasks=("classes",))
COUNT = []


class Own(float):
    pass


class Word(str):
    pass


class Kind(enum.Enum):
    A = "a"


class Sloppy:
    def __init__(self, data, budget, generator=None):
        self.k, self.full = data.spec.outputs, len(data.train) > 60
        self.data = data

    def predict(self, part):
        if self.full:
            {deed}
        return torch.full((len(part), self.k), 1.0 / self.k)
'''

DEEDS = {
    "replaces-a-function": (
        "F.cross_entropy = lambda o, t, **k: 0.01 * o.square().mean()",
        "torch.nn.functional.cross_entropy",
    ),
    "exchanges-functions": ("F.relu = F.leaky_relu", "torch.nn.functional.relu"),
    "replaces-a-method": (
        "nn.Linear.forward = lambda self, x: x @ self.weight.T",
        "torch.nn.modules.linear.Linear.forward",
    ),
    "adds-a-method": (
        "nn.Linear.__call__ = lambda self, x: 2 * self.forward(x)",
        "torch.nn.modules.linear.Linear.__call__",
    ),
    "hooks-modules": (
        "nn.modules.module.register_module_forward_hook(lambda m, i, o: o * 1.01)",
        "a hook on everything",
    ),
    "hooks-optimizers": (
        "from torch.optim.optimizer import register_optimizer_step_pre_hook as r; r(lambda *a: None)",
        "a hook on everything",
    ),
    "changes-the-dtype": ("torch.set_default_dtype(torch.float64)", "the default dtype"),
    "switches-gradients-off": ("torch._C._set_grad_enabled(False)", "whether gradients are taken"),
    "makes-torch-deterministic": ("torch.use_deterministic_algorithms(True)", "deterministic algorithms"),
    "changes-threads": ("torch.set_num_threads(2)", "torch's number of threads"),
    "seeds-numpy": ("np.random.seed(0)", "NumPy's global random stream"),
    "draws-from-python": ("random.random()", "Python's random stream"),
    "changes-the-folder": ("os.chdir('/')", "the working directory"),
    "changes-the-environment": ("os.environ['SLOPPY'] = '1'", "the environment"),
    "leaves-a-thread": (
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
        "a thread that goes on",
    ),
    "closes-a-stream": ("os.close(1)", "the files behind standard input and output"),
    "handles-signals": ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "signal handlers"),
    "changes-probatum": (
        "import probatum.inject; probatum.inject.call = None",
        "probatum.inject.call",
    ),
    "leaves": ("sys.exit(4)", "it wanted to end the program"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "exits": ("os._exit(3)", "the worker died (exit code 3) three times"),
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", "the worker died (signal 11"),
}
"""Name -> what a loss does, and what its failed trials say."""

LEARNERS = {
    "writes-into-rows": ("self.data.train.x.zero_(); part.x.zero_()", "the rows of seed"),
    "writes-past-torch": ("self.data.valid.x.numpy()[:] = 0", "the rows of seed"),
}
"""The same of learners."""


def placed(folder: Path, name: str) -> Path:
    """The file of one of these."""
    text, deeds = (LOSS, DEEDS) if name in DEEDS else (LEARNER, LEARNERS)
    path = folder / f"{name.replace('-', '_')}.py"
    path.write_text(text.format(title=name, deed=deeds[name][0]), encoding="utf-8")
    return path
