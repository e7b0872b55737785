"""Files that hold a network: .pth, .safetensors and .onnx, and what they say about it."""
