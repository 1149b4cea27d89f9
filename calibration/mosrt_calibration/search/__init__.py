"""Search for the quantisation method and the blocks to keep in FP32."""
