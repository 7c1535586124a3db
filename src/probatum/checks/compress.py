"""What every compressor promises, besides what methods promise."""

from __future__ import annotations

from probatum.checks.method import (  # noqa: F401  (the same hooks, the same promises)
    check_declares_what_it_touches,
    check_leaves_no_traces_after_a_failure,
    check_state_dict_round_trip,
    check_training_data_are_not_changed,
    check_trains_to_finite_weights,
)
from probatum.checks.networks import hooks_of
from probatum.checks.subject import Subject, demand
from probatum.checks.trained import draws, exercise, neutral, trained  # noqa: F401  (tried in a training)
from probatum.checks.training_networks import (  # noqa: F401  (promises of whatever acts in the loop)
    check_attached_networks_can_be_copied,
    check_batches_are_not_changed,
    check_bf16_and_fused_optimizers,
    check_extra_passes_are_charged,
    check_hooks_read_what_they_say,
    check_hooks_write_what_they_say,
    check_losses_add_up,
    check_networks_as_users_have_them,
    check_norms_count_the_training_passes,
)
from probatum.measure.cost import nonzero


def check_leaves_no_traces(subject: Subject) -> None:
    """Afterwards the model is of its own kinds of modules and torch's, without hooks or other forwards, and works alone."""
    done = trained(subject, subject.modalities()[0])
    model = done.parts.run.model
    for name, module in model.named_modules():
        known = type(module) in done.types or type(module).__module__.startswith("torch.nn")
        demand(known, f"a {type(module).__name__} is left at {name!r}")
        demand("forward" not in vars(module), f"another forward is left at {name!r}")
    demand(hooks_of(model) == 0, "hooks are left on the model")


def check_really_shrinks(subject: Subject) -> None:
    """Fewer parameters, or fewer that are not zero, than before; and its report says so."""
    done = trained(subject, subject.modalities()[0])
    after = nonzero(done.parts.run.model)
    demand(after < done.parameters, f"{after} of {done.parameters} parameters are left")
    report = next(method.report() for method in done.parts.methods if hasattr(method, "report"))
    demand(
        bool({"sparsity", "parameters"} & set(report)),
        f"report() has {sorted(report)}; give 'sparsity' or 'parameters'",
    )
