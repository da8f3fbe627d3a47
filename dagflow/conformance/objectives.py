"""What every objective must do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from dagflow.conformance.batches import (
    BETA,
    COUNT,
    FIELDS,
    LEARNING_RATE,
    SHAPES,
    SPEC,
    VALUES,
    ask_flow,
    count,
    cut,
    declared,
    flow_inputs,
    transitions,
)
from dagflow.conformance.contract import Contract, advise
from dagflow.conformance.poison import Poisoned, poisoned
from dagflow.errors import raised
from dagflow.types import RESERVED_METRICS, Needs, Transitions


class ObjectiveContract(Contract):
    """Tests of an installed objective. Set `name`, and `options` if it needs any."""

    kind = "objective"

    def test_needs_are_declared(self) -> None:
        objective = self.build(SPEC)
        if not isinstance(getattr(objective, "needs", None), Needs):
            advise(
                f"{self.label} has no attribute `needs` of type dagflow.Needs. Say there what the "
                f"engine should compute, as in needs = Needs(log_pb=True); Needs() is only log_pf."
            )

    def test_loss_is_one_number_for_each_transition(self) -> None:
        objective = self._objective()
        loss, _ = self._ask(objective, transitions(objective))
        due = count(objective)
        if loss.shape != (due,):
            advise(
                f"{self.label} returned a loss of shape {tuple(loss.shape)} for {due} "
                f"{'trajectories' if objective.needs.trajectories else 'transitions'}, not "
                f"({due},). Do not average: the engine does, over the whole optimizer step."
            )

    def test_loss_is_finite_on_both_scales_and_at_beta_zero(self) -> None:
        objective = self._objective()
        for scale in (1.0, float(VALUES)):
            for beta in (0.0, BETA):
                loss, _ = self._ask(objective, transitions(objective, scale=scale, beta=beta))
                if not loss.isfinite().all():
                    advise(
                        f"{self.label}: the loss is {loss.tolist()} with scale = {scale:g} and "
                        f"beta = {beta:g}. Log-densities grow with scale (1 or D): take exp only "
                        f"of (log_pf - log_pf_old) / scale. beta rises from 0: do not divide by "
                        f"it."
                    )

    def test_window_may_be_cut_anywhere(self) -> None:
        objective = self._objective()
        if objective.needs.trajectories:
            pytest.skip("it gets whole windows")
        batch = transitions(objective)
        together, _ = self._ask(objective, batch)
        parts = [self._ask(objective, part)[0] for part in cut(batch, [1, 4, 3])]
        found = torch.cat([part.reshape(-1) for part in parts])
        if found.shape != together.shape or not torch.allclose(found, together, 1e-3, 1e-4):
            advise(
                f"{self.label}: the loss of a transition depends on the others in its "
                f"micro-batch, and so on the machine's memory. Declare Needs(window=True) and "
                f"take statistics from batch.window, which is the whole optimizer step."
            )

    def test_batch_of_one(self) -> None:
        objective = self._objective()
        single = next(cut(transitions(objective), [1, count(objective) - 1]))
        if single.window is not None:
            single = replace(single, window=next(cut(single.window, [1, COUNT - 1])))
        loss, _ = self._ask(objective, single)
        if loss.shape != (1,) or not loss.isfinite().all():
            advise(
                f"{self.label} returned {loss.tolist()} for a single transition, in a window of "
                f"one. Name the dimension in squeeze(1); use std(correction=0) + 1e-8; remember "
                f"that there may be no others for a baseline."
            )

    def test_gradients_reach_log_pf_and_own_parameters_only(self) -> None:
        objective = self._objective()
        batch = transitions(objective)
        loss, _ = self._ask(objective, batch)
        reached = leaves(loss)
        if not any(leaf is batch.log_pf for leaf in reached):
            advise(
                f"{self.label}: the loss has no gradient with respect to batch.log_pf, so the "
                f"policy would never learn. Do not detach it everywhere."
            )
        own = dict(objective.named_parameters()) if isinstance(objective, nn.Module) else {}
        known = {id(parameter) for parameter in own.values()} | {id(batch.log_pf)}
        strangers = [leaf for leaf in reached if id(leaf) not in known]
        if strangers:
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in strangers)
            advise(
                f"{self.label}: gradients reach tensors that are not its parameters, of shape "
                f"{shapes}. The engine optimises and saves only objective.parameters(): make it "
                f"an nn.Module, with nn.Parameter, nn.ModuleList and so on as its attributes."
            )
        hidden = {id(leaf) for leaf in reached}
        unused = [n for n, p in own.items() if p.requires_grad and id(p) not in hidden]
        if unused:
            advise(
                f"{self.label}: no gradient reaches its parameters {', '.join(unused)}. Use them, "
                f"or set requires_grad_(False)."
            )

    def test_it_uses_nothing_that_it_does_not_declare(self) -> None:
        objective = self._objective()
        given = {name for need in declared(objective) for name in FIELDS[need]}
        absent = {name for names in FIELDS.values() for name in names} - given
        batch = poisoned(transitions(objective), absent)
        try:
            self._call(objective, batch)
        except Poisoned as touched:
            need = next(need for need, names in FIELDS.items() if touched.field in names)
            advise(
                f"{self.label} uses batch.{touched.field}, which is None in a run because its "
                f"needs do not ask for it. Declare Needs({need}=True)."
            )

    def test_it_uses_what_it_declares(self) -> None:
        objective = self._objective()
        needs = [need for need in declared(objective) if need != "trajectories"]
        if "potentials" in needs and "log_flow" not in needs:
            advise(
                f"{self.label} declares Needs(potentials=True) without log_flow, which they are "
                f"part of. Drop potentials: rewards of all intermediate states take much time."
            )
        for need in needs:
            try:
                self._call(objective, poisoned(transitions(objective), set(FIELDS[need])))
            except Poisoned:
                continue
            advise(
                f"{self.label} declares Needs({need}=True) but does not use batch."
                f"{' or batch.'.join(FIELDS[need])}. Drop it: what is declared is computed in "
                f"every step."
            )

    def test_flow_is_a_module_of_its_own(self) -> None:
        objective = self._objective()
        if not objective.needs.log_flow:
            pytest.skip("it does not ask for log_flow")
        ask_flow(objective, *flow_inputs(3))

    def test_same_input_same_loss(self) -> None:
        objective = self._objective()
        batch = transitions(objective)
        first, again = (self._ask(objective, batch)[0] for _ in range(2))
        if not torch.equal(first, again):
            advise(
                f"{self.label}: the loss of the same batch differs from call to call. Draw no "
                f"random numbers, and keep no running statistics outside an optimizer step."
            )

    def test_saved_and_loaded_it_is_the_same(self) -> None:
        trained = self._objective()
        self._step(trained)
        state = saved(self.label, trained)
        resumed = self._objective(seed=1)  # other initial weights, which loading must replace
        restore(self.label, resumed, state)
        losses = [
            self._ask(one, transitions(one, seed=2))[0].detach() for one in (trained, resumed)
        ]
        if not torch.equal(*losses):
            advise(
                f"{self.label}: saved after a step and loaded into a new one, its loss differs by "
                f"{float((losses[0] - losses[1]).abs().max()):.3g}. All that changes must be in "
                f"its state_dict: use nn.Parameter, register_buffer and submodules, not plain "
                f"attributes."
            )

    def test_metrics_are_tensors_under_names_of_their_own(self) -> None:
        objective = self._objective()
        _, metrics = self._ask(objective, transitions(objective))
        if not isinstance(metrics, Mapping):
            advise(
                f"{self.label} returned {type(metrics).__name__} with the loss, not a mapping of "
                f"name to tensor. Return loss, {{}} if there is nothing to log."
            )
        for name, values in metrics.items():
            check_metric(self.label, name, values)

    def _objective(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        objective = self.build(SPEC)
        if not isinstance(getattr(objective, "needs", None), Needs):
            advise(f"{self.label} has no attribute `needs` of type dagflow.Needs.")
        return objective

    def _call(self, objective: Any, batch: Transitions) -> Any:
        try:
            return objective(batch)
        except Poisoned:
            raise
        except Exception as error:
            advise(
                f"{self.label} {raised(error)} on {len(batch.log_pf)} transitions. Fields of the "
                f"batch that its needs do not ask for are None."
            )

    def _ask(self, objective: Any, batch: Transitions) -> tuple[Tensor, Any]:
        answer = self._call(objective, batch)
        if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], Tensor):
            advise(
                f"{self.label} returned {type(answer).__name__}, not the pair (loss, metrics): a "
                f"tensor (B,) and a mapping of name to tensor."
            )
        return answer

    def _step(self, objective: Any) -> None:
        """One optimizer step, so that the objective differs from a newly built one."""
        loss, _ = self._ask(objective, transitions(objective))
        if loss.requires_grad:
            loss.sum().backward()
        with torch.no_grad():
            for parameter in objective.parameters() if isinstance(objective, nn.Module) else ():
                if parameter.grad is not None:
                    parameter.sub_(LEARNING_RATE * parameter.grad.sign())


def leaves(loss: Tensor) -> list[Tensor]:
    """Every leaf tensor that the gradient of a loss reaches."""
    found: dict[int, Tensor] = {}
    seen, waiting = set(), [loss.grad_fn]
    if loss.grad_fn is None and loss.requires_grad:
        return [loss]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found[id(leaf)] = leaf
        waiting += [before for before, _ in node.next_functions]
    return list(found.values())


def saved(label: str, objective: Any) -> bytes:
    """The objective's state as a checkpoint holds it."""
    if not isinstance(objective, nn.Module):
        return save({})
    try:
        return save({k: v.contiguous() for k, v in objective.state_dict().items()})
    except Exception as error:
        advise(
            f"{label}: its state_dict cannot be saved: {error} Checkpoints hold only tensors, "
            f"each in its own memory: no numbers or lists from get_extra_state, no weights that "
            f"two modules share."
        )


def restore(label: str, objective: Any, state: bytes) -> None:
    if not isinstance(objective, nn.Module):
        return
    try:
        objective.load_state_dict(load(state))
    except Exception as error:
        advise(
            f"{label}: a new one does not accept the saved state: {error} Shapes and names must "
            f"follow from the options alone."
        )


def check_metric(label: str, name: Any, values: Any) -> None:
    """It is a finite tensor, one number or one for each transition, under its own name."""
    if not isinstance(name, str) or name in RESERVED_METRICS:
        advise(
            f"{label}: the metric {name!r} has a name that the engine uses, or one that is not a "
            f"str. Choose another; these are taken: {', '.join(sorted(RESERVED_METRICS))}."
        )
    if not isinstance(values, Tensor) or values.shape not in SHAPES:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        advise(
            f"{label}: the metric '{name}' is {got}, not a tensor of shape () or (B,). Return one "
            f"number for each transition: the engine takes the mean over the optimizer step."
        )
    if not values.isfinite().all():
        advise(f"{label}: the metric '{name}' is not finite: {values.tolist()}.")
