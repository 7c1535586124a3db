"""What every compressor promises, besides what methods promise."""

from __future__ import annotations

from probatum.checks.method import (  # noqa: F401  (the same hooks, the same promises)
    check_declares_what_it_touches,
    check_leaves_no_traces,
    check_leaves_no_traces_after_a_failure,
    check_state_dict_round_trip,
    check_training_data_are_not_changed,
    check_trains_to_finite_weights,
    prepared,
    run_it,
)
from probatum.checks.subject import Subject, demand
from probatum.measure.cost import nonzero, parameters


def check_really_shrinks(subject: Subject) -> None:
    """Fewer parameters, or fewer that are not zero, than before; and its report says so."""
    parts = prepared(subject)
    before = parameters(parts.run.model)
    run_it(parts)
    after = nonzero(parts.run.model)
    demand(after < before, f"{after} of {before} parameters are left")
    report = next(method.report() for method in parts.methods if hasattr(method, "report"))
    demand(
        bool({"sparsity", "parameters"} & set(report)),
        f"report() has {sorted(report)}; give 'sparsity' or 'parameters'",
    )
