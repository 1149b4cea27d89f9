"""ONNX graphs: export from torch, canonical form, mel front end as nodes."""
