"""Names of tensor operations by meaning: the one home of every such set, from sums and views to what keeps an axis.

Names are the dispatcher's, without ``aten::`` and a trailing underscore; what is not named is judged by its operands
alone. Two sets that differ on purpose stand side by side, with the reason. What an operation does to a scale or a shift
of the channels stands in ``operation_table``, as rules and not as names.
"""

from __future__ import annotations

import math
from typing import Any


def names(words: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(words.split())


def operation_name(func: Any) -> str:
    """The name of an operation that a dispatch mode is shown."""
    return str(func._schema.name.removeprefix("aten::").rstrip("_"))


# Names that the recorder gives, beside those of torch: a whole recurrent network, what an in-place function left in a
# value, a number divided by a tensor (of several overloads), and what has left a layer another way than as its output.
RECURRENT = "recurrent"
WRITE = "write"
DIVIDED_NUMBER = "rdiv"
ESCAPED = "escaped"
RECORDERS_OWN = frozenset({RECURRENT, WRITE, DIVIDED_NUMBER, ESCAPED})

# Sums and products.

# Plain sums of two values with a sign; ``ADDITIONS`` are all in which two values (or more) meet as summands.
SIGNED_SUMS = names("add sub rsub")
ADDITIONS = SIGNED_SUMS | names("lerp addcmul")
# A sum over the dimension along which values were stacked just before.
REDUCTIONS = names("sum mean")
# One value times another, or times one over it; nothing is added.
PRODUCTS = names("mul div")
DIVISIONS = names("div addcdiv")
FUSED_PRODUCTS = names("addcmul addcdiv")
# Whose last two operands are multiplied as they are: counted alike in a trace and by a dispatch mode.
MULTIPLICATIONS = names("mul addcmul")
# What a multiplication is called in Python code, as a method of a tensor.
MULTIPLYING_METHODS = names("mul mul_ multiply")
ARITHMETIC = SIGNED_SUMS | PRODUCTS
# Elementwise, of two maps of one shape.
MEETINGS = names("add sub mul addcmul")

# Choices and collections.

# One value or another, by a third; ``lerp`` blends them.
CHOICES = names("where masked_fill lerp")
# Every operand is found again in the result, next to or instead of the others.
COLLECTIONS = names(
    "cat concat concatenate stack hstack vstack where maximum minimum index_put copy write scatter slice_scatter "
    "select_scatter slice_backward masked_scatter _unsafe_index_put"
)
# Add a dimension for the pieces, or take one away.
STACKS = names("stack unbind")
# Rows of a table picked by integers: the result depends on the input although the table does not.
LOOKUPS = names("embedding embedding_bag _embedding_bag index index_select gather take")
# Fresh tensors that take nothing but shape and type from their operand.
FACTORIES = names(
    "empty_like zeros_like ones_like full_like rand_like randn_like randint_like "
    "new_empty new_zeros new_ones new_full new_empty_strided"
)
# Hand a value to Python: what ``if``, ``float()`` and ``.item()`` do.
INTO_PYTHON = names("_local_scalar_dense equal is_nonzero item")
# Methods of tensors that do so without an operation.
OUT_OF_TORCH = names("tolist numpy __array__ __dlpack__ untyped_storage")
# The old content of the first operand does not matter.
OVERWRITES = names("copy fill zero normal uniform bernoulli exponential random")

# Views: rearrange elements and compute nothing.

PERMUTATIONS = names("permute transpose t movedim")
BROADCASTS = names("expand expand_as")
VIEWS = (
    PERMUTATIONS
    | BROADCASTS
    | names(
        "view reshape _unsafe_view _reshape_alias flatten unflatten squeeze unsqueeze as_strided alias detach "
        "contiguous clone _to_copy to lift_fresh slice select narrow split split_with_sizes chunk unbind view_as roll "
        "flip pixel_shuffle pixel_unshuffle channel_shuffle dropout"
    )
)
# Views under which a layer and its only consumer are still neighbours.
RESHAPES = names("view reshape _unsafe_view _reshape_alias flatten unflatten squeeze unsqueeze clone")
# Views that show every element of their operand and no other, in its own order, or in whatever order.
IN_ORDER = RESHAPES | names("expand alias detach contiguous")
WHOLE_VIEWS = IN_ORDER | PERMUTATIONS
# Show elements again, moved or cut, beside zeros; a sum over windows weighs neighbours of one map.
REARRANGING = VIEWS | names("stack cat concat concatenate im2col unfold constant_pad_nd write copy")

# Poolings.

# Means, over all positions or windows of them.
AVERAGES = names(
    "mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d"
)
MAXIMA = names(
    "amax max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d"
)
# What a descriptor may be pooled by.
POOLINGS = AVERAGES | MAXIMA | names("sum")

# Functions with bounds.

# Limit a value at one side or at both; as a factor only what has both bounds is a gate (``SQUASHING``).
CLAMPS = names("clamp clamp_min clamp_max")
LIMITS = CLAMPS | names("hardtanh threshold")
# With a second operand as the bound.
CLAMPS_BY_OPERAND = CLAMPS | names("maximum minimum")
# Functions whose result is bounded: a factor computed by one is a gate, not the map.
SQUASHING = names("sigmoid hardsigmoid tanh softmax _softmax clamp hardtanh")
# ... and what stays bounded when its operand grows; ``exp`` and its like only where that falls.
BOUNDED = SQUASHING | names("log_softmax _log_softmax sign sgn erf atan sin cos recurrent exp expm1 exp2")
# Leave alone what lies between their bounds.
BOUNDING = CLAMPS_BY_OPERAND | names("relu hardtanh")

# Layers and their functions.

CONVOLUTIONS = names(
    "convolution _convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
    "_conv_depthwise2d conv_depthwise3d"
)
# Products of two matrices, either of which may be a map; ``LINEAR_MAPS`` are those of a layer as well.
MATRIX_PRODUCTS = names("bmm matmul mm")
BATCHED_PRODUCTS = names("bmm baddbmm")
LINEAR_MAPS = MATRIX_PRODUCTS | names("linear addmm baddbmm _addmm_activation")
# Normalisations by statistics of the sample itself; those of a batch tell by ``is_batch_norm``.
LAYER_NORMS = names("native_layer_norm layer_norm rms_norm _fused_rms_norm")
GROUP_NORMS = names("native_group_norm group_norm")
SAMPLE_NORMS = LAYER_NORMS | GROUP_NORMS | names("instance_norm")
BATCH_NORMS = names(
    "native_batch_norm batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm"
)
# Functions of a weight that a caller may run on a layer's parameters without calling the layer.
WEIGHTED = LINEAR_MAPS | CONVOLUTIONS | LAYER_NORMS | GROUP_NORMS | BATCH_NORMS
# Whose second operand is a weight and nothing else: in a product of matrices it may be a second map (attention).
WITH_WEIGHT = CONVOLUTIONS | SAMPLE_NORMS | BATCH_NORMS | names("linear")


def is_batch_norm(name: str) -> bool:
    """Whether an operation normalises every channel by itself (an instance normalisation runs as a batch one)."""
    return "batch_norm" in name or "instance_norm" in name


# The channel axis.

# Convolutions and what normalises groups of channels have them on axis 1 (``is_batch_norm``, too), others on the last.
CHANNELS_SECOND = CONVOLUTIONS | GROUP_NORMS
CHANNELS_LAST = LINEAR_MAPS | LAYER_NORMS
# Layers that mix the entries of an axis.
MIXING = LINEAR_MAPS | CONVOLUTIONS
# One result per position and channel, computed from others: every axis stays where it is.
KEEP_AXES = names(
    "softmax _softmax log_softmax _log_softmax cumsum cumprod sort topk native_dropout constant_pad_nd cat write copy "
    "hardswish _prelu_kernel rrelu_with_noise log_sigmoid_forward fill native_layer_norm native_group_norm "
    "_fused_rms_norm index_fill masked_fill where flip roll slice narrow split split_with_sizes chunk unsafe_split "
    "tril triu slice_scatter slice_backward"
)
# What runs inside a layer with an activation and neither hinders a scale of its output nor needs v >= 0.
INSIDE_NORMS = RESHAPES | names(
    "native_layer_norm layer_norm native_group_norm group_norm convolution linear addmm mm matmul permute transpose "
    "view_as contiguous alias detach _to_copy to lift_fresh neg dropout feature_dropout alpha_dropout"
)

# Gates.

# What does a gate's work without being a multiplication of its own.
GATE_LIKE = FUSED_PRODUCTS | CHOICES | BATCHED_PRODUCTS | names("add")

# How a result grows with a map that is scaled: f(s x) = s^d f(x).

# d is that of the operand.
SAME_DEGREE = (
    VIEWS
    | AVERAGES
    | MAXIMA
    | names(
        "sum amin max min median abs neg relu leaky_relu prelu _prelu_kernel elu celu selu gelu silu hardswish "
        "mish softplus std std_mean norm linalg_vector_norm cumsum floor ceil round trunc sort topk kthvalue "
        "masked_fill pad constant_pad_nd reflection_pad2d replication_pad2d im2col nan_to_num index index_select "
        "gather diagonal tril triu write"
    )
)
# Of logarithms, for which a factor is a summand: all of these but what adds several or loses the sign.
SAME_LOGARITHM = SAME_DEGREE - names("sum abs")
OF_LARGER = SIGNED_SUMS | names("cat concat concatenate stack hstack vstack where maximum fmax max hypot logaddexp")
OF_SMALLER = names("minimum fmin")
# The sum of the operands' degrees. Batch statistics are not computed from the map.
MULTILINEAR = LINEAR_MAPS | CONVOLUTIONS | BATCH_NORMS | names("mul dot mv")
POWERS = names("pow float_power")
DEGREES = {"sqrt": 0.5, "rsqrt": -0.5, "square": 2.0, "reciprocal": -1.0, "rdiv": -1.0, "var": 2.0}
"""Operation -> the power of its operand that it is."""
LOGARITHM_BASES = {"log": math.e, "log2": 2.0, "log10": 10.0, "log1p": math.e}
EXPONENTIAL_BASES = {"exp": math.e, "exp2": 2.0, "expm1": math.e}
SIGNS = {"add": (1.0, 1.0), "sub": (1.0, -1.0), "rsub": (-1.0, 1.0)}
"""Sum -> what multiplies its two operands."""
