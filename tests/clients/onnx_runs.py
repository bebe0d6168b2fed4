"""onnxruntime and onnxruntime-genai as judges: what they compute from a directory, beside transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy

PROMPT, LENGTH, PADDING = 11, 19, 3
Array = numpy.ndarray


class Run:
    """A session of model.onnx that feeds what is present back as what is past."""

    def __init__(self, folder: Path, *, optimized: bool = True) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        if not optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.past = [name for name in self.inputs if re.fullmatch(r"past_key_values\.\d+\.(key|value)", name)]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def empty(self, rows: int) -> dict[str, Array]:
        kinds = {"tensor(float)": "float32", "tensor(float16)": "float16"}
        found = {}
        for name in self.past:
            value = self.inputs[name]
            assert value.shape[0] == "batch_size"
            assert value.shape[2] == "past_sequence_length"
            found[name] = numpy.zeros((rows, value.shape[1], 0, value.shape[3]), kinds[value.type])
        return found

    def step(self, ids: Array, mask: Array, positions: Array, cache: dict[str, Array]) -> tuple[Array, dict]:
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache}
        assert feed.keys() == self.inputs.keys()
        found = dict(zip(self.outputs, self.session.run(None, feed), strict=True))
        kept = {name: found[name.replace("past_key_values", "present")] for name in self.past}
        assert all(array.shape[2] == mask.shape[1] for array in kept.values())
        return found["logits"], kept

    def logits(self, ids: Array, mask: Array, steps: tuple[int, ...]) -> Array:
        """[batch, sequence, vocab], the tokens given in runs of these lengths."""
        positions = numpy.maximum(mask.cumsum(1) - 1, 0)
        cache, parts, at = self.empty(len(ids)), [], 0
        for count in steps:
            here = slice(at, at + count)
            found, cache = self.step(ids[:, here], mask[:, : at + count], positions[:, here], cache)
            parts.append(found.astype(numpy.float32))
            at += count
        assert at == ids.shape[1]
        return numpy.concatenate(parts, 1)


def text(vocabulary: int, *, padded: bool) -> tuple[Array, Array]:
    """Ids and mask of two rows, the first perhaps padded on the left."""
    ids = numpy.random.default_rng(5).integers(3, vocabulary, (2, LENGTH))
    mask = numpy.ones_like(ids)
    if padded:
        mask[0, :PADDING] = 0
    return ids, mask


def reference(model: Any, ids: Array, mask: Array) -> Array:
    """What transformers computes in one pass, without a cache."""
    import torch

    positions = numpy.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            position_ids=torch.tensor(positions),
            use_cache=False,
        )
    array: Array = found.logits.float().numpy()
    return array


def load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def difference(run: Run, model: Any, *, padded: bool = False, steps: tuple[int, ...] | None = None) -> float:
    """The largest difference of a logit of a real token: a prompt, then tokens one by one."""
    ids, mask = text(model.config.vocab_size, padded=padded)
    wanted = reference(model, ids, mask)
    found = run.logits(ids, mask, steps or (PROMPT, *[1] * (LENGTH - PROMPT)))
    assert found.shape == wanted.shape
    assert 1 < numpy.abs(wanted).max() < 50
    return float(numpy.abs(found - wanted)[mask.astype(bool)].max())


def generated(folder: Path, prompt: str, count: int) -> tuple[list[int], list[int]]:
    """(ids of the prompt, ids that follow it greedily) by onnxruntime-genai."""
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(folder))
    ids = [int(i) for i in onnxruntime_genai.Tokenizer(model).encode(prompt)]
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + count, min_length=len(ids) + count, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(numpy.array(ids, numpy.int32))
    found = []
    while not generator.is_done() and len(found) < count:
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    return ids, found


def best(model: Any, ids: list[int], given: list[int], never: list[int]) -> list[int]:
    """What transformers holds for the most likely next id at every place of ``given`` after ``ids``."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *given]])).logits[0, len(ids) - 1 : -1]
    logits[:, never] = -torch.inf
    return [int(i) for i in logits.argmax(-1)]
