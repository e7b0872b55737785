"""Where the flow of an image is from, in the words of options and products."""

FROM_MODEL, FROM_RPC, FROM_SENSOR = "model", "rpc", "sensor"
