"""The words that options and configs may say, apart from what they mean.

Nothing that takes time is imported here, so that a command can say and check its options before the
seconds in which torch is loaded.
"""

AUTO = "auto"

FP32, TF32, BF16, FP16 = "fp32", "tf32", "bf16", "fp16"
PRECISIONS = (AUTO, FP32, TF32, BF16, FP16)

TTA_NAMES = (None, "fliplr", "flips", "d2", "d4", "ms", "d4-ms")

CHANNEL_ORDERS = ("rgb", "bgr")

PTH, SAFETENSORS, ONNX, INT8 = ".pth", ".safetensors", ".onnx", ".int8"
NETWORK_SUFFIXES = (PTH, SAFETENSORS, ONNX)  # of files that a network can be written to as it is
DEEPNESS = "deepness"  # a plugin of QGIS, for which files are written in a form of their own
HELD_OUT = "held-out"  # images of the fold that a network has not learned from
MAX_DROP = 0.002  # of the score, which a network in 8 bits may lose

DEMO = "demo"
DEFAULT = "published-2"
MODEL_NAMES = (DEFAULT, "published-4", "published-9", DEMO)

FROM_MODEL, FROM_RPC, FROM_SENSOR = "model", "rpc", "sensor"  # where an image's flow is from
FLOW_CHOICES = (AUTO, FROM_MODEL, FROM_RPC)
