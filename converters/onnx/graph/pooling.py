"""One vector for each row of a batch, of the states of its tokens.

Source: ``pool`` in nemo/collections/llm/gpt/model/hf_llama_embedding.py, which released rerankers have, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from ....errors import UnsupportedConfig
from .builder import BOOL, Graph


def pool(graph: Graph, states: str, mask: str, kind: str) -> str:
    """[batch, hidden] of ``states`` [batch, sequence, hidden], of the tokens that ``mask`` [batch, sequence]
    calls real. Raises UnsupportedConfig for a kind that has no graph."""
    if kind not in _KINDS:
        raise UnsupportedConfig(f"config.json: pooling={kind!r} has no ONNX graph, only {', '.join(_KINDS)}")
    with graph.scope("pooling"):
        real = graph.op("Unsqueeze", graph.cast(mask, BOOL), graph.constant([2]))
        return _KINDS[kind](graph, graph.op("Where", real, states, graph.scalar(0.0)), mask)


def _sum(graph: Graph, states: str, _mask: str) -> str:
    return graph.op("ReduceSum", states, graph.constant([1]), keepdims=0)


def _average(graph: Graph, states: str, mask: str) -> str:
    count = graph.op("ReduceSum", mask, graph.constant([1]), keepdims=1)
    return graph.op("Div", _sum(graph, states, mask), graph.cast(count, graph.compute))


def _first(graph: Graph, states: str, _mask: str) -> str:
    return graph.op("Gather", states, graph.constant(0), axis=1)


def _last(graph: Graph, states: str, mask: str) -> str:
    """The last token of all rows if it is real in all of them, else the one that the number of a row's real
    tokens points at."""
    length = graph.op("Gather", graph.op("Shape", mask), graph.constant(1))
    end = graph.op("Sub", length, graph.constant(1))
    count = graph.op("ReduceSum", mask, graph.constant([1]), keepdims=0)
    whole = graph.op("ReduceMin", graph.op("Gather", mask, end, axis=1), graph.constant([0]), keepdims=0)
    place = graph.op("Where", graph.cast(whole, BOOL), end, graph.op("Sub", count, graph.constant(1)))
    return graph.op("GatherND", states, graph.op("Unsqueeze", place, graph.constant([1])), batch_dims=1)


_KINDS: Final[Mapping[str, Callable[[Graph, str, str], str]]] = {
    "avg": _average,
    "weighted_avg": _sum,
    "cls": _first,
    "last": _last,
}
