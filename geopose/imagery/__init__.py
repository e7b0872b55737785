"""Anyone's images: their place on the earth, their flow by the sensor, files that GIS opens."""
