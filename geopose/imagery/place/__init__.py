"""Where an image lies and how it was seen: RPCs, transforms, and the flow that follows."""
