"""NeMo 1's MegatronBertModel: archives cut by hand as NeMo cuts them, in both of its implementations."""

from __future__ import annotations

import io
import json
import tarfile

import legacy_nemo as legacy
import numpy
import pytest
import tiny

from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.look.verify import verify
from nemoconv.converters.run.convert import convert
from nemoconv.errors import (
    LayoutError,
    MappingError,
    NemoconvError,
    UnsupportedArchitecture,
    UnsupportedConfig,
)
from nemoconv.mappings import samples

torch = pytest.importorskip("torch")

LAYERS, HIDDEN, FFN, HEADS, ROWS = 4, 16, 24, 4, 40
CONFIG = {
    "model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": LAYERS, "hidden_size": HIDDEN,
    "intermediate_size": FFN, "num_attention_heads": HEADS, "vocab_size": ROWS, "type_vocab_size": 2,
    "max_position_embeddings": 32, "torch_dtype": "bfloat16",
}  # fmt: skip
MODELS = "nemo.collections.nlp.models."
TARGET = MODELS + "language_modeling.megatron_bert_model.MegatronBertModel"
YAML = {
    "num_layers": LAYERS, "hidden_size": HIDDEN, "ffn_hidden_size": FFN, "num_attention_heads": HEADS,
    "encoder_seq_length": 512, "max_position_embeddings": 32, "num_tokentypes": 2, "bert_binary_head": True,
    "layernorm_epsilon": 1e-12, "normalization": "layernorm", "transformer_block_type": "post_ln",
    "apply_query_key_layer_scaling": False, "megatron_legacy": False, "make_vocab_size_divisible_by": 4,
    "bias_activation_fusion": False, "bias_gelu_fusion": False, "add_pooler": True,
    "tokenizer": {"library": "huggingface", "type": "org/name"}, "target": TARGET,
}  # fmt: skip
#: what NeMo's two implementations call the parts of a layer
NAMES = {
    True: {
        "qkv": "self_attention.linear_qkv", "proj": "self_attention.linear_proj", "fc1": "mlp.linear_fc1",
        "fc2": "mlp.linear_fc2", "norm1": "post_att_layernorm", "norm2": "post_mlp_layernorm",
    },
    False: {
        "qkv": "self_attention.query_key_value", "proj": "self_attention.dense", "fc1": "mlp.dense_h_to_4h",
        "fc2": "mlp.dense_4h_to_h", "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
    },
}  # fmt: skip
HF_PARTS = {
    "proj": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense",
    "norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm",
}  # fmt: skip
#: the axis along which ranks divide a weight, and its bias
CUTS = {"qkv": (0, 0), "fc1": (0, 0), "proj": (1, None), "fc2": (1, None), "norm1": (None, None)}


def tensors(folder, cls="BertModel"):
    """A Hugging Face directory of that class; its tensors without the prefix of classes with heads."""
    samples.build(folder, {**CONFIG, "architectures": [cls]})
    return {name.removeprefix("bert."): array for name, array in tiny.load(folder).items()}


def per_head(arrays, at, kind):
    """q, k and v of each head, one below the other."""
    parts = [arrays[f"{at}attention.self.{n}.{kind}"] for n in ("query", "key", "value")]
    split = [part.reshape(HEADS, HIDDEN // HEADS, *part.shape[1:]) for part in parts]
    return numpy.stack(split, axis=1).reshape(-1, *parts[0].shape[1:])


def ranks_of(arrays, *, mcore, tp=1, pp=1):
    """The state dicts of all ranks, cut by hand."""
    top = "model." if mcore else "model.language_model."
    states = {(t, p): {} for t in range(tp) for p in range(pp)}

    def put(stages, name, array, axis=None):
        for (t, p), state in states.items():
            if p in stages:
                piece = array if axis is None else numpy.split(array, tp, axis=axis)[t]
                state[name] = legacy.tensor(piece)

    first, last = {0}, {pp - 1}
    words = arrays["embeddings.word_embeddings.weight"]
    put(first, top + "embedding.word_embeddings.weight", words, 0)
    put(first, top + "embedding.position_embeddings.weight", arrays["embeddings.position_embeddings.weight"])
    put(
        first,
        top + "embedding.tokentype_embeddings.weight",
        arrays["embeddings.token_type_embeddings.weight"],
    )
    for kind in ("weight", "bias"):
        put(first, f"{top}encoder.initial_layernorm.{kind}", arrays[f"embeddings.LayerNorm.{kind}"])
        put(last, f"{top}pooler.dense.{kind}", arrays[f"pooler.dense.{kind}"])
    for layer in range(LAYERS):
        stage, local = divmod(layer, LAYERS // pp)
        at = f"encoder.layer.{layer}."
        for number, kind in enumerate(("weight", "bias")):
            for part, name in NAMES[mcore].items():
                array = (
                    per_head(arrays, at, kind) if part == "qkv" else arrays[f"{at}{HF_PARTS[part]}.{kind}"]
                )
                cut = CUTS.get(part, (None, None))[number]
                put({stage}, f"{top}encoder.layers.{local}.{name}.{kind}", array, cut)
    if pp > 1:  # the last stage has a copy of the embedding
        put(last, "model." + ("output_layer.weight" if mcore else "word_embeddings.weight"), words, 0)
    if "cls.predictions.bias" in arrays:
        put(last, "model.lm_head.bias", arrays["cls.predictions.bias"], 0)
        for kind in ("weight", "bias"):
            transform = "cls.predictions.transform."
            put(last, f"model.lm_head.dense.{kind}", arrays[f"{transform}dense.{kind}"])
            put(last, f"model.lm_head.layernorm.{kind}", arrays[f"{transform}LayerNorm.{kind}"])
            put(last, f"model.binary_head.{kind}", arrays[f"cls.seq_relationship.{kind}"])
    return states


def pack(path, states, *, mcore, **changes):
    return legacy.pack(path, legacy.members(states, {**YAML, "mcore_bert": mcore, **changes}))


@pytest.mark.parametrize("mcore", [True, False], ids=["mcore", "own"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (2, 2), (1, 4)])
def test_every_layout(tmp_path, tp, pp, mcore):
    arrays = tensors(tmp_path / "hf")
    source = pack(tmp_path / "x.nemo", ranks_of(arrays, mcore=mcore, tp=tp, pp=pp), mcore=mcore)
    convert(source, tmp_path / "back", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "back", arrays)
    assert verify(source, tmp_path / "hf").equal
    assert inspect(source)["layout"] == f"tp{tp} pp{pp}"
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert {key: config[key] for key in CONFIG} == CONFIG


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_the_heads_of_pretraining(tmp_path, tp, pp):
    arrays = tensors(tmp_path / "hf", "BertForPreTraining")
    source = pack(tmp_path / "x.nemo", ranks_of(arrays, mcore=False, tp=tp, pp=pp), mcore=False)
    convert(source, tmp_path / "back", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "back", tiny.load(tmp_path / "hf"))
    assert inspect(source)["architecture"] == "bert:BertForPreTraining"


def test_a_fused_gelu_is_by_tanh(tmp_path):
    """NeMo's script turns no fusion off, whose kernel does not compute what the source's config says."""
    arrays = tensors(tmp_path / "hf")
    for mcore, key in ((True, "bias_activation_fusion"), (False, "bias_gelu_fusion")):
        states = ranks_of(arrays, mcore=mcore)
        source = pack(tmp_path / f"{mcore}.nemo", states, mcore=mcore, **{key: True})
        convert(source, tmp_path / f"hf{mcore}", to="hf")
        config = json.loads((tmp_path / f"hf{mcore}/config.json").read_text())
        assert config["hidden_act"] == "gelu_new"


@pytest.mark.parametrize("cls", ["BertModel", "BertForPreTraining"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_rank_files_are_those_of_nemos_own_implementation(tmp_path, cls, tp, pp):
    """Entry by entry the state dicts of the builder above, which cuts by hand."""
    arrays = tensors(tmp_path / "hf", cls)
    options = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp, "rank_files": True}
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", verify=True, **options)
    with tarfile.open(tmp_path / "x.nemo") as archive:
        for (t, p), state in ranks_of(arrays, mcore=False, tp=tp, pp=pp).items():
            folder = "./" if tp * pp == 1 else f"./tp_rank_{t:02d}_pp_rank_{p:03d}/"
            data = archive.extractfile(folder + "model_weights.ckpt").read()
            held = torch.load(io.BytesIO(data), weights_only=True)
            assert held.keys() == state.keys()
            for key, value in state.items():
                assert torch.equal(held[key].view(torch.int16), value.view(torch.int16)), key
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf", verify=True)
    assert verify(tmp_path / "back", tmp_path / "hf").equal


@pytest.mark.parametrize("cls", ["BertModel", "BertForPreTraining"])
def test_there_and_back_and_to_nemo2(tmp_path, cls):
    tensors(tmp_path / "hf", cls)
    report = convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", tensor_parallel_size=2, verify=True)
    assert report.architecture == ("bert" if cls == "BertModel" else f"bert:{cls}")
    for name in ("x.nemo", "hf"):
        convert(tmp_path / name, tmp_path / f"{name}_2", to="nemo2", tensor_parallel_size=2, verify=True)
    for name in ("weights/__0_0.distcp", "weights/__1_0.distcp", "context/io.json"):
        assert (tmp_path / "x.nemo_2" / name).read_bytes() == (tmp_path / "hf_2" / name).read_bytes()
    convert(tmp_path / "x.nemo_2", tmp_path / "y.nemo", to="nemo", verify=True)
    convert(tmp_path / "y.nemo", tmp_path / "back", to="hf")
    assert verify(tmp_path / "back", tmp_path / "hf").equal


def test_another_layout_keeps_what_the_archive_holds(tmp_path):
    arrays = tensors(tmp_path / "hf", "BertForPreTraining")
    source = pack(tmp_path / "x.nemo", ranks_of(arrays, mcore=False, tp=2), mcore=False)
    from nemoconv.converters.run.reshard import reshard

    reshard(source, tmp_path / "y.nemo", tensor_parallel_size=1, pipeline_parallel_size=2)
    assert verify(tmp_path / "y.nemo", tmp_path / "hf").equal
    assert inspect(tmp_path / "y.nemo")["layout"] == "tp1 pp2"


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"transformer_block_type": "normformer"}, UnsupportedArchitecture, "MegatronBertModel"),
        ({"transformer_block_type": "pre_ln"}, MappingError, "post_att_layernorm"),
        ({"bert_binary_head": False}, UnsupportedConfig, "bert_binary_head"),
        ({"activation": "swiglu"}, UnsupportedConfig, "swiglu"),
        ({"normalization": "rmsnorm"}, UnsupportedConfig, "rmsnorm"),
        ({"megatron_legacy": True}, UnsupportedConfig, "megatron_legacy"),
        ({"position_embedding_type": "rope"}, UnsupportedArchitecture, "position_embedding_type"),
        ({"invented": 1}, UnsupportedConfig, "invented"),
    ],
)
def test_what_is_refused_is_named(tmp_path, changes, error, says):
    arrays = tensors(tmp_path / "hf")
    source = pack(tmp_path / "x.nemo", ranks_of(arrays, mcore=True), mcore=True, **changes)
    with pytest.raises(error, match=says) as caught:
        convert(source, tmp_path / "back", to="hf")
    assert "\n" not in str(caught.value)


def test_the_norm_that_megatron_core_adds_is_refused(tmp_path):
    """MegatronBertModel of megatron-core's layers normalises once more; transformers' does not."""
    states = ranks_of(tensors(tmp_path / "hf"), mcore=True)
    states[0, 0]["model.encoder.final_layernorm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
    with pytest.raises(UnsupportedArchitecture, match=r"normalises once more.*encoder\.final_layernorm"):
        convert(pack(tmp_path / "x.nemo", states, mcore=True), tmp_path / "back", to="hf")


@pytest.mark.parametrize("cls", ["BertForMaskedLM", "BertModel"])
def test_what_nemo_1_has_no_token_types_for(tmp_path, cls):
    types = 2 if cls == "BertForMaskedLM" else 3
    samples.build(tmp_path / "hf", {**CONFIG, "architectures": [cls], "type_vocab_size": types})
    with pytest.raises(UnsupportedConfig, match="token types"):
        convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo")
    assert not (tmp_path / "x.nemo").exists()


def test_a_tensor_too_many_or_too_few(tmp_path):
    arrays = tensors(tmp_path / "hf")
    for change in (
        lambda state: state.pop("model.encoder.layers.1.mlp.linear_fc2.bias"),
        lambda state: state.update({"model.encoder.layers.1.odd.weight": torch.ones(2)}),
    ):
        states = ranks_of(arrays, mcore=True)
        change(states[0, 0])
        with pytest.raises(MappingError):
            convert(pack(tmp_path / "x.nemo", states, mcore=True), tmp_path / "back", to="hf")


def test_ranks_of_experts_are_not_for_it(tmp_path):
    tensors(tmp_path / "hf")
    with pytest.raises(LayoutError):
        convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", expert_parallel_size=2, rank_files=True)
    with pytest.raises(NemoconvError):
        convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", tensor_parallel_size=3)
