"""Layers of multi-token prediction (mtp): each is one more layer of the decoder, after norms of the embedding
and of the hidden state before it, and a projection of the two side by side.

Hugging Face numbers them on behind the decoder's layers. megatron-core calls the layer inside
``transformer_layer`` on disk in all versions, and ``mtp_model_layer`` in the modules of newer ones.

Source: megatron/core/transformer/multi_token_prediction.py, transformers/modeling_layers.py (``MtpLayer``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ..hf.fields import Value
from ..rules import same
from ..table import Module, Part, Rule, holes
from .names import Names

MTP: Final = "mtp.layers.{depth}."
INNER: Final = MTP + "transformer_layer."
RENAMED: Final = MTP + "mtp_model_layer."
_DECODER: Final = "decoder.layers.{layer}."


@dataclass(frozen=True, slots=True)
class Mtp:
    """Hugging Face's names of such layers; the defaults are DeepSeek's.

    ``swapped``: the projection takes the hidden state before the embedding, which Megatron's takes after it.
    ``copies``: (copy, original) of tensors that each of these layers may hold again, as released files do.
    """

    layer: str = "model.layers.{depth:beyond}."
    enorm: str = "enorm"
    hnorm: str = "hnorm"
    final_norm: str = "shared_head.norm"
    projection: str = "eh_proj"
    swapped: bool = False
    copies: tuple[tuple[str, str], ...] = (
        ("model.layers.{depth:beyond}.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.layers.{depth:beyond}.shared_head.head.weight", "lm_head.weight"),
    )

    @property
    def begins(self) -> str:
        """What Hugging Face's names of these layers begin with, before their number is known."""
        return self.layer.replace("{depth:beyond}", "{layer}").partition("{depth}")[0]

    def rules(self, names: Names, inner: Iterable[Rule], layers: str) -> Iterator[Rule]:
        """The rules, given those of the stack, whose last layer is of the set ``layers``."""
        norms = ("enorm", self.enorm), ("hnorm", self.hnorm), ("final_layernorm", self.final_norm)
        for nemo, hf in norms:
            yield same(f"{MTP}{nemo}.weight", f"{self.layer}{hf}.weight", "hidden")
        yield self._projection()
        for rule in inner:
            if "layer" in rule.holes and rule.layers in ("", layers):
                yield self._inner(names, rule)

    def _projection(self) -> Rule:
        nemo, hf = MTP + "eh_proj.weight", f"{self.layer}{self.projection}.weight"
        if not self.swapped:
            return same(nemo, hf, "hidden joined", cut="hidden")
        firsts: tuple[int | str, int | str] = (0, "hidden")
        parts = [
            Part(hf, "hidden column", (("pair", 1 - half, 1),), ((1, first, "hidden", "joined"),))
            for half, first in enumerate(firsts)
        ]
        return Rule(nemo, "hidden (pair column)", tuple(parts), cut="hidden")

    def _inner(self, names: Names, rule: Rule) -> Rule:
        """A rule of the decoder's layers, for the layer inside."""
        nemo = [name.removeprefix(_DECODER) for name in (rule.nemo, *rule.other_names)]
        spelled = [begin + name for begin in (INNER, RENAMED) for name in nemo]
        parts = tuple(replace(part, hf=part.hf.replace(names.layer, self.layer, 1)) for part in rule.parts)
        return replace(rule, nemo=spelled[0], other_names=tuple(spelled[1:]), parts=parts, layers="")

    def sizes(self, config: Mapping[str, Value]) -> dict[str, int]:
        """Of the number of these layers and of the projection."""
        hidden = config["hidden_size"]
        own = {"pair": 2, "column": hidden} if self.swapped else {}
        return {"depths": config.get("mtp_num_layers") or 0, "joined": 2 * hidden, **own}


def mtp_modules(modules: Iterable[Module], layers: str) -> Iterator[Module]:
    """The modules of these layers that keep an ``_extra_state`` object, given those of the decoder."""
    for name in ("enorm", "hnorm", "final_layernorm", "eh_proj"):
        yield Module(MTP + name)
    for each in modules:
        if "layer" in holes(each.name) and each.layers in ("", layers):
            yield replace(each, name=each.name.replace(_DECODER, INNER, 1), layers="")
