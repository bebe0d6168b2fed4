"""The looked-up tables that make a model's first hidden states: of tokens, of their kinds, of positions."""

from __future__ import annotations

from ....errors import MappingError, some
from .dataflow import Dataflow
from .weighted import Lookup


def find_tables(flow: Dataflow) -> dict[str, Lookup]:
    """By role: "embedding", "token types", "positions". They alone feed the first attention, and are told
    apart by the input of the graph that says which rows are taken. Raises MappingError."""
    first = _first(flow)
    found: dict[str, Lookup] = {}
    for lookup in flow.lookups:
        if not first & lookup.bit:
            continue
        given = flow.inputs_of(lookup.node.inputs[1])
        role = (
            "embedding"
            if "input_ids" in given
            else "token types"
            if "token_type_ids" in given
            else "positions"
        )
        if role in found:
            names = some([found[role].weight.name, lookup.weight.name])
            raise _refuse(flow, f"two tables look like that of {role}: {names}")
        found[role] = lookup
        first &= ~lookup.bit
    if first or "embedding" not in found:
        raise _refuse(flow, "no table was found that is looked up by input_ids and feeds the first attention")
    return found


def _first(flow: Dataflow) -> int:
    """What feeds the linear layer that makes the first attention's queries."""
    if not flow.attentions:
        raise _refuse(flow, "no attention was found")
    linear = flow.one(flow.sources.get(flow.attentions[0].query, 0) & flow.linear_mask())
    if linear is None:
        raise _refuse(flow, "no single linear layer makes the first attention's queries")
    return flow.sources.get(linear.data, 0)


def _refuse(flow: Dataflow, what: str) -> MappingError:
    return MappingError(
        f"{flow.where}: {what}",
        hint="the graph is not that of a model known here; --to safetensors writes it as it is",
    )
