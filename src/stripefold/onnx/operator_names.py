"""Which ONNX operators are a reshape, a view, a widening, a pooling: one set per meaning."""

from __future__ import annotations

# Show every element of their operand, in its order, under another shape.
RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
# Show elements larger: again, or between one another.
WIDENING = frozenset({"Expand", "Tile", "Resize", "Upsample"})
# Show what their operand holds and nothing else, in whatever order or number.
VIEWS = RESHAPES | {"Transpose", "Identity", "Cast", "Expand", "Tile", "Dropout"}
# Poolings of a map's positions, whose channels are axis 1.
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool"})
REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"})
