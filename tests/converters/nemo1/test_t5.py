"""NeMo 1's MegatronT5Model: archives as NeMo's own script for T5 1.1 makes them, and those that we write."""

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
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import (
    CorruptCheckpoint,
    LayoutError,
    MappingError,
    NemoconvError,
    UnsupportedArchitecture,
    UnsupportedConfig,
)
from nemoconv.mappings import load_table, samples
from nemoconv.mappings.table import GROUP

torch = pytest.importorskip("torch")

LAYERS, HIDDEN, FFN, HEADS, CHANNELS, ROWS = 3, 16, 24, 4, 8, 256
CONFIG = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": HIDDEN, "d_ff": FFN,
    "d_kv": CHANNELS, "num_heads": HEADS, "num_layers": LAYERS, "num_decoder_layers": LAYERS,
    "vocab_size": ROWS, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
MODELS = "nemo.collections.nlp.models.language_modeling."
#: as in NeMo's hf_t5v1_1_base_config.yaml
SECTION = {
    "num_layers": LAYERS, "hidden_size": HIDDEN, "ffn_hidden_size": FFN, "num_attention_heads": HEADS,
    "init_method_std": 0.02, "hidden_dropout": 0.0, "attention_dropout": 0.0, "ffn_dropout": 0.0,
    "position_embedding_type": "relative", "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128, "relative_position_bias_self_attention_only": True,
    "kv_channels": CHANNELS, "apply_query_key_layer_scaling": False, "layernorm_epsilon": 1e-6,
    "persist_layer_norm": True, "bias_activation_fusion": False, "grad_div_ar_fusion": True,
    "masked_softmax_fusion": False, "bias_dropout_add_fusion": False, "bias": False,
    "normalization": "rmsnorm", "arch": "transformer", "activation": "geglu", "headscale": False,
    "transformer_block_type": "pre_ln", "hidden_steps": 32, "num_self_attention_per_cross_attention": 1,
    "openai_gelu": True, "onnx_safe": False, "fp32_residual_connection": False,
    "activations_checkpoint_method": None, "activations_checkpoint_num_layers": 1, "megatron_legacy": True,
    "normalize_attention_scores": False,
}  # fmt: skip
YAML = {
    "encoder": SECTION, "decoder": SECTION, "micro_batch_size": 4, "global_batch_size": 8,
    "pipeline_model_parallel_split_rank": 0, "make_vocab_size_divisible_by": 128, "megatron_amp_O2": False,
    "seq_length": 512, "max_position_embeddings": 512, "embedding_init_method_std": 0.02,
    "embedding_dropout": 0.1, "share_token_embeddings": True, "share_decoder_tokens_head_embeddings": False,
    "tokens_head_bias": False, "fp16_lm_cross_entropy": False, "precision": "bf16",
    "tokenizer": {"library": "sentencepiece", "type": None, "model": None, "num_sentinel_tokens": 100},
    "target": MODELS + "megatron_t5_model.MegatronT5Model", "library": "huggingface-t5v1_1",
}  # fmt: skip


def hf_model(folder, **changes):
    samples.build(folder, {**CONFIG, **changes})
    return tiny.load(folder)


def together(parts, tp, rank, *, blocks):
    """q, k and v (or k and v) of a rank's heads, in NeMo's two orders."""
    split = [
        part.reshape(HEADS, CHANNELS, HIDDEN)[rank * HEADS // tp : (rank + 1) * HEADS // tp] for part in parts
    ]
    return numpy.stack(split, axis=0 if blocks else 1).reshape(-1, HIDDEN)


def ranks_of(arrays, *, tp=1, blocks=True, fused=False, module=""):
    """The state dicts of all ranks, cut by hand."""
    states = {(t, 0): {} for t in range(tp)}
    for (t, _), state in states.items():

        def put(name, array, axis=None, *, state=state, t=t):
            piece = array if axis is None else numpy.split(array, tp, axis=axis)[t]
            state[f"enc_dec_model.{module}{name}"] = legacy.tensor(piece)

        for stack in ("encoder", "decoder"):
            put(f"{stack}_embedding.word_embeddings.weight", arrays["shared.weight"], 0)
            bias = arrays[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
            put(f"{stack}_relative_position_embedding.relative_position_embedding.weight", bias)
            top = f"enc_dec_model.{stack}.model."
            put(top + "final_layernorm.weight", arrays[f"{stack}.final_layer_norm.weight"])
            norms = ["input", "post_attention", "post_inter_attention"][: 2 + (stack == "decoder")]
            for layer in range(LAYERS):
                hf, own = f"{stack}.block.{layer}.layer.", f"{top}layers.{layer}."
                for number, norm in enumerate(norms):
                    put(f"{own}{norm}_layernorm.weight", arrays[f"{hf}{number}.layer_norm.weight"])
                qkv = [arrays[f"{hf}0.SelfAttention.{n}.weight"] for n in "qkv"]
                put(own + "self_attention.query_key_value.weight", together(qkv, tp, t, blocks=blocks))
                put(own + "self_attention.dense.weight", arrays[f"{hf}0.SelfAttention.o.weight"], 1)
                if stack == "decoder":
                    cross = {n: arrays[f"{hf}1.EncDecAttention.{n}.weight"] for n in "qkvo"}
                    put(own + "inter_attention.query.weight", cross["q"], 0)
                    pair = together([cross["k"], cross["v"]], tp, t, blocks=blocks)
                    put(own + "inter_attention.key_value.weight", pair)
                    put(own + "inter_attention.dense.weight", cross["o"], 1)
                mlp = f"{hf}{len(norms) - 1}.DenseReluDense."
                halves = [numpy.split(arrays[f"{mlp}wi_{n}.weight"], tp)[t] for n in (0, 1)]
                if fused:
                    put(own + "mlp.dense_h_to_4h.weight", numpy.concatenate(halves))
                else:
                    put(own + "mlp.dense_h_to_4h.weight", halves[0])
                    put(own + "mlp.dense_h_to_4h_2.weight", halves[1])
                put(own + "mlp.dense_4h_to_h.weight", arrays[mlp + "wo.weight"], 1)
        put("tokens_head.weight", arrays["lm_head.weight"], 0)
    return states


def pack(path, states, section=(), **changes):
    told = {**SECTION, **dict(section)}
    return legacy.pack(path, legacy.members(states, {**YAML, "encoder": told, "decoder": told, **changes}))


@pytest.mark.parametrize("fused", [False, True], ids=["two matrices", "one matrix"])
@pytest.mark.parametrize("blocks", [True, False], ids=["blocks", "by head"])
@pytest.mark.parametrize("tp", [1, 2])
def test_every_layout(tmp_path, tp, blocks, fused):
    arrays = hf_model(tmp_path / "hf")
    states = ranks_of(arrays, tp=tp, blocks=blocks, fused=fused)
    said = {"megatron_legacy": blocks, "activation": "fast-geglu" if fused else "geglu"}
    source = pack(tmp_path / "x.nemo", states, said)
    convert(source, tmp_path / "back", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "back", arrays)
    assert verify(source, tmp_path / "hf").equal
    assert inspect(source)["architecture"] == "t5"
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert {key: config[key] for key in CONFIG} == CONFIG
    convert(source, tmp_path / "nemo2", to="nemo2", tensor_parallel_size=2, verify=True)
    assert verify(tmp_path / "nemo2", tmp_path / "hf").equal


def test_the_order_of_heads_is_what_the_config_says(tmp_path):
    """The control: the same bytes, told to lie the other way, are another model."""
    arrays = hf_model(tmp_path / "hf")
    source = pack(tmp_path / "x.nemo", ranks_of(arrays, blocks=True), {"megatron_legacy": False})
    assert not verify(source, tmp_path / "hf").equal


@pytest.mark.parametrize("kind", ["gated-gelu", "gated-silu"])
@pytest.mark.parametrize("tp", [1, 2])
def test_what_is_written_is_nemos_state_dict(tmp_path, tp, kind):
    """Entry by entry the state dicts of the builder above, which cuts by hand."""
    arrays = hf_model(tmp_path / "hf", feed_forward_proj=kind)
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", tensor_parallel_size=tp, verify=True)
    with tarfile.open(tmp_path / "x.nemo") as archive:
        for (t, _), state in ranks_of(arrays, tp=tp, blocks=False, fused=True).items():
            folder = "./" if tp == 1 else f"./mp_rank_{t:02d}/"
            data = archive.extractfile(folder + "model_weights.ckpt").read()
            held = torch.load(io.BytesIO(data), weights_only=True)
            assert held.keys() == state.keys()
            for key, value in state.items():
                assert torch.equal(held[key].view(torch.int16), value.view(torch.int16)), key
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf", verify=True)
    assert verify(tmp_path / "back", tmp_path / "hf").equal
    assert json.loads((tmp_path / "back/config.json").read_text())["feed_forward_proj"] == kind


def test_mt5_stays_itself(tmp_path):
    changes = {"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}
    arrays = hf_model(tmp_path / "hf", **changes)
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", verify=True)
    report = convert(tmp_path / "x.nemo", tmp_path / "back", to="hf", verify=True)
    assert report.architecture == "mt5"
    legacy.assert_holds(tmp_path / "back", arrays)


def test_from_nemo2_and_with_amp_o2_and_the_tokenizer(tmp_path):
    arrays = hf_model(tmp_path / "hf")
    (tmp_path / "hf/spiece.model").write_bytes(b"any")
    convert(tmp_path / "hf", tmp_path / "nemo2", to="nemo2", verify=True)
    convert(tmp_path / "nemo2", tmp_path / "x.nemo", to="nemo", verify=True)
    assert verify(tmp_path / "x.nemo", tmp_path / "hf").equal
    convert(tmp_path / "hf", tmp_path / "y.nemo", to="nemo")
    convert(tmp_path / "y.nemo", tmp_path / "back", to="hf")
    assert (tmp_path / "back/spiece.model").read_bytes() == b"any"
    source = pack(tmp_path / "z.nemo", ranks_of(arrays, module="module."), megatron_amp_O2=True)
    assert verify(source, tmp_path / "hf").equal


def test_another_layout_has_its_heads_together(tmp_path):
    arrays = hf_model(tmp_path / "hf")
    source = pack(tmp_path / "x.nemo", ranks_of(arrays))
    reshard(source, tmp_path / "y.nemo", tensor_parallel_size=2)
    assert verify(tmp_path / "y.nemo", tmp_path / "hf").equal
    with tarfile.open(tmp_path / "y.nemo") as archive:
        member = next(name for name in archive.getnames() if "mp_rank_01" in name and name.endswith("ckpt"))
        held = torch.load(io.BytesIO(archive.extractfile(member).read()), weights_only=True)
    state = ranks_of(arrays, tp=2, blocks=False)[1, 0]
    assert held.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(held[key].view(torch.int16), value.view(torch.int16)), key
    with pytest.raises(LayoutError, match="pipeline stages"):
        reshard(source, tmp_path / "z.nemo", pipeline_parallel_size=3)


@pytest.mark.parametrize(
    ("section", "changes", "says"),
    [
        ({"position_embedding_type": "learned_absolute"}, {}, "position_embedding_type"),
        ({"normalize_attention_scores": True}, {}, "normalize_attention_scores"),
        ({"apply_query_key_layer_scaling": True}, {}, "apply_query_key_layer_scaling"),
        ({"relative_attention_num_buckets": 64}, {}, "relative_attention_num_buckets"),
        ({"relative_position_bias_self_attention_only": False}, {}, "self_attention_only"),
        ({"normalization": "layernorm"}, {}, "normalization"),
        ({"activation": "geglu", "openai_gelu": False}, {}, "openai_gelu"),
        ({"activation": "swiglu"}, {}, "openai_gelu"),
        ({"arch": "perceiver"}, {}, "perceiver"),
        ({"bias": True}, {}, "add_bias_linear"),
        ({"invented": 1}, {}, "invented"),
        ({}, {"encoder": {**SECTION, "num_layers": 2}}, "encoder_num_layers"),
        ({}, {"encoder": {**SECTION, "megatron_legacy": False}}, "megatron_legacy"),
        ({}, {"share_decoder_tokens_head_embeddings": True}, "share_decoder_tokens_head_embeddings"),
        ({}, {"tokens_head_bias": True}, "tokens_head_bias"),
        ({}, {"share_token_embeddings": False}, "share_token_embeddings"),
        ({}, {"mcore_t5": True}, "mcore_t5"),
        ({}, {"encoder": None, "decoder": None}, "no encoder section"),
        ({}, {"invented": 1}, "invented"),
        ({}, {"target": MODELS + "megatron_bart_model.MegatronBARTModel"}, "encoder-decoders"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(tmp_path, section, changes, says):
    source = pack(tmp_path / "x.nemo", ranks_of(hf_model(tmp_path / "hf")), section, **changes)
    with pytest.raises((UnsupportedConfig, UnsupportedArchitecture), match=says) as caught:
        convert(source, tmp_path / "back", to="hf")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "back").exists()


def test_a_swiglu_that_nemo_computes_as_gelu_is_taken_for_what_a_config_json_says(tmp_path):
    """UL2, of which NeMo's script leaves openai_gelu on."""
    arrays = hf_model(tmp_path / "hf", feed_forward_proj="gated-silu")
    source = pack(tmp_path / "x.nemo", ranks_of(arrays), {"activation": "swiglu"})
    convert(source, tmp_path / "back", to="hf", config=tmp_path / "hf/config.json", verify=True)
    legacy.assert_holds(tmp_path / "back", arrays)


def test_copies_that_differ_and_tensors_too_many_or_too_few(tmp_path):
    arrays = hf_model(tmp_path / "hf")
    embedding = "enc_dec_model.decoder_embedding.word_embeddings.weight"
    layer = "enc_dec_model.enc_dec_model.decoder.model.layers.1."
    for change, error in (
        (lambda state: state.update({embedding: state[embedding] + 1}), CorruptCheckpoint),
        (lambda state: state.pop(layer + "inter_attention.query.weight"), MappingError),
        (lambda state: state.update({layer + "odd.weight": torch.ones(2)}), MappingError),
        (lambda state: state.update({"enc_dec_model.tokens_head.bias": torch.ones(ROWS)}), MappingError),
    ):
        states = ranks_of(arrays)
        change(states[0, 0])
        with pytest.raises(error):
            convert(pack(tmp_path / "x.nemo", states), tmp_path / "back", to="hf")
        assert not (tmp_path / "back").exists()


def test_what_nemo_1_has_no_ranks_for(tmp_path):
    hf_model(tmp_path / "hf")
    with pytest.raises(LayoutError, match="pipeline stages"):
        convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", pipeline_parallel_size=3)
    with pytest.raises(NemoconvError):
        convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", tensor_parallel_size=3)
    assert not (tmp_path / "x.nemo").exists()


def test_layers_beyond_all_measure_are_refused_at_once(tmp_path):
    states = ranks_of(hf_model(tmp_path / "hf"))
    with pytest.raises(CorruptCheckpoint, match="num_layers=1000000000"):
        convert(pack(tmp_path / "x.nemo", states, {"num_layers": 10**9}), tmp_path / "back", to="hf")


@pytest.mark.parametrize("tp", [1, 2])
def test_rows_in_another_order_are_not_the_tensor(tmp_path, tp):
    """Where q, k and v lie in blocks, even a single rank has no ``linear_qkv`` without the rule."""
    states = ranks_of(hf_model(tmp_path / "hf"), tp=tp)
    whole = pack(tmp_path / "x.nemo", states)
    refused = pack(tmp_path / "y.nemo", states, {"normalization": "batchnorm"})
    fused = [f"{stack}.layers.0.self_attention.linear_qkv.weight" for stack in ("encoder", "decoder")]
    fused.append("decoder.layers.0.cross_attention.linear_kv.weight")
    with open_checkpoint(whole) as known, open_checkpoint(refused) as opened:
        for name in fused:
            with pytest.raises(UnsupportedConfig, match="cannot be joined without its rule.*batchnorm"):
                opened.read(name)
            assert len(opened.pieces(name)) == tp
            assert known.read(name).shape[1] == HIDDEN
        others = [name for name in opened.keys() if opened.joins(name)]  # noqa: SIM118
        assert len(others) == (len(opened.keys()) - 3 * LAYERS if tp == 1 else 0)
        for name in others:
            assert opened.read(name).tobytes() == known.read(name).tobytes()
    rules = [rule for rule in load_table("t5").rules if rule.cut == GROUP and len(rule.parts) > 1]
    assert {rule.nemo.split(".")[-2] for rule in rules} == {"linear_qkv", "linear_kv"}
