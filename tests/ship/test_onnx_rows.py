"""Exports are compared on rows that tell, not on usual ones alone."""

from __future__ import annotations

import torch
from torch import nn

from probatum.ship.onnx import _difference, telling_rows


def test_tokens_come_long_short_single_and_empty() -> None:
    x = torch.tensor([[4, 5, 0, 0], [4, 5, 6, 7], [9, 0, 0, 0]])
    rows = telling_rows(x)
    assert rows["the longest row"].tolist() == [[4, 5, 6, 7]]
    assert rows["the shortest row"].tolist() == [[9, 0, 0, 0]]
    assert rows["rows of one token"].tolist() == [[4, 0, 0, 0], [4, 0, 0, 0]]
    assert not rows["rows of padding alone"].any()


def test_masked_series_come_long_short_and_empty() -> None:
    x = torch.randn(3, 2, 5)
    x[:, -1] = torch.tensor([[1.0, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    rows = telling_rows(x, masked=True)
    assert torch.equal(rows["the longest row"], x[1:2])
    assert torch.equal(rows["the shortest row"], x[:1])
    assert rows["rows of one step"][:, -1].sum(dim=1).tolist() == [1.0, 1.0]
    assert not rows["rows of padding alone"].any()


def test_numbers_come_at_their_extremes() -> None:
    x = torch.tensor([[1.0, -5.0], [3.0, 2.0]])
    assert telling_rows(x)["the smallest and largest values"].tolist() == [[1.0, -5.0], [3.0, 2.0]]


class _Session:
    """A runtime that is wrong where rows are empty, as exported attention is."""

    def run(self, names: None, given: dict[str, object]) -> list[object]:
        x = torch.as_tensor(given["x"])
        wrong = torch.where((x == 0).all(dim=1, keepdim=True), 7.0, 0.0)
        return [(x.float().sum(dim=1, keepdim=True) + wrong).numpy()]


class _Sum(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().sum(dim=1, keepdim=True)


def test_an_export_that_is_wrong_on_empty_rows_alone_is_found() -> None:
    rows = telling_rows(torch.tensor([[4, 5, 0], [4, 5, 6]]))
    gaps = {what: _difference(_Sum(), _Session(), part) for what, part in rows.items()}
    assert gaps["usual rows"] == 0
    assert gaps["rows of padding alone"] == 7


def test_nan_on_one_side_is_a_difference() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 1), torch.nan)

    assert _difference(Broken(), _Session(), torch.tensor([[1, 2]])) == torch.inf
