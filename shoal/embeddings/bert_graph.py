"""BERT weights (safetensors) turned into an ONNX graph that ends in one unit vector per text.

Guarantee: the graph computes what sentence-transformers computes for a plain BERT encoder with mean or CLS
pooling and L2 normalisation (`tests/unit/embeddings/test_local_model.py` compares it with numpy). It uses
ONNX Runtime's fused CPU operators, so the file runs nowhere else. It does not tokenise and does not run
anything. A directory that is not such a model raises ConfigurationError; so do weights that don't fit.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.errors import ConfigurationError

GRAPH_REVISION = 1
"""Part of the cached file's name: raise it with every change to what `build_graph` emits."""

_OPSET, _IR_VERSION = 17, 8  # old enough for every ONNX Runtime of the last three years
_FUSED = "com.microsoft"  # the domain of ONNX Runtime's fused transformer operators

Tensors = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class BertShape:
    """What a model directory's JSON files tell; enough to plan with, no weights read."""

    width: int
    layers: int
    heads: int
    epsilon: float
    max_input_tokens: int  # special tokens included
    pooling: str  # "mean" or "cls"
    vocabulary: int


def read_shape(directory: Path) -> BertShape:
    """The shape of the sentence-transformers model in `directory`. Raises ConfigurationError if it is not a BERT."""
    config = read_json(directory / "config.json")
    for key, wanted in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if config.get(key, wanted) != wanted:
            raise ConfigurationError(f"model in {directory}: {key} is {config[key]!r}; only {wanted!r} can be run here")
    _check_modules(directory)
    pooling_file = directory / "1_Pooling" / "config.json"
    pooling = read_json(pooling_file) if pooling_file.exists() else {"pooling_mode_mean_tokens": True}
    modes = {key.removeprefix("pooling_mode_") for key, on in pooling.items() if key.startswith("pooling_mode_") and on}
    if modes not in ({"mean_tokens"}, {"cls_token"}):
        raise ConfigurationError(f"model in {directory}: pooling {sorted(modes)}; only mean or cls can be run here")
    sentence_file = directory / "sentence_bert_config.json"
    limit = read_json(sentence_file).get("max_seq_length") if sentence_file.exists() else None
    try:
        positions = int(config["max_position_embeddings"])
        shape = BertShape(
            width=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            epsilon=float(config.get("layer_norm_eps", 1e-12)),
            max_input_tokens=min(int(limit or positions), positions),
            pooling="cls" if "cls_token" in modes else "mean",
            vocabulary=int(config["vocab_size"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"model file {directory / 'config.json'} lacks a number: {error}") from None
    if min(shape.width, shape.layers, shape.heads) < 1 or shape.width % shape.heads or shape.max_input_tokens < 8:
        raise ConfigurationError(f"model file {directory / 'config.json'} describes no encoder: {shape}")
    return shape


def _check_modules(directory: Path) -> None:
    """A module that is not computed here (a dense layer after the pooling) would make other vectors, unnoticed."""
    file = directory / "modules.json"
    if not file.exists():
        return
    try:
        modules = json.loads(file.read_text(encoding="utf-8"))
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(f"model file {file} can't be read: {error}") from None
    if foreign := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ConfigurationError(f"model in {directory}: it has a module {foreign[0]!r}, which can't be run here")


def quantised_graph(graph: bytes, scratch: Path) -> bytes:
    """`graph` with int8 weights, one scale per output of a layer, and activations quantised as they come.

    One scale for a whole layer lost the vectors' direction: cosine to fp32 0.90 to 0.94 over 24 texts of 180 tokens,
    against 0.990 to 0.993 with one per output. An activation's scale is of the whole run, so a text's vector depends
    on what it is run with: run texts alone. `scratch`: a directory for the tool's output.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load_from_string(graph)
    # Its preparations (fusing operators, inferring shapes) are done or can't be: without this mark it advises them.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".quantising-") as directory:
        path = Path(directory) / "graph.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul", "Attention"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # fused operators have no shape inference
        )
        return path.read_bytes()


def build_graph(directory: Path, shape: BertShape) -> bytes:
    """The serialised graph: inputs `ids` and `mask` (int32, texts x tokens), output `vectors` (float32, texts x width).

    `mask` is 1 for a token and 0 for padding, which stands on the right. Raises ConfigurationError.
    """
    from onnx import TensorProto, helper, numpy_helper
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        weights: Tensors = {name.removeprefix("bert."): w for name, w in load_file(_weights_file(directory)).items()}
        constants = _constants(weights, shape)
        weights.clear()
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"model in {directory}: its weights are not those of a BERT encoder ({error})"
        ) from None

    nodes: list[Any] = []

    def node(operator: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))
        return output

    nodes.append(
        helper.make_node(
            "EmbedLayerNormalization",
            ["ids", "", "words", "positions", "segments", "embed_gamma", "embed_beta", "mask"],
            ["x", "lengths"],
            domain=_FUSED,
            epsilon=shape.epsilon,
        )
    )
    x = "x"
    for i in range(shape.layers):
        x = _layer(node, i, x, shape)
    if shape.pooling == "mean":
        node("Cast", ["mask"], "mask_float", to=TensorProto.FLOAT)
        node("Unsqueeze", ["mask_float", "last_axis"], "weights")
        node("Mul", [x, "weights"], "kept")
        # A sum has the direction of the mean, and only the direction is left after normalisation.
        node("ReduceSum", ["kept", "token_axis"], "pooled", keepdims=0)
    else:
        node("Gather", [x, "first"], "pooled", axis=1)
    node("LpNormalization", ["pooled"], "vectors", axis=-1, p=2)

    texts_tokens = ["texts", "tokens"]
    graph = helper.make_graph(
        nodes,
        "sentence_bert",
        [helper.make_tensor_value_info(name, TensorProto.INT32, texts_tokens) for name in ("ids", "mask")],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["texts", shape.width])],
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_FUSED, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="shoal")
    while constants:  # one by one: a copy of all weights less in memory
        name, array = constants.popitem()
        model.graph.initializer.append(numpy_helper.from_array(array, name))
        del array
    serialised: bytes = model.SerializeToString()
    return serialised


def _layer(node: Callable[..., str], i: int, x: str, shape: BertShape) -> str:
    name = f"layer{i}_"
    node("Attention", [x, name + "qkv", name + "qkv_bias", "lengths"], name + "heads", _FUSED, num_heads=shape.heads)
    node("MatMul", [name + "heads", name + "out"], name + "projected")
    a = node(
        "SkipLayerNormalization",
        [name + "projected", x, name + "gamma1", name + "beta1", name + "out_bias"],
        name + "attended", _FUSED, epsilon=shape.epsilon,
    )  # fmt: skip
    node("MatMul", [a, name + "up"], name + "raised")
    node("BiasGelu", [name + "raised", name + "up_bias"], name + "active", _FUSED)
    node("MatMul", [name + "active", name + "down"], name + "lowered")
    return node(
        "SkipLayerNormalization",
        [name + "lowered", a, name + "gamma2", name + "beta2", name + "down_bias"],
        name + "x", _FUSED, epsilon=shape.epsilon,
    )  # fmt: skip


def _constants(weights: Tensors, shape: BertShape) -> dict[str, npt.NDArray[Any]]:
    """The graph's initialisers. Dense weights are transposed: torch stores (out, in), MatMul wants (in, out)."""

    def transposed(name: str) -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(weights[name].T, dtype=np.float32)

    constants: dict[str, npt.NDArray[Any]] = {
        "words": weights["embeddings.word_embeddings.weight"],
        "positions": weights["embeddings.position_embeddings.weight"],
        "segments": weights["embeddings.token_type_embeddings.weight"],
        "embed_gamma": weights["embeddings.LayerNorm.weight"],
        "embed_beta": weights["embeddings.LayerNorm.bias"],
        "token_axis": np.array([1], np.int64),
        "last_axis": np.array([-1], np.int64),
        "first": np.array(0, np.int64),
    }
    for i in range(shape.layers):
        source, name = f"encoder.layer.{i}.", f"layer{i}_"
        qkv = [f"{source}attention.self.{part}." for part in ("query", "key", "value")]
        constants |= {
            name + "qkv": np.concatenate([transposed(part + "weight") for part in qkv], axis=1),
            name + "qkv_bias": np.concatenate([weights[part + "bias"] for part in qkv]),
            name + "out": transposed(source + "attention.output.dense.weight"),
            name + "out_bias": weights[source + "attention.output.dense.bias"],
            name + "gamma1": weights[source + "attention.output.LayerNorm.weight"],
            name + "beta1": weights[source + "attention.output.LayerNorm.bias"],
            name + "up": transposed(source + "intermediate.dense.weight"),
            name + "up_bias": weights[source + "intermediate.dense.bias"],
            name + "down": transposed(source + "output.dense.weight"),
            name + "down_bias": weights[source + "output.dense.bias"],
            name + "gamma2": weights[source + "output.LayerNorm.weight"],
            name + "beta2": weights[source + "output.LayerNorm.bias"],
        }
    if constants["words"].shape[1:] != (shape.width,):
        raise ValueError(f"width {constants['words'].shape[1:]} where config.json says {shape.width}")
    return {name: array.astype(np.float32) if array.dtype.kind == "f" else array for name, array in constants.items()}


def _weights_file(directory: Path) -> Path:
    return directory / "model.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model directory. Raises ConfigurationError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"model file {path} can't be read: {error}") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"model file {path} is not a JSON object")
    return value
