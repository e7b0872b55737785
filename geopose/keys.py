"""Names of the fields of samples, batches and network outputs.

Each constant's value equals its name, because these strings stand in the configs inside
published checkpoints. N = batch, maps are N x 1 x H x W.
"""

INPUT_IMAGE_KEY = "INPUT_IMAGE_KEY"  # float32 N x 3 x H x W, normalised
INPUT_IMAGE_ID_KEY = "INPUT_IMAGE_ID_KEY"
INPUT_INDEX_KEY = "INPUT_INDEX_KEY"
INPUT_GROUND_SAMPLE_DISTANCE = "INPUT_GROUND_SAMPLE_DISTANCE"  # metres per pixel, N x 1
INPUT_CITY_NAME = "INPUT_CITY_NAME"

TARGET_AGL_MASK = "TARGET_AGL_MASK"  # metres, NaN = unknown
TARGET_MAGNITUDE_MASK = "TARGET_MAGNITUDE_MASK"  # pixels, NaN = unknown
TARGET_VFLOW_SCALE = "TARGET_VFLOW_SCALE"  # pixels per metre, N x 1
TARGET_VFLOW_ANGLE = "TARGET_VFLOW_ANGLE"  # radians in [0, 2 pi), N x 1
TARGET_VFLOW_DIRECTION = "TARGET_VFLOW_DIRECTION"  # (sin a, cos a), N x 2
TARGET_FLOW_MASK = "TARGET_FLOW_MASK"  # pixels (x, y), N x 2 x H x W, NaN = unknown
TARGET_LEAN = "TARGET_LEAN"  # scale x gsd = tangent of the view's angle off nadir, N x 1
# Of the truth in the city that a sample is of, N x 1; only for losses that ask for them.
TARGET_AGL_VARIANCE = "TARGET_AGL_VARIANCE"  # square metres
TARGET_FLOW_VARIANCE = "TARGET_FLOW_VARIANCE"  # square pixels of the sample, both components added

OUTPUT_AGL_MASK = "OUTPUT_AGL_MASK"
OUTPUT_MAGNITUDE_MASK = "OUTPUT_MAGNITUDE_MASK"
OUTPUT_VFLOW_SCALE = "OUTPUT_VFLOW_SCALE"
OUTPUT_VFLOW_ANGLE = "OUTPUT_VFLOW_ANGLE"
OUTPUT_VFLOW_DIRECTION = "OUTPUT_VFLOW_DIRECTION"  # not normalised
OUTPUT_FLOW_MASK = "OUTPUT_FLOW_MASK"
OUTPUT_POSE_FLOW = "OUTPUT_POSE_FLOW"  # magnitude x unit direction, N x 2 x H x W: made by losses
