"""The contract suite of kinds of data: all kinds pass it, and each of its checks fails where it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from probatum.checks.kind_subject import KindSubject
from probatum.checks.run import check, kind_checks, kind_meant, run_check
from probatum.errors import InputError
from probatum.rooms import find
from probatum.rooms.kind import NamedSet, Toy, kind

NAME = "edgelists"
CASES = [(name, check) for name in find.names("kind") for check in kind_checks()]
SUBJECTS = {name: KindSubject(name) for name in find.names("kind")}


@pytest.mark.parametrize(("name", "check"), CASES)
def test_every_kind_passes(name: str, check: str) -> None:
    result = run_check(SUBJECTS[name], check)
    assert result.status != "failed", f"{name}: {result.detail}"


def test_most_checks_apply_to_every_kind_of_rows() -> None:
    for name, subject in SUBJECTS.items():
        results = [run_check(subject, check) for check in ("copies_stay_on_one_side", "new_rows_are_encoded")]
        assert {result.status for result in results} == {"passed" if subject.kind.ROWS else "not applicable"}, name


@pytest.fixture(scope="module")
def its() -> Iterator[SimpleNamespace]:
    """A sound kind from outside, for breaking: its modules by name, and the kind."""
    before = dict(find._added)
    find.add(Path(__file__).parents[1] / "rooms" / NAME)
    room = find.room("kind", NAME)
    parts = ("kind", "encode", "network", "toy", "corruptions", "worlds", "options")
    yield SimpleNamespace(**{part: find.part(room, part) for part in parts}, own=kind(NAME))
    find._added.clear()
    find._added.update(before)


Plant = Callable[[pytest.MonkeyPatch, Any], None]
PLANTS: list[tuple[str, str, Plant]] = []


def plant(check: str, told: str) -> Callable[[Plant], Plant]:
    """A bug that a check must find, and what it must say of it."""

    def keep(bug: Plant) -> Plant:
        PLANTS.append((check, told, bug))
        return bug

    return keep


@plant("says_what_it_is", "tasks are")
def unknown_task(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(type(its.own), "TASKS", ("classes", "guessing"))


@plant("says_what_it_is", "have modality table and task classes, too")
def modality_of_another_kind(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(type(its.own), "MODALITY", "table")


@plant("says_what_it_is", "ABOUT: say it in one line")
def nothing_said(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(type(its.own), "ABOUT", "")


@plant("says_what_it_is", "does not say what nodes means")
def undocumented_option(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(its.options.Options, "__doc__", "Options.")


@plant("says_what_it_is", "image data ask")
def option_of_another_kind(patch: pytest.MonkeyPatch, its: Any) -> None:
    @dataclass(frozen=True)
    class Options:
        """Options.

        Attributes:
            size: of something.
        """

        size: int = 1

    patch.setattr(type(its.own), "options", lambda self: Options)


@plant("says_what_it_is", "have a set called 'iris', too")
def name_of_another_set(patch: pytest.MonkeyPatch, its: Any) -> None:
    sets = its.own.sets()
    patch.setattr(type(its.own), "sets", lambda self: {**sets, "iris": sets["toy-edgelists"]})


@plant("example_opens", "sets() has toy-edgelists")
def no_such_example(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(type(its.own), "EXAMPLE", "toy-graphs")


@plant("example_opens", "another one each time")
def example_drawn_anew(patch: pytest.MonkeyPatch, its: Any) -> None:
    def opened(reading: Any) -> Any:
        return its.kind.drawn(n=150 + int(np.random.default_rng().integers(2**30)) % 100)

    patch.setattr(type(its.own), "sets", lambda self: {"toy-edgelists": NamedSet(opened, embedded=True)})


@plant("other_data_are_left_alone", "data (cbf) for its own")
def takes_everything(patch: pytest.MonkeyPatch, its: Any) -> None:
    from probatum.rooms import kind as rooms

    patch.setattr(type(its.own), "ORDER", 1)
    patch.setattr(type(its.own), "opens", lambda self, door: True)
    rooms._known.cache_clear()


@plant("own_rows_are_recognised", "encoded to another x")
def arrays_turned(patch: pytest.MonkeyPatch, its: Any) -> None:
    whole = its.kind.raw_graphs
    patch.setattr(its.kind, "raw_graphs", lambda edges: whole(np.asarray(edges)[:, ::-1, ::-1]))


@plant("splits_are_the_same_twice", "two different splits")
def fitted_by_chance(patch: pytest.MonkeyPatch, its: Any) -> None:
    encoder = its.encode.GraphEncoder
    patch.setattr(type(its.own), "fit", lambda self, raw: encoder(8, float(np.random.default_rng().random())))


@plant("copies_stay_on_one_side", "in two parts of the split")
def keys_that_differ(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(its.encode.RawGraphs, "row_keys", lambda self: [str(i).encode() for i in range(len(self))])


@plant("copies_stay_on_one_side", "but row_keys tells")
def keys_that_agree(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(its.encode.RawGraphs, "row_keys", lambda self: [row[:2].tobytes() for row in self.edges])


@plant("fingerprints_tell_rows_apart", "digest does not tell")
def digest_of_the_shape(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(its.encode.RawGraphs, "digest", lambda self, sha: sha.update(str(self.edges.shape).encode()))


@plant("rows_are_encoded_alone", "when others stand beside it")
def encoded_by_the_batch(patch: pytest.MonkeyPatch, its: Any) -> None:
    encode = its.encode.GraphEncoder.encode
    patch.setattr(
        its.encode.GraphEncoder, "encode", lambda self, raw: encode(self, raw) - encode(self, raw).mean(dim=0)
    )


@plant("rows_are_encoded_alone", "changed the raw rows")
def encoded_in_place(patch: pytest.MonkeyPatch, its: Any) -> None:
    encode = its.encode.GraphEncoder.encode

    def first_edge_away(self: Any, raw: Any) -> Tensor:
        raw.edges[:, 0, 1] = raw.edges[:, 1, 0] = 0
        return encode(self, raw)

    patch.setattr(its.encode.GraphEncoder, "encode", first_edge_away)


@plant("encoder_is_restored", "state of what was restored differs")
def weight_forgotten(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(type(its.own), "restore", lambda self, meta, arrays: its.encode.GraphEncoder(meta["nodes"], 1.0))


@plant("encoder_is_restored", "encodes to other bits")
def half_of_the_state(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(its.encode.GraphEncoder, "state", lambda self: ({"nodes": self.nodes}, {}))
    patch.setattr(type(its.own), "restore", lambda self, meta, arrays: its.encode.GraphEncoder(meta["nodes"], 1.0))


@plant("encoder_is_restored", "is not JSON serializable")
def state_of_objects(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(its.encode.GraphEncoder, "state", lambda self: ({"nodes": np.int64(self.nodes), "weight": 0.5}, {}))


@plant("description_fits", "but the spec says shape")
def wrong_shape(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(type(its.own), "describe", lambda self, encoder: {"shape": (encoder.nodes,)})


@plant("description_fits", "numbers should be float32")
def double_precision(patch: pytest.MonkeyPatch, its: Any) -> None:
    encode = its.encode.GraphEncoder.encode
    patch.setattr(its.encode.GraphEncoder, "encode", lambda self, raw: encode(self, raw).double())


@plant("description_fits", "not finite")
def holes(patch: pytest.MonkeyPatch, its: Any) -> None:
    encode = its.encode.GraphEncoder.encode
    patch.setattr(its.encode.GraphEncoder, "encode", lambda self, raw: encode(self, raw) / encode(self, raw))


@plant("description_fits", "ids from")
def ids_beyond_the_vocabulary(patch: pytest.MonkeyPatch, its: Any) -> None:
    encode = its.encode.GraphEncoder.encode
    patch.setattr(its.encode.GraphEncoder, "encode", lambda self, raw: (2 * encode(self, raw)).long())
    patch.setattr(type(its.own), "describe", lambda self, encoder: {"shape": (8, 8), "vocabulary": 1})


@plant("description_fits", "features are named")
def too_many_names(patch: pytest.MonkeyPatch, its: Any) -> None:
    names = tuple(f"node {i}" for i in range(5))
    patch.setattr(type(its.own), "describe", lambda self, encoder: {"shape": (8, 8), "features": names})


@plant("pipeline_is_saved_and_loaded", "its spec was")
def a_list_for_a_shape(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(type(its.own), "describe", lambda self, encoder: {"shape": [8, 8]})


@plant("pipeline_is_saved_and_loaded", "encodes to other bits")
def rounded_when_saved(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(its.encode.GraphEncoder, "state", lambda self: ({"nodes": self.nodes, "weight": 0.4}, {}))


@plant("new_rows_are_encoded", "are encoded to another x")
def new_rows_turned(patch: pytest.MonkeyPatch, its: Any) -> None:
    own = type(its.own).new_rows
    patch.setattr(
        type(its.own), "new_rows", lambda self, encoder, source, exclude=(): own(self, encoder, source[:, ::-1, ::-1])
    )


@plant("new_rows_are_encoded", "beside a frame of")
def a_frame_of_other_rows(patch: pytest.MonkeyPatch, its: Any) -> None:
    own = type(its.own).new_rows

    def beside(self: Any, encoder: Any, source: Any, exclude: Any = ()) -> Any:
        raw, frame = own(self, encoder, source)
        return raw, frame.head(1)

    patch.setattr(type(its.own), "new_rows", beside)


def corrupted(make: Callable[..., Tensor]) -> Plant:
    return lambda patch, its: patch.setattr(its.corruptions, "corruptions", lambda spec: {"own": make})


PLANTS += [
    ("corruptions_keep_the_form", "in place", corrupted(lambda x, spec, severity, draw: x.mul_(0.5))),
    ("corruptions_keep_the_form", "in place of", corrupted(lambda x, spec, severity, draw: x[:, :, :4])),
    ("corruptions_keep_the_form", "torch.float64", corrupted(lambda x, spec, severity, draw: x.double() * 0.5)),
    ("corruptions_keep_the_form", "two results", corrupted(lambda x, spec, severity, draw: x + torch.rand(()))),
    ("corruptions_keep_the_form", "nothing is changed", corrupted(lambda x, spec, severity, draw: x.clone())),
    ("corruptions_keep_the_form", "not finite", corrupted(lambda x, spec, severity, draw: x / 0)),
]


@plant("features_are_numbers", "no finite numbers")
def features_without_numbers(patch: pytest.MonkeyPatch, its: Any) -> None:
    faceted(patch, its, "features", matrix=lambda spec, train: lambda part: part.x.flatten(1).numpy() / 0)


@plant("features_are_numbers", "rows depend on each other")
def features_of_the_batch(patch: pytest.MonkeyPatch, its: Any) -> None:
    faceted(patch, its, "features", vectors=lambda x, spec, tables: (x - x.mean(dim=0)).flatten(1).double())


@plant("features_are_numbers", "audit fact edges")
def facts_without_numbers(patch: pytest.MonkeyPatch, its: Any) -> None:
    faceted(patch, its, "audit", facts=lambda x, spec: {"edges": x.flatten(1).sum(dim=1) / 0})


@plant("worlds_keep_the_form", "noise: x")
def noise_of_another_shape(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(its.worlds, "noise", lambda data, generator: (torch.zeros(3, 8, 8), None))


@plant("worlds_keep_the_form", "noise: one seed gives two results")
def noise_from_elsewhere(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(its.worlds, "noise", lambda data, generator: (torch.rand(data.test.x.shape), None))


@plant("worlds_keep_the_form", "marked rows")
def marks_that_do_not_fit(patch: pytest.MonkeyPatch, its: Any) -> None:
    patch.setattr(its.worlds, "marked_spec", lambda spec: replace(spec, shape=(9, 9)), raising=False)
    patch.setattr(its.worlds, "marked", lambda part, codes, spec: part, raising=False)


def toys(change: Callable[[Tensor, Any], Tensor]) -> Plant:
    def bug(patch: pytest.MonkeyPatch, its: Any) -> None:
        own = its.toy.toy
        patch.setattr(
            type(its.own),
            "toy",
            lambda self, hidden, generator: Toy(change(own(hidden, generator).x, generator), {"shape": (6, 6)}),
        )

    return bug


PLANTS += [
    ("toy_data_fit", "two results", toys(lambda x, draw: x + torch.rand(x.shape))),
    ("toy_data_fit", "but the spec says shape", toys(lambda x, draw: x[:, :5])),
    ("toy_data_fit", "for 30 hidden classes", toys(lambda x, draw: x[:20])),
    ("toy_data_fit", "not finite", toys(lambda x, draw: x / 0)),
    ("toy_classes_can_be_seen", "a third by chance", toys(lambda x, draw: torch.rand(x.shape, generator=draw))),
]


def networks(change: Callable[[Tensor], Tensor]) -> Plant:
    def bug(patch: pytest.MonkeyPatch, its: Any) -> None:
        forward = its.network.GraphNet.forward
        patch.setattr(its.network.GraphNet, "forward", lambda self, x: change(forward(self, x)))

    return bug


@plant("network_trains", "no gradient reaches unused")
def a_layer_for_nothing(patch: pytest.MonkeyPatch, its: Any) -> None:
    class Larger(its.network.GraphNet):  # type: ignore[name-defined,misc]
        def __init__(self, spec: Any) -> None:
            super().__init__(spec)
            self.unused = nn.Linear(2, 2)

    patch.setattr(its.kind, "GraphNet", Larger)


@plant("network_trains", "went from")
def trained_far_too_fast(patch: pytest.MonkeyPatch, its: Any) -> None:
    own = its.own.training("classes")
    patch.setattr(type(its.own), "training", lambda self, task: replace(own, lr=30.0))


PLANTS += [
    ("network_gives_the_tasks_shape", "are needed", networks(lambda z: z.squeeze())),
    ("network_gives_the_tasks_shape", "outputs are not finite", networks(lambda z: z / 0)),
    ("network_gives_the_tasks_shape", "differ in evaluation mode", networks(lambda z: z + torch.rand(()))),
    ("rows_do_not_mix", "outputs of a row differ", networks(lambda z: z - z.mean(dim=0))),
    ("a_loss_trains_on_it", "", networks(lambda z: z * float("nan"))),
]


def faceted(patch: pytest.MonkeyPatch, its: Any, name: str, **functions: Any) -> None:
    """A facet with these functions in place of the usual ones."""
    usual = its.own.facet
    own = SimpleNamespace(**functions)

    class Facet:
        def __getattr__(self, word: str) -> Any:
            return getattr(own, word) if hasattr(own, word) else getattr(usual(name), word)

    patch.setattr(type(its.own), "facet", lambda self, asked: Facet() if asked == name else usual(asked))


@pytest.mark.parametrize(("check", "told", "bug"), PLANTS, ids=[f"{p[0]}-{i}" for i, p in enumerate(PLANTS)])
def test_a_planted_bug_is_found(
    check: str, told: str, bug: Plant, its: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_check(KindSubject(NAME), check).status in ("passed", "not applicable"), "it is sound before"
    bug(monkeypatch, its)
    try:
        result = run_check(KindSubject(NAME), check)
    finally:
        monkeypatch.undo()
        from probatum.rooms import kind as rooms

        rooms._known.cache_clear()
    assert result.status == "failed"
    assert told in result.detail, result.detail


def test_every_check_has_a_bug_that_it_finds() -> None:
    assert {check for check, _, _ in PLANTS} == set(kind_checks())


def test_kinds_are_meant_by_name_or_folder(its: SimpleNamespace) -> None:
    assert kind_meant("kind/table") == "table"
    assert kind_meant(str(find.PACKAGE / "kinds" / "series")) == "series"
    assert kind_meant(str(Path(__file__).parents[1] / "rooms" / NAME)) == NAME
    assert kind_meant("encouraging-loss") is None
    with pytest.raises(InputError, match=r"no kind called 'tables'; did you mean table\?"):
        check("kind/tables")
