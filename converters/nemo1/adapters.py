"""The LoRA adapters of a ``.nemo`` that NeMo 1's PEFT trainers wrote, which holds nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...errors import CorruptCheckpoint, UnsupportedConfig, UnsupportedFormat, some
from ...formats.text import plain_json
from ...mappings.hf.fields import Value
from ...mappings.lora import RANK, adapter_table, target_modules, told
from ..base import Model
from . import config as nemo1_config
from .checkpoint import NeMo1Checkpoint

ADAPTER_CONFIG: Final = "adapter_config.json"
#: keys of peft.lora_tuning that say nothing of what trained adapters compute
_INERT: Final = frozenset(
    """variant target_modules adapter_dim alpha adapter_dropout column_init_method row_init_method
    dropout_position a2a_experimental""".split()
)


class NeMo1Adapters(NeMo1Checkpoint):
    """The archive as PEFT sees it."""

    def _understand(self, allow_ignored: Sequence[str]) -> Model:
        rank, alpha, dropout = self._settings()
        table, config, _ = nemo1_config.model_of(self._yaml, self._where, allow_ignored=allow_ignored)
        config[RANK] = rank
        config["vocab_size"] = config["vocab_size"] or 1  # adapters have none
        adapters = adapter_table(table, set(self.keys()))
        config |= told(adapters)
        said = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": None,
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": dropout,
            "target_modules": target_modules(adapters),
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": False,
            "inference_mode": True,
        }
        return Model(adapters, config, {}, {ADAPTER_CONFIG: plain_json.dumps(said)})

    def _settings(self) -> tuple[int, float, float]:
        """(rank, alpha, dropout). Raises UnsupportedFormat where the config speaks of no adapters,
        UnsupportedConfig for other kinds of them."""
        where = f"{self._where}: peft"
        peft = self._yaml.get("peft")
        scheme = peft.get("peft_scheme") if isinstance(peft, dict) else None
        if not scheme:
            raise UnsupportedFormat(
                f"{where}.peft_scheme is not set: a whole model is no set of adapters",
                hint="convert it --to hf",
            )
        if scheme not in ("lora", "qlora"):
            raise UnsupportedConfig(
                f"{where}: peft_scheme={scheme!r}; of NeMo's adapters LoRA has a counterpart here",
                hint="convert --to safetensors to have their weights",
            )
        lora: Mapping[str, Any] = peft.get("lora_tuning") or {} if isinstance(peft, dict) else {}
        tied = {
            name: value for name, value in lora.items() if name not in _INERT and value not in (None, False)
        }
        if tied:
            raise UnsupportedConfig(f"{where}.lora_tuning: {some(tied)} have no counterpart in PEFT")
        rank, alpha = lora.get("adapter_dim"), lora.get("alpha")
        if type(rank) is not int or rank < 1:
            raise CorruptCheckpoint(f"{where}.lora_tuning: adapter_dim={rank!r}")
        alpha, dropout = rank if alpha is None else alpha, lora.get("adapter_dropout", 0.0)
        if any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in (alpha, dropout)):
            raise CorruptCheckpoint(f"{where}.lora_tuning: alpha={alpha!r}, adapter_dropout={dropout!r}")
        return rank, alpha, dropout

    @property
    def config(self) -> Mapping[str, Value]:
        return {}
