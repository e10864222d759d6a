"""Names of tensor operations by meaning: sums, products, views, weighted layers.

Names are the dispatcher's, without ``aten::`` and a trailing underscore. What is not named here is judged by its
operands alone. What an operation does to a scale or a shift of the channels stands in ``ops``.
"""

from __future__ import annotations


def names(words: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(words.split())


# Two values (or more) that meet in a sum; a difference is a sum with a sign.
ADDITIONS = frozenset({"add", "sub", "rsub", "lerp", "addcmul"})
# A sum over the dimension along which values were stacked just before.
REDUCTIONS = frozenset({"sum", "mean"})
PRODUCTS = frozenset({"mul", "div"})
# Every operand is found again in the result, next to or instead of the others.
COLLECTIONS = names(
    "cat concat concatenate stack hstack vstack where maximum minimum index_put copy write scatter slice_scatter "
    "select_scatter slice_backward masked_scatter _unsafe_index_put"
)
# Functions whose result is bounded: a factor computed by one is a gate, not the map.
SQUASHING = names("sigmoid hardsigmoid tanh softmax _softmax clamp hardtanh")
# Rows of a table picked by integers: the result depends on the input although the table does not.
LOOKUPS = names("embedding embedding_bag _embedding_bag index index_select gather take")
# Fresh tensors that take nothing but shape and type from their operand.
FACTORIES = names(
    "empty_like zeros_like ones_like full_like rand_like randn_like randint_like "
    "new_empty new_zeros new_ones new_full new_empty_strided"
)
# Hand a value to Python: what ``if``, ``float()`` and ``.item()`` do.
INTO_PYTHON = names("_local_scalar_dense equal is_nonzero item")
# Functions of tensors that do so without an operation.
OUT_OF_TORCH = names("tolist numpy __array__ __dlpack__")
# The old content of the first operand does not matter.
OVERWRITES = names("copy fill zero normal uniform bernoulli exponential random")
# Rearrange elements and compute nothing.
VIEWS = names(
    "view reshape _unsafe_view _reshape_alias flatten unflatten squeeze unsqueeze permute transpose t movedim expand "
    "expand_as as_strided alias detach contiguous clone _to_copy to lift_fresh slice select narrow split "
    "split_with_sizes chunk unbind view_as roll flip pixel_shuffle pixel_unshuffle channel_shuffle dropout"
)
# Views under which a layer and its only consumer are still neighbours.
RESHAPES = names("view reshape _unsafe_view _reshape_alias flatten unflatten squeeze unsqueeze clone")
# Views that show every element of their operand and no other, in its own order, or in whatever order.
IN_ORDER = RESHAPES | names("expand alias detach contiguous")
WHOLE_VIEWS = IN_ORDER | names("permute transpose t movedim")
# Functions of a weight that a caller may run on a layer's parameters without calling the layer.
WEIGHTED = names(
    "linear matmul mm addmm bmm baddbmm _addmm_activation convolution conv1d conv2d conv3d conv_transpose2d "
    "native_layer_norm layer_norm native_group_norm group_norm rms_norm _fused_rms_norm native_batch_norm batch_norm "
    "_native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm"
)
# The name under which a whole recurrent network is recorded.
RECURRENT = "recurrent"


def is_batch_norm(name: str) -> bool:
    """Whether an operation normalises every channel by itself (an instance normalisation runs as a batch one)."""
    return "batch_norm" in name or "instance_norm" in name
