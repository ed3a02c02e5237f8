# SPDX-License-Identifier: Apache-2.0
"""ONNX models built operator by operator, with nothing but the package ``onnx``.

Tracing the PyTorch code would carry its general forms over: a Fourier transform that ONNX Runtime
computes many times slower than a matrix product, a cut whose length hangs on the data. Written out,
a graph holds for any batch and any length from one sample on, has no branch and no loop, and does a
clip in a fraction of the time. Tests hold it to the PyTorch code.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

OPSET, IR_VERSION = 18, 8  # ONNX Runtime reads them from 1.14 on, of 2023

#: Name, kind of numbers and shape of an input or output; letters stand for any length.
Value: TypeAlias = tuple[str, str, list[Any]]


class Graph:
    """Operators in order. Values are names; ``scope`` goes before the names of the operators."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[tuple[Any, ...], tuple[str, np.ndarray]] = {}
        self.scope = ""

    def number(self, value: Any) -> str:
        """Name an array of floats; equal ones are stored once."""
        return self._constant(np.array(value, dtype=np.float32))

    def integers(self, *values: int) -> str:
        """Name a vector of integers: axes, shapes, positions."""
        return self._constant(np.array(values, dtype=np.int64))

    def _constant(self, array: np.ndarray) -> str:
        key = (array.dtype.str, array.shape, array.tobytes())
        return self.constants.setdefault(key, (f"constant_{len(self.constants)}", array))[0]

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add an operator of one output, and return the output's name."""
        from onnx import helper

        name = output or f"value_{len(self.nodes)}"
        label = f"{self.scope}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=label, **attributes))
        return name

    def cast(self, value: str, kind: str) -> str:
        """Convert the kind of numbers: FLOAT, DOUBLE, INT32, INT64, BOOL."""
        from onnx import TensorProto

        return self.op("Cast", value, to=getattr(TensorProto, kind))

    def size(self, value: str, axis: int) -> str:
        """Length of an axis, (1,)."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def count_to(self, length: str) -> str:
        """0, 1, … up to a length (1,)."""
        stop = self.op("Squeeze", length)
        one, zero = self.op("Squeeze", self.integers(1)), self.op("Squeeze", self.integers(0))
        return self.op("Range", zero, stop, one)


def make_model(
    graph: Graph,
    metadata: dict[str, str],
    inputs: list[Value],
    outputs: list[Value],
) -> Any:
    """Make a model, an ``onnx.ModelProto``, of a graph; it is checked."""
    from onnx import TensorProto, checker, helper, numpy_helper

    def described(values: list[Value]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)
            for name, kind, shape in values
        ]

    constants = [numpy_helper.from_array(array, name) for name, array in graph.constants.values()]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "timnet", described(inputs), described(outputs), constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="timnet_hf",
        producer_version=metadata.get("timnet_hf_version", ""),
    )
    helper.set_model_props(model, metadata)
    checker.check_model(model)
    return model


__all__ = ["Graph", "IR_VERSION", "OPSET", "Value", "make_model"]
