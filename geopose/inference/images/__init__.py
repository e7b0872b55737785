"""Anyone's images in, of any size, kind and place; products on the map out."""
