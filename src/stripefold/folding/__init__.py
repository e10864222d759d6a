"""Rules by exact layer type, and the folding, fusing and verifying that stand on them."""
