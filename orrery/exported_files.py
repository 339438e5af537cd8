"""Names of the files in the folders that ``python -m orrery export`` writes. Light to import."""

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"  # of a checkpoint
NETWORKS = {"onnx": "model.onnx", "torch_export": "model.pt2"}  # format -> file
