"""A rank's state dict against the tensors that a plan expects it to hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, some
from .placement import Local
from .plan import LivePlan

if TYPE_CHECKING:
    import torch

#: one state dict, or one for each virtual pipeline stage of the rank
StateDict = Mapping[str, Any]
States = StateDict | Sequence[StateDict] | None

_WRAPPER = "module."
#: TransformerEngine's grouped experts: weight3 of one module is the weight of expert 3
_GROUPED = re.compile(r"(.+\.experts)\.(linear_fc[12])\.(weight|bias)(\d+)")
_EXTRA_STATE = "_extra_state"


@cache
def canonical(name: str) -> str:
    """A name of a wrapped model, or of grouped experts, as tables have it."""
    while name.startswith(_WRAPPER):
        name = name[len(_WRAPPER) :]
    grouped = _GROUPED.fullmatch(name)
    return f"{grouped[1]}.local_experts.{grouped[4]}.{grouped[2]}.{grouped[3]}" if grouped else name


def chunks(states: States) -> list[StateDict]:
    """One state dict for each virtual pipeline stage."""
    if states is None:
        return []
    if isinstance(states, Mapping):
        return [states]
    return list(states)


@dataclass(slots=True)
class Held:
    """A rank's tensors by (chunk, canonical name), where each came from, and what is wrong with them."""

    tensors: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    origins: dict[tuple[int, str], tuple[StateDict, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def drop(self, key: tuple[int, str]) -> None:
        """Forget a tensor here and in the caller's dictionary."""
        self.tensors.pop(key, None)
        origin = self.origins.pop(key, None)
        if origin is not None:
            states, name = origin
            assert isinstance(states, MutableMapping)
            states.pop(name, None)


def bind(states: States, expected: Mapping[tuple[int, str], Local], plan: LivePlan, what: str) -> Held:
    """Find every expected tensor; ``what`` they are is for messages. Raises nothing: see ``problems``."""
    held = Held()
    given = chunks(states)
    ignored = [_pattern(template) for template in plan.ignored]
    found: dict[tuple[int, str], tuple[StateDict, str]] = {}
    for number, state in enumerate(given):
        for name in state:
            found[number, canonical(name)] = (state, name)
    missing, shapes = [], []
    for key, local in expected.items():
        names = [(local.chunk, name) for name in (local.name, *local.other_names)]
        place = next((found.pop(name) for name in names if name in found), None)
        if place is None:
            missing.append(_called(local, len(given)))
            continue
        tensor = place[0][place[1]]
        problem = _unusable(tensor)
        if problem is not None:
            held.problems.append(f"{place[1]} is {problem}")
        elif tuple(tensor.shape) != local.shape:
            shapes.append(
                f"{place[1]} has shape {list(tensor.shape)}, the layout asks for {list(local.shape)}"
            )
        else:
            held.tensors[key] = tensor
            held.origins[key] = place
    left = [
        name
        for (_, plain), (_, name) in found.items()
        if _EXTRA_STATE not in plain
        and plain not in plan.copies
        and not any(p.fullmatch(plain) for p in ignored)
    ]
    if missing:
        held.problems.append(f"{len(missing)} {what} tensors are missing: {some(missing, 3)}")
    if shapes:
        held.problems.append(some(shapes, 3))
    if left:
        held.problems.append(f"{len(left)} {what} tensors are no part of this rank's layout: {some(left, 3)}")
    return held


def _called(local: Local, chunk_count: int) -> str:
    return (
        local.name if chunk_count <= 1 and not local.chunk else f"{local.name} of model chunk {local.chunk}"
    )


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(template)))


def _unusable(tensor: Any) -> str | None:
    """What keeps a tensor from being copied by its bytes, None if nothing does."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        return f"no tensor but {type(tensor).__name__}"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}, not a plain tensor"
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return "not a dense tensor with data"
    return None


def check_devices(held: Held, device: torch.device) -> None:
    """Add a problem for tensors on another device than the one that the group's backend works on."""
    strays = sorted({str(t.device) for t in held.tensors.values() if t.device.type != device.type})
    others = {t.device for t in held.tensors.values() if t.device.type == device.type}
    if strays:
        held.problems.append(f"tensors are on {some(strays)}, but the process group works on {device.type}")
    elif len(others) > 1:
        held.problems.append(f"tensors are on several devices: {some(sorted(map(str, others)))}")


def check_chunks(states: States, count: int, what: str) -> None:
    """Raise UsageError unless there are as many state dicts as the rank has virtual stages."""
    given = len(chunks(states))
    if given and given != count:
        raise UsageError(
            f"{given} {what} state dicts, but the layout has {count} virtual pipeline stages",
            hint="pass a list with one state dict for each model chunk",
        )


def fingerprint(*states: States) -> object:
    """What tells one call's tensors from another's: names, addresses, shapes, types. None where something
    is no tensor."""
    import torch

    found: list[object] = []
    for state in states:
        for number, chunk in enumerate(chunks(state)):
            for name, tensor in chunk.items():
                if not isinstance(tensor, torch.Tensor):
                    if _EXTRA_STATE in name:
                        continue
                    return None
                found.append((number, name, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()))
        found.append(None)
    return found
