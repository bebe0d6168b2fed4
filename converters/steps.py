"""The steps that a table brings along."""

from __future__ import annotations

from ..mappings.table import Table
from .mtp_layers import MtpStep
from .step import Step
from .tied import Tied
from .unit_rows import UnitRowsStep
from .zeros import Zeros


def steps_of(table: Table) -> tuple[Step, ...]:
    """In the order in which they are asked."""
    steps: list[Step] = []
    if table.further or table.copies:
        steps.append(MtpStep(table))
    if table.tied or table.twice:
        steps.append(Tied(table))
    if any(rule.hf_when for rule in table.rules):
        steps.append(Zeros(table))
    if table.unit_rows:
        steps.append(UnitRowsStep(table))
    for make in table.steps:
        step = make(table)
        if not isinstance(step, Step):
            raise TypeError(f"{table.architecture}: {make!r} makes no Step")
        steps.append(step)
    return tuple(steps)
