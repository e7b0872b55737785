"""What runs a network: torch, OpenVINO, ONNX Runtime; and in which numbers."""
