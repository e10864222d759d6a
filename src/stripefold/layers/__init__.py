"""Layer rules by exact type: which tensors scale a layer's output or input, the probe that checks them, refusals."""
