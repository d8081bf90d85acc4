"""Embed a few sentences with a BERT encoder: the serving program of the demo and of the end-to-end tests.

The encoder's graph is built here from config.json, its weights come from model.safetensors, the text goes through
tokenizer.json, and onnxruntime does the arithmetic. One line of JSON says what came out.

usage: embed.py [MODEL_DIR]     (default: the only folder in /models)
"""

import hashlib
import json
import os
import sys
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from safetensors.numpy import load_file
from tokenizers import Tokenizer

SENTENCES = {
    "a": "A fleet of ships sails into the harbour at dawn.",
    "a_again": "Boats come in to port early in the morning.",
    "b": "The quarterly report shows a sharp fall in revenue.",
    "b_again": "Sales dropped steeply over the last three months.",
}
PAIRS = [("a", "a_again"), ("b", "b_again"), ("a", "b"), ("a_again", "b_again")]
OPSET = 20  # the first with Gelu


def main():
    start = time.monotonic()
    folder = sys.argv[1] if len(sys.argv) > 1 else only_model("/models")
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)
    weights = load_file(os.path.join(folder, "model.safetensors"))
    weights = {name: w for name, w in weights.items() if name.startswith(("embeddings.", "encoder."))}
    session = new_session(encoder(config, weights))
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    tokenizer.enable_padding()
    loaded = time.monotonic()

    vectors = embed(session, tokenizer, weights, list(SENTENCES.values()))
    by_name = dict(zip(SENTENCES, vectors))
    rounded = np.round(vectors, 4).astype("<f4") + 0.0  # + 0.0 turns -0 into 0
    print(json.dumps({
        "digest": hashlib.sha256(rounded.tobytes()).hexdigest(),
        "cosine": {f"{x}~{y}": round(float(by_name[x] @ by_name[y]), 4) for x, y in PAIRS},
        "load_seconds": round(loaded - start, 3),
        "infer_seconds": round(time.monotonic() - loaded, 3),
    }))


def only_model(root):
    found = [os.path.join(root, name) for name in sorted(os.listdir(root))]
    if len(found) != 1:
        sys.exit(f"embed.py: {root} holds {len(found)} models, name one: embed.py MODEL_DIR")
    return found[0]


def embed(session, tokenizer, weights, sentences):
    batch = tokenizer.encode_batch(sentences)
    ids = np.array([e.ids for e in batch], dtype=np.int64)
    mask = np.array([e.attention_mask for e in batch], dtype=np.float32)
    positions = np.arange(ids.shape[1], dtype=np.int64)[None, :]
    (hidden,) = session.run(None, {"ids": ids, "mask": mask, "positions": positions, **weights})
    mean = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def new_session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # one order of additions, one result
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def encoder(config, weights):
    """Return the encoder as an ONNX model whose inputs are the batch and all weights."""
    g = Graph(config)
    g.embeddings()
    for n in range(config["num_hidden_layers"]):
        g.layer(f"encoder.layer.{n}.")
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"]),
        helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", "length"]),
        helper.make_tensor_value_info("positions", TensorProto.INT64, [1, "length"]),
    ]
    for name in list(weights):
        if name not in g.used:
            del weights[name]
    inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(w.shape)) for n, w in weights.items()]
    output = helper.make_tensor_value_info(g.last, TensorProto.FLOAT, ["batch", "length", config["hidden_size"]])
    graph = helper.make_graph(g.nodes, "bert", inputs, [output], g.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


class Graph:
    """A BERT encoder as a growing list of ONNX nodes; last names the newest hidden state."""

    def __init__(self, config):
        self.nodes, self.constants, self.used = [], [], set()
        self.last = None
        self.heads = config["num_attention_heads"]
        self.head_size = config["hidden_size"] // self.heads
        self.epsilon = config["layer_norm_eps"]
        if config["hidden_act"] != "gelu":
            sys.exit(f"embed.py: activation {config['hidden_act']} is not gelu")

    def op(self, kind, *inputs, **attributes):
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        self.used.update(inputs)
        return name

    def ints(self, *values):
        return self.constant(TensorProto.INT64, [len(values)], values)

    def scalar(self, value):
        return self.constant(TensorProto.FLOAT, [], [value])

    def constant(self, kind, shape, values):
        name = f"c{len(self.constants)}"
        self.constants.append(helper.make_tensor(name, kind, shape, values))
        return name

    def embeddings(self):
        p = "embeddings."
        words = self.op("Gather", p + "word_embeddings.weight", "ids")
        places = self.op("Gather", p + "position_embeddings.weight", "positions")
        kinds = self.op("Gather", p + "token_type_embeddings.weight", self.ints(0))
        self.last = self.norm(p + "LayerNorm", self.op("Add", self.op("Add", words, places), kinds))
        # Padding gets a large negative score: (mask - 1) * 1e9, as [batch, 1, 1, length].
        away = self.op("Mul", self.op("Sub", "mask", self.scalar(1.0)), self.scalar(1e9))
        self.bias = self.op("Unsqueeze", away, self.ints(1, 2))

    def layer(self, p):
        mixed = self.attention(p + "attention.")
        x = self.norm(p + "attention.output.LayerNorm", self.op("Add", mixed, self.last))
        wide = self.op("Gelu", self.linear(p + "intermediate.dense", x))
        y = self.linear(p + "output.dense", wide)
        self.last = self.norm(p + "output.LayerNorm", self.op("Add", y, x))

    def attention(self, p):
        q, k, v = (self.split(self.linear(p + "self." + name, self.last)) for name in ("query", "key", "value"))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.op("Mul", scores, self.scalar(self.head_size ** -0.5))
        weights = self.op("Softmax", self.op("Add", scores, self.bias), axis=-1)
        joined = self.op("Transpose", self.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        joined = self.op("Reshape", joined, self.ints(0, 0, self.heads * self.head_size))
        return self.linear(p + "output.dense", joined)

    def split(self, x):
        apart = self.op("Reshape", x, self.ints(0, 0, self.heads, self.head_size))
        return self.op("Transpose", apart, perm=[0, 2, 1, 3])

    def linear(self, p, x):
        turned = self.op("Transpose", p + ".weight", perm=[1, 0])
        return self.op("Add", self.op("MatMul", x, turned), p + ".bias")

    def norm(self, p, x):
        return self.op("LayerNormalization", x, p + ".weight", p + ".bias", epsilon=self.epsilon)


if __name__ == "__main__":
    main()
