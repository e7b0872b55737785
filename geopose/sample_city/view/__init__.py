"""The picture of a world: an oblique camera, light, ground texture; exact heights and flow."""
