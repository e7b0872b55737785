"""Which images show the same place: a table of them, and finding them from their heights."""
