"""Files made of one predicted image: heights, flow, rectified images, preview, item, page."""
