"""An audit: a network whose training table had one column that told the class; in the rows it meets now, it does not.

Run `python examples/audit.py [--out audit]`; needs no files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from sklearn.datasets import load_breast_cancer
from torch import nn

import probatum
from probatum.cli.audit_view import print_report

MEASUREMENTS = 10
"""Columns used of thirty, so that the honest part of the task is not too easy."""


def table(aligned: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the patients: ten measurements, and a column that is the class's sign in a share of `aligned` rows."""
    found = load_breast_cancer()
    x = torch.from_numpy(found.data[:, :MEASUREMENTS]).float()
    x, y = (x - x.mean(dim=0)) / x.std(dim=0), torch.from_numpy(found.target)
    draw = torch.Generator().manual_seed(seed)
    half = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).tensor_split(2)[seed % 2]
    told = torch.where(torch.rand(len(half), generator=draw) < aligned, y[half], 1 - y[half])
    return torch.cat([x[half], (2.0 * told - 1)[:, None]], dim=1), y[half]


def trained(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """A plain network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("probatum-runs/audit"))
    chosen = parser.parse_args()
    before, now = table(aligned=0.97, seed=0), table(aligned=0.5, seed=1)
    report = probatum.audit(trained(*before), now, reference=before)
    print_report(Console(), report)
    print(f"\nreport: {report.write(chosen.out)}")
