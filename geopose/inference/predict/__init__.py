"""Images in, one averaged prediction out: views, models, and how many at once."""
