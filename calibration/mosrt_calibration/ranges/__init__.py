"""Statistics of activations, and the INT8 ranges chosen from them."""
