"""The words that options and configs may say, apart from what they mean.

Nothing that takes time is imported here, so that a command can say and check its options before the
seconds in which torch is loaded.
"""

from geopose.products.flow_source import FROM_MODEL, FROM_RPC

AUTO = "auto"

FP32, TF32, BF16, FP16 = "fp32", "tf32", "bf16", "fp16"
PRECISIONS = (AUTO, FP32, TF32, BF16, FP16)

TTA_NAMES = (None, "fliplr", "flips", "d2", "d4", "d4-zoom", "ms", "d4-ms")

DEMO = "demo"
DEFAULT = "published-2"
MODEL_NAMES = (DEFAULT, "published-4", "published-9", DEMO)

FLOW_CHOICES = (AUTO, FROM_MODEL, FROM_RPC)
