"""Files made of one predicted image: heights, flow, rectified images, a preview, an item, a page."""
