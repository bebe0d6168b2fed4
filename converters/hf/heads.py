"""Which of the classes of a model type a directory holds, where config.json names one with fewer heads.

The published BERTs say ``BertForMaskedLM`` and hold the pooler and the head for the next sentence, too:
transformers loads them and leaves those out, here they are converted as the class that has all that is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ...entry_points import entries
from ...errors import NemoconvError
from ...mappings import load_table, table_for
from ...mappings.hf.fields import Value, read_config
from ...mappings.table import Table, holes


def class_of_all(config: Mapping[str, Value], names: Collection[str], where: str) -> str | None:
    """The class whose tensors are just those that are there, None where it is the one that the config names
    or where none is."""
    table = table_for(config, where)
    kinds = [name for name in entries("mappings") if name.partition(":")[0] == table.model_type]
    if len(kinds) < 2 or fits(table, config, names):
        return None
    for kind in kinds:
        other = load_table(kind)
        if other.hf_class != table.hf_class and fits(other, config, names):
            return other.hf_class
    return None


def fits(table: Table, config: Mapping[str, Value], names: Collection[str]) -> bool:
    """Whether a model of this table has just the tensors called ``names``."""
    try:
        model, _ = read_config(table.fields, config, tuple(config))
        sizes = table.sizes(model)
        instances = list(table.instances(model, sizes))
    except NemoconvError:
        return False
    wanted = {part.hf.format_map(i.index) for i in instances if i.in_hf for part in i.rule.parts}
    there = {table.spelled(name) for name in names}
    spare = {copy for copy, original in table.tied if original in there}
    spare |= {
        each.format(layer=n) if holes(each) else each
        for each in table.ignored
        for n in range(sizes["layers"])
    }
    return wanted <= there and there - wanted <= spare
